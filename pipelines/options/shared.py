"""Flags that batch runs and streams share."""

from __future__ import annotations

from typing import Any, Literal

from pipelines.options.flag import flag

OutputSchema = Literal["default", "reference"]


def output_table_flag() -> Any:
    """Return the field of --output_table."""
    return flag(
        "BigQuery table for the results, as project.dataset.table; created if it does not exist",
        label="Output table",
        param_type="BIGQUERY_TABLE",
        metavar="TABLE",
    )


def output_schema_flag() -> Any:
    """Return the field of --output_schema."""
    return flag(
        "columns of the results: default writes Millrace's own columns; reference writes only "
        "instance_id, anomaly_score, encoded and timestamp, for existing tables with these "
        "columns, and has no run_id, so a rerun cannot replace its rows in a table",
        "default",
        label="Output schema",
        param_type="ENUM",
    )


def cluster_by_flag() -> Any:
    """Return the field of --cluster_by."""
    return flag(
        "columns to cluster a new --output_table by, at most four",
        label="Cluster by",
        metavar="A,B",
    )


def dead_letter_table_flag() -> Any:
    """Return the field of --dead_letter_table."""
    return flag(
        "BigQuery table for dead letters, as project.dataset.table; created if it does not exist "
        "(default: OUTPUT_TABLE_dead_letters, if dead letters have no other destination)",
        label="Dead letter table",
        param_type="BIGQUERY_TABLE",
        metavar="TABLE",
    )
