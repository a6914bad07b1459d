"""The configuration of a batch run, built from the flags: its source and its sinks."""

from __future__ import annotations

import codecs
from dataclasses import dataclass
from typing import Literal

from common.errors import UsageError
from pipelines.batch.spread import SpreadFlag
from pipelines.config import ModelConfig, ScoringConfig, predictor_of
from pipelines.options import (
    CloudOptions,
    EndpointOptions,
    FailureOptions,
    ModelOptions,
    RunOptions,
    SinkOptions,
    SourceOptions,
)
from pipelines.options.batch import ReadMethod, WriteDisposition
from pipelines.options.flag import Parsed
from pipelines.options.model import BATCH_ROWS
from pipelines.options.rules import check_batch
from transforms.files.csv.dialect import Dialect
from transforms.files.hive import Condition

FileFormat = Literal["parquet", "csv", "jsonl"]
# The rows of a range if an endpoint runs the model, at some thousand rows per second. Decoding the
# rows of a row group again then takes far less time than losing a range of a million rows.
_ENDPOINT_RANGE_ROWS = 131_072
_CHARACTERS = {"tab": "\t", "\\t": "\t", "space": " "}


@dataclass(frozen=True, kw_only=True)
class Files:
    """Files of rows.

    Attributes:
        patterns: Paths, globs or folders.
        file_format: The format of all files, or None to detect it from the suffix of each.
        dialect: How CSV files are written.
        table_version: The version to read of a Delta Lake or Iceberg table, or None for the latest.
        conditions: The conditions on folders of the form NAME=VALUE that a file must fulfil.
        range_rows: The number of rows of a Parquet file that are read as one unit, or None.
    """

    patterns: tuple[str, ...]
    file_format: FileFormat | None
    dialect: Dialect
    table_version: int | None = None
    conditions: tuple[Condition, ...] = ()
    range_rows: int | None = None


@dataclass(frozen=True, kw_only=True)
class Table:
    """A BigQuery table to read.

    Attributes:
        row_restriction: A SQL condition, as in a WHERE clause, or None for all rows.
        dataset: The dataset for the rows of a restriction while they are exported, or None.
    """

    name: str
    row_restriction: str | None
    method: ReadMethod
    dataset: str | None = None


@dataclass(frozen=True, kw_only=True)
class Query:
    """A BigQuery query to read.

    Attributes:
        sql: The text of the query, or @ followed by the path of a file that holds it.
        max_bytes: The maximum number of bytes that it may scan, or None.
        dataset: The dataset for its result while the run reads it, or None.
    """

    sql: str
    max_bytes: int | None
    method: ReadMethod
    dataset: str | None = None


@dataclass(frozen=True, kw_only=True)
class FilesSink:
    """A folder to write to, in which each run has its own folder."""

    folder: str
    file_format: FileFormat


@dataclass(frozen=True, kw_only=True)
class TableSink:
    """A BigQuery table to write.

    Attributes:
        flag: The flag that names the table, for errors.
    """

    name: str
    flag: str
    disposition: WriteDisposition = "append"
    cluster_by: tuple[str, ...] = ()


Source = Files | Table | Query
Sink = FilesSink | TableSink


@dataclass(frozen=True, kw_only=True)
class RunConfig(ScoringConfig):
    """The configuration of a batch run or of a replay.

    Attributes:
        sinks: The sinks of the scored rows.
        letter_sinks: The sinks of the dead letters.
        max_dead_letter_share: The share of the rows, from 0 to 1, above which the run fails.
        min_rows: The number of rows below which the run fails.
        report_html: Whether the run writes a page.
        report_examples: How many dead letters of each reason the page shows.
    """

    sinks: tuple[Sink, ...]
    letter_sinks: tuple[Sink, ...]
    max_dead_letter_share: float
    run: RunOptions
    min_rows: int = 0
    report_html: bool = False
    report_examples: int = 0

    @property
    def tables(self) -> tuple[str, ...]:
        """The names of the BigQuery tables that are written."""
        sinks = (*self.sinks, *self.letter_sinks)
        return tuple(sink.name for sink in sinks if isinstance(sink, TableSink))


@dataclass(frozen=True, kw_only=True)
class BatchConfig(RunConfig):
    """The configuration of a batch run.

    Attributes:
        id_column: The column with the row ids, or None to derive them.
        spread: Whether a shuffle separates reading from predicting.
    """

    source: Source
    id_column: str | None
    spread: SpreadFlag = "auto"

    @property
    def reads_bigquery(self) -> bool:
        """Whether the source is a BigQuery table or query."""
        return not isinstance(self.source, Files)

    @property
    def range_rows(self) -> int | None:
        """The number of rows of a range of a Parquet file. None means whole row groups."""
        given = self.source.range_rows if isinstance(self.source, Files) else None
        by_endpoint = isinstance(self.predictor, EndpointOptions)
        return given or (_ENDPOINT_RANGE_ROWS if by_endpoint else None)


