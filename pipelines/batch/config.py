"""What a batch run is asked to do: its source and its sinks, of the kind that the flags name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pipelines.config import ModelConfig, ScoringConfig, predictor_of
from pipelines.options import (
    CloudOptions,
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

FileFormat = Literal["parquet", "csv", "jsonl"]


@dataclass(frozen=True, kw_only=True)
class Files:
    """Files of rows. file_format: None where each file's suffix tells it."""

    patterns: tuple[str, ...]
    file_format: FileFormat | None


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table of BigQuery. row_restriction: which of its rows, as in a WHERE clause."""

    name: str
    row_restriction: str | None
    method: ReadMethod


@dataclass(frozen=True, kw_only=True)
class Query:
    """A query of BigQuery. sql: its text, or @ and the path of a file that holds it."""

    sql: str
    max_bytes: int | None
    method: ReadMethod


@dataclass(frozen=True, kw_only=True)
class FilesSink:
    """A folder, in which each run has its own."""

    folder: str
    file_format: FileFormat


@dataclass(frozen=True, kw_only=True)
class TableSink:
    """A table of BigQuery. flag: that names it, for errors."""

    name: str
    flag: str
    disposition: WriteDisposition = "append"
    cluster_by: tuple[str, ...] = ()


Source = Files | Table | Query
Sink = FilesSink | TableSink


@dataclass(frozen=True, kw_only=True)
class RunConfig(ScoringConfig):
    """A run that ends: where its rows and dead letters go.

    max_dead_letter_share: of all rows; with more the run fails.
    """

    sinks: tuple[Sink, ...]
    letter_sinks: tuple[Sink, ...]
    max_dead_letter_share: float
    run: RunOptions

    @property
    def tables(self) -> tuple[str, ...]:
        """The names of the tables of BigQuery that are written."""
        sinks = (*self.sinks, *self.letter_sinks)
        return tuple(sink.name for sink in sinks if isinstance(sink, TableSink))


@dataclass(frozen=True, kw_only=True)
class BatchConfig(RunConfig):
    """A batch run. id_column: None where ids are derived."""

    source: Source
    id_column: str | None

    @property
    def reads_bigquery(self) -> bool:
        """Whether the source is a table or a query."""
        return not isinstance(self.source, Files)


def batch_config(pipeline: str, parsed: Parsed) -> BatchConfig:
    """A pipeline's name and its flags -> what it is asked to do. Raises UsageError."""
    check_batch(pipeline, parsed)
    sinks = sinks_of(parsed.get(SinkOptions))
    return BatchConfig(
        pipeline=pipeline,
        source=_source(parsed.get(SourceOptions)),
        id_column=parsed.get(SourceOptions).id_column,
        model=ModelConfig.of(
            parsed.get(ModelOptions), parsed.get(SinkOptions).output_schema, BATCH_ROWS
        ),
        predictor=predictor_of(parsed),
        sinks=sinks,
        letter_sinks=letter_sinks_of(parsed.get(FailureOptions), sinks),
        max_dead_letter_share=parsed.get(FailureOptions).max_dead_letter_share,
        cloud=parsed.get(CloudOptions),
        run=parsed.get(RunOptions),
    )


def _source(flags: SourceOptions) -> Source:
    """Flags that name one source -> it."""
    if flags.input_table is not None:
        return Table(
            name=flags.input_table,
            row_restriction=flags.row_restriction,
            method=flags.read_method,
        )
    if flags.input_query is not None:
        return Query(
            sql=flags.input_query, max_bytes=flags.max_bytes_billed, method=flags.read_method
        )
    file_format = None if flags.input_format == "auto" else flags.input_format
    return Files(patterns=flags.input_files or (), file_format=file_format)


def sinks_of(flags: SinkOptions) -> tuple[Sink, ...]:
    """Flags -> the folder and the table that they name."""
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
    """Flags, and where the rows go -> where the dead letters go: beside the rows by default."""
    found: list[Sink] = []
    if flags.dead_letter_files is not None:
        found.append(FilesSink(folder=flags.dead_letter_files, file_format="jsonl"))
    if flags.dead_letter_table is not None:
        found.append(TableSink(name=flags.dead_letter_table, flag="dead_letter_table"))
    return tuple(found) or (_beside(sinks[0]),)


def _beside(sink: Sink) -> Sink:
    """The first of the sinks of rows -> that of their dead letters where no flag names one."""
    if isinstance(sink, FilesSink):
        return FilesSink(folder=sink.folder, file_format="jsonl")
    return TableSink(name=f"{sink.name}_dead_letters", flag="dead_letter_table")
