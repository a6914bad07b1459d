"""Flags that batch runs and streams share."""

from __future__ import annotations

from typing import Any, Literal

from pipelines.options.flag import flag

OutputSchema = Literal["default", "reference"]


def output_table_flag() -> Any:
    """The flag --output_table."""
    return flag(
        "table of BigQuery for the results, made if it is not there: project.dataset.table",
        label="Output table",
        param_type="BIGQUERY_TABLE",
        metavar="TABLE",
    )


def output_schema_flag() -> Any:
    """The flag --output_schema."""
    return flag(
        "reference writes the rows of the reference pipeline: instance_id, anomaly_score, encoded, "
        "timestamp",
        "default",
        label="Output schema",
        param_type="ENUM",
    )


def cluster_by_flag() -> Any:
    """The flag --cluster_by."""
    return flag(
        "columns by which a new --output_table is clustered, four at most",
        label="Cluster by",
        metavar="A,B",
    )


def dead_letter_table_flag() -> Any:
    """The flag --dead_letter_table."""
    return flag(
        "table of BigQuery for dead letters, made if it is not there (default, where no files are "
        "written: OUTPUT_TABLE_dead_letters)",
        label="Dead letter table",
        param_type="BIGQUERY_TABLE",
        metavar="TABLE",
    )
