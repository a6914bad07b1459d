"""Flags of a batch run: where its rows come from, and where its results go."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pipelines.options.flag import flag
from pipelines.options.forms import AT_LEAST_0, AT_LEAST_1, CHARACTER, DATASET, DELIMITER, SHARE
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
        "paths, globs or folders of Parquet, CSV or JSON Lines files; or the folder of one Delta "
        "Lake or Iceberg table",
        label="Input files",
        param_type="GCS_READ_FILE",
        metavar="PATTERN",
    )
    input_format: Literal["auto", "parquet", "csv", "jsonl"] = flag(
        "format of the input files; auto detects it from the suffix of each file",
        "auto",
        label="Input format",
        param_type="ENUM",
    )
    partition_filter: tuple[str, ...] | None = flag(
        "read only the input files whose folders NAME=VALUE match these conditions, such as "
        "'day >= 2026-11-01, hour < 12'",
        label="Partition filter",
        metavar="CONDITION",
    )
    table_version: int | None = flag(
        "version of a Delta Lake table, or id of a snapshot of an Iceberg table, to read (default: "
        "the latest)",
        label="Table version",
        param_type="NUMBER",
        form=AT_LEAST_0,
    )
    range_rows: int | None = flag(
        "number of rows of a Parquet file that a worker reads as one unit of work; larger row "
        "groups are cut (default: at least 131072, and row groups stay whole unless an endpoint "
        "runs the model)",
        label="Rows of a range",
        param_type="NUMBER",
        form=AT_LEAST_1,
    )
    csv_delimiter: str | None = flag(
        "character between the fields of CSV files, or tab (default: a comma, or the character "
        "that a line such as sep=; at the start of the file names)",
        label="CSV delimiter",
        form=DELIMITER,
        metavar="CHARACTER",
    )
    csv_quote: str = flag(
        "character around quoted values of CSV files, or none",
        '"',
        label="CSV quote",
        form=CHARACTER,
        metavar="CHARACTER",
    )
    csv_escape: str | None = flag(
        "character in CSV files that makes the next one a part of the value, such as a backslash",
        label="CSV escape character",
        form=CHARACTER,
        metavar="CHARACTER",
    )
    csv_encoding: str = flag(
        "encoding of CSV files, such as cp1252 or utf-16",
        "utf-8",
        label="CSV encoding",
        metavar="NAME",
    )
    csv_multiline: bool = flag(
        "read CSV files in which quoted values contain line breaks; each file is then read from "
        "its start to its end by one worker",
        False,
        label="CSV with line breaks",
    )
    input_table: str | None = flag(
        "BigQuery table to read, as project.dataset.table",
        label="Input table",
        param_type="BIGQUERY_TABLE",
        metavar="TABLE",
    )
    input_query: str | None = flag(
        "GoogleSQL query whose result is the input; @PATH reads the query from a file",
        label="Input query",
        metavar="SQL",
    )
    row_restriction: str | None = flag(
        "read only the rows of --input_table that match this condition, as in a WHERE clause; "
        "BigQuery applies it",
        label="Row restriction",
        metavar="SQL",
    )
    read_method: ReadMethod = flag(
        "how to read BigQuery: direct uses the BigQuery Storage Read API; export first writes "
        "Parquet files to the temp location",
        "direct",
        label="Read method",
        param_type="ENUM",
    )
    max_bytes_billed: int | None = flag(
        "reject --input_query if it would scan more than this many bytes",
        label="Maximum bytes billed",
        param_type="NUMBER",
        form=AT_LEAST_1,
    )
    query_dataset: str | None = flag(
        "existing dataset for the table that holds the result of --input_query, or of a "
        "--row_restriction that is exported, while the run reads it, as project.dataset (default: "
        "millrace_queries_LOCATION in the project that pays, which is created)",
        label="Dataset for query results",
        form=DATASET,
        metavar="DATASET",
    )
    spread_batches: Literal["auto", "yes", "no"] = flag(
        "write the rows to the runner's shuffle between reading and predicting, so that reading "
        "does not wait for predictions and any worker can score any batch; auto does it for a slow "
        "model or endpoint behind BigQuery, whose read sessions end after 6 hours, and for large "
        "text files that only one worker can read",
        "auto",
        label="Spread batches",
        param_type="ENUM",
    )
    id_column: str | None = flag(
        "column that identifies a row, written as row_id (default: an id derived from the file and "
        "the position of the row; for BigQuery, from its features)",
        label="Id column",
        metavar="NAME",
    )
    min_rows: int = flag(
        "minimum number of rows that the run must read; with fewer, the run fails with exit code "
        "1. The output stays in place, and the report says that the run failed",
        0,
        label="Minimum number of rows",
        param_type="NUMBER",
        form=AT_LEAST_0,
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
        "what happens to the existing rows of --output_table: append keeps them and adds rows, "
        "truncate replaces them, empty requires that there are none",
        "append",
        label="Write disposition",
        param_type="ENUM",
    )
    cluster_by: tuple[str, ...] | None = cluster_by_flag()
    report_html: bool = flag(
        "also write a page for people, report.html, next to report.json; needs the extra pages "
        "where the run is started",
        False,
        label="Report as a page",
        param_type="BOOLEAN",
    )
    report_examples: int = flag(
        "number of dead letters of each reason that the page shows; they contain values of rows",
        0,
        label="Dead letters on the page",
        param_type="NUMBER",
        form=AT_LEAST_0,
    )


@dataclass(frozen=True)
class FailureOptions:
    """Dead letters, the rows that cannot be scored."""

    dead_letter_files: str | None = flag(
        "folder for dead letters: FOLDER/RUN_ID/dead_letters/ (default: the output folder)",
        label="Dead letter folder",
        param_type="GCS_WRITE_FOLDER",
        metavar="FOLDER",
    )
    dead_letter_table: str | None = dead_letter_table_flag()
    max_dead_letter_share: float = flag(
        "maximum share of the rows, from 0 to 1, that may be dead letters; above it, or if no row "
        "is scored, the run fails with exit code 1. The output stays in place, and the report says "
        "that the run failed",
        0.5,
        label="Maximum share of dead letters",
        param_type="NUMBER",
        form=SHARE,
        metavar="SHARE",
    )