def batch_config(pipeline: str, parsed: Parsed) -> BatchConfig:
    """Build the configuration of a batch run.

    Args:
        pipeline: The name of the pipeline, such as `batch_local`.
        parsed: The command line.

    Raises:
        UsageError: If flags are missing, contradict each other, or have no effect.
    """
    check_batch(pipeline, parsed)
    sinks = sinks_of(parsed.get(SinkOptions))
    return BatchConfig(
        pipeline=pipeline,
        source=_source(parsed.get(SourceOptions)),
        id_column=parsed.get(SourceOptions).id_column,
        spread=parsed.get(SourceOptions).spread_batches,
        min_rows=parsed.get(SourceOptions).min_rows,
        model=ModelConfig.of(
            parsed.get(ModelOptions), parsed.get(SinkOptions).output_schema, BATCH_ROWS
        ),
        predictor=predictor_of(parsed),
        sinks=sinks,
        letter_sinks=letter_sinks_of(parsed.get(FailureOptions), sinks),
        max_dead_letter_share=parsed.get(FailureOptions).max_dead_letter_share,
        cloud=parsed.get(CloudOptions),
        run=parsed.get(RunOptions),
        report_html=parsed.get(SinkOptions).report_html,
        report_examples=parsed.get(SinkOptions).report_examples,
    )


def _source(flags: SourceOptions) -> Source:
    """Return the one source that the flags name."""
    if flags.input_table is not None:
        return Table(
            name=flags.input_table,
            row_restriction=flags.row_restriction,
            method=flags.read_method,
            dataset=flags.query_dataset,
        )
    if flags.input_query is not None:
        return Query(
            sql=flags.input_query,
            max_bytes=flags.max_bytes_billed,
            method=flags.read_method,
            dataset=flags.query_dataset,
        )
    file_format = None if flags.input_format == "auto" else flags.input_format
    return Files(
        patterns=flags.input_files or (),
        file_format=file_format,
        dialect=_dialect(flags),
        table_version=flags.table_version,
        conditions=tuple(map(Condition.parse, flags.partition_filter or ())),
        range_rows=flags.range_rows,
    )


def _dialect(flags: SourceOptions) -> Dialect:
    """Return how CSV files are written; raise UsageError if flags contradict each other."""
    delimiter = _CHARACTERS.get(flags.csv_delimiter or "", flags.csv_delimiter)
    quote = None if flags.csv_quote == "none" else flags.csv_quote
    escape = None if flags.csv_escape == "none" else flags.csv_escape
    used = [c for c in (delimiter or ",", quote, escape) if c is not None]
    if len({*used}) < len(used):
        raise UsageError(
            "--csv_delimiter, --csv_quote and --csv_escape must be different characters, got "
            f"{' '.join(used)}"
        )
    if flags.csv_multiline and quote is None:
        raise UsageError(
            "--csv_multiline has no effect with --csv_quote none: leave one of them out"
        )
    try:
        encoding = codecs.lookup(flags.csv_encoding).name
        "".encode(encoding)
    except LookupError as error:
        raise UsageError(
            f"--csv_encoding: unknown encoding {flags.csv_encoding!r}: expected a name such as "
            "utf-8, cp1252, latin-1 or utf-16"
        ) from error
    return Dialect(
        delimiter=delimiter,
        quote=quote,
        escape=escape,
        encoding=encoding.removesuffix("-sig"),
        multiline=flags.csv_multiline,
    )


def sinks_of(flags: SinkOptions) -> tuple[Sink, ...]:
    """Return the sinks that the flags name: a folder, a table or both."""
    found: list[Sink] = []
    if flags.output_files is not None:
        found.append(FilesSink(folder=flags.output_files, file_format=flags.output_format))
    if flags.output_table is not None:
        found.append(
            TableSink(
                name=flags.output_table,
                flag="output_table",
                disposition=flags.write_disposition,
                cluster_by=flags.cluster_by or (),
            )
        )
    return tuple(found)


def letter_sinks_of(flags: FailureOptions, sinks: tuple[Sink, ...]) -> tuple[Sink, ...]:
    """Return the sinks of the dead letters.

    Args:
        flags: The flags that name sinks for dead letters.
        sinks: The sinks of the rows. Without flags, dead letters go next to the first one.
    """
    found: list[Sink] = []
    if flags.dead_letter_files is not None:
        found.append(FilesSink(folder=flags.dead_letter_files, file_format="jsonl"))
    if flags.dead_letter_table is not None:
        found.append(TableSink(name=flags.dead_letter_table, flag="dead_letter_table"))
    return tuple(found) or (_beside(sinks[0]),)


def _beside(sink: Sink) -> Sink:
    """Return the sink of the dead letters next to a sink of rows."""
    if isinstance(sink, FilesSink):
        return FilesSink(folder=sink.folder, file_format="jsonl")
    return TableSink(name=f"{sink.name}_dead_letters", flag="dead_letter_table")
