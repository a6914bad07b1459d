"""Flags of a batch run: where its rows come from, and where they go."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pipelines.options.flag import flag
from pipelines.options.forms import AT_LEAST_1, SHARE
from pipelines.options.shared import (
    OutputSchema,
    cluster_by_flag,
    dead_letter_table_flag,
    output_schema_flag,
    output_table_flag,
)

ReadMethod = Literal["direct", "export"]
WriteDisposition = Literal["append", "truncate", "empty"]


@dataclass(frozen=True, kw_only=True)
class SourceOptions:
    """Where the rows come from."""

    input_files: tuple[str, ...] | None = flag(
        "paths, globs or folders of Parquet, CSV or JSON lines files",
        label="Input files",
        param_type="GCS_READ_FILE",
        metavar="PATTERN",
    )
    input_format: Literal["auto", "parquet", "csv", "jsonl"] = flag(
        "format of the input files; auto tells it by each file's suffix",
        "auto",
        label="Input format",
        param_type="ENUM",
    )
    input_table: str | None = flag(
        "table of BigQuery: project.dataset.table",
        label="Input table",
        param_type="BIGQUERY_TABLE",
        metavar="TABLE",
    )
    input_query: str | None = flag(
        "query in standard SQL whose result is read; @path takes it from a file",
        label="Input query",
        metavar="SQL",
    )
    row_restriction: str | None = flag(
        "rows of --input_table that are read, as in a WHERE clause; only these leave BigQuery",
        label="Row restriction",
        metavar="SQL",
    )
    read_method: ReadMethod = flag(
        "direct reads by the Storage Read API; export by way of Parquet files in the temp location",
        "direct",
        label="Read method",
        param_type="ENUM",
    )
    max_bytes_billed: int | None = flag(
        "a query that would scan more bytes is refused",
        label="Largest bytes billed",
        param_type="NUMBER",
        form=AT_LEAST_1,
    )
    id_column: str | None = flag(
        "column that identifies a row, kept as row_id (default: derived, of files from the row's "
        "place, of tables from its features)",
        label="Id column",
        metavar="NAME",
    )


@dataclass(frozen=True, kw_only=True)
class SinkOptions:
    """Where the scored rows go."""

    output_files: str | None = flag(
        "folder for the results: FOLDER/RUN_ID/scores/ and FOLDER/RUN_ID/report.json",
        label="Output folder",
        param_type="GCS_WRITE_FOLDER",
        metavar="FOLDER",
    )
    output_format: Literal["parquet", "csv", "jsonl"] = flag(
        "format of the output files",
        "parquet",
        label="Output format",
        param_type="ENUM",
    )
    output_table: str | None = output_table_flag()
    output_schema: OutputSchema = output_schema_flag()
    write_disposition: WriteDisposition = flag(
        "append to the rows of --output_table, truncate it first, or demand that it is empty",
        "append",
        label="Write disposition",
        param_type="ENUM",
    )
    cluster_by: tuple[str, ...] | None = cluster_by_flag()


@dataclass(frozen=True)
class FailureOptions:
    """Where the rows go that cannot be scored."""

    dead_letter_files: str | None = flag(
        "folder for dead letters, FOLDER/RUN_ID/dead_letters/ (default: the output folder)",
        label="Dead letter folder",
        param_type="GCS_WRITE_FOLDER",
        metavar="FOLDER",
    )
    dead_letter_table: str | None = dead_letter_table_flag()
    max_dead_letter_share: float = flag(
        "the run fails (exit code 1) if more than this share of the rows are dead letters, from 0 "
        "to 1; it always fails if no row is scored. What it wrote stays in place, and its report "
        "says so",
        0.5,
        label="Largest share of dead letters",
        param_type="NUMBER",
        form=SHARE,
        metavar="SHARE",
    )
