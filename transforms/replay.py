"""ReadLetters: dead letters of files or a table as source batches, to be scored once more.

Of a row that failed several times, in runs and their replays, the last letter is read.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import apache_beam as beam
from google.cloud.bigquery_storage_v1 import types

from cloud.clients import Cloud
from cloud.errors import retry, told_as
from model_handlers.errors import InputError
from transforms.bigquery_schema import TableName
from transforms.decode_messages import DecodeMessages, MessageFormat
from transforms.failures import Provenance
from transforms.file_ranges import FileRange, match_files, split_file
from transforms.file_writers import to_json_line
from transforms.letters import Letter, Selection, last_letters, read_letter, to_message
from transforms.messages import serialize
from transforms.read_bigquery import BigQuerySource, ReadStream, describe, read_stream
from transforms.read_files import Read
from transforms.record_batch import to_rows
from transforms.row_schemas import FAILURE_SCHEMA
from transforms.text_lines import line_blocks, without_compression


class Letters(Protocol):
    """A place where dead letters lie: parts of it, and the lines of each."""

    @property
    def place(self) -> str:
        """Its name."""

    def parts(self) -> Iterator[Any]:
        """Nothing -> parts that can be read by themselves. Raises InputError."""

    def lines(self, part: Any) -> Iterator[bytes]:
        """A part -> its letters as lines. Raises InputError."""


@dataclass(frozen=True)
class LetterFiles:
    """JSON lines files: paths, globs, folders. Of a folder, other files are left alone."""

    patterns: tuple[str, ...]

    @property
    def place(self) -> str:
        """The patterns."""
        return ", ".join(self.patterns)

    def parts(self) -> Iterator[FileRange]:
        """Ranges of all files."""
        files = [f for f in match_files(self.patterns) if _is_lines(f.path)]
        if not files:
            raise InputError(f"no file of {self.place} ends in .jsonl: expected dead letters")
        for file in files:
            yield from split_file(file, "jsonl")

    def lines(self, part: FileRange) -> Iterator[bytes]:
        """The lines that begin in a range."""
        for _, block in line_blocks(part.path, part.start, part.stop):
            yield from (line for line in block.split(b"\n") if line.strip())


def _is_lines(path: str) -> bool:
    return without_compression(path).lower().endswith(".jsonl")


@dataclass(frozen=True)
class LetterTable:
    """A table of FAILURE_SCHEMA, as it was at a moment. since: earlier letters stay there."""

    cloud: Cloud
    table: TableName
    moment: datetime.datetime
    since: datetime.datetime | None = None

    @property
    def place(self) -> str:
        """The table's name."""
        return f"table {self.table}"

    def parts(self) -> Iterator[ReadStream]:
        """The streams of a read session; none where there is no letter."""
        present = describe(BigQuerySource(self.cloud, self.table)).names
        missing = [name for name in FAILURE_SCHEMA.names if name not in present]
        if missing:
            raise InputError(
                f"{self.place} is no table of dead letters: it lacks {', '.join(missing)}"
            )
        options = types.ReadSession.TableReadOptions(selected_fields=FAILURE_SCHEMA.names)
        if self.since is not None:
            # Of a table partitioned by failed_at, earlier days are not looked at.
            options.row_restriction = f"failed_at >= TIMESTAMP '{self.since.isoformat()}'"
        session = types.ReadSession(
            table=self.table.path,
            data_format=types.DataFormat.ARROW,
            read_options=options,
            table_modifiers=types.ReadSession.TableModifiers(snapshot_time=self.moment),
        )
        with told_as(InputError, f"{self.place} cannot be read"):
            opened = self.cloud.bigquery_read().create_read_session(
                parent=f"projects/{self.cloud.project}",
                read_session=session,
                retry=retry(self.cloud.retry_seconds),
            )
        schema = bytes(opened.arrow_schema.serialized_schema)
        yield from (ReadStream(stream.name, schema) for stream in opened.streams)

    def lines(self, part: ReadStream) -> Iterator[bytes]:
        """The rows of a stream."""
        with told_as(InputError, f"{self.place} cannot be read further"):
            client = self.cloud.bigquery_read()
            for batch in read_stream(part, client, self.cloud.retry_seconds):
                yield from map(to_json_line, to_rows(batch))


def find_letter(letters: Letters, selection: Selection) -> Letter | None:
    """Letters and which of them are replayed -> the first of these, None if there is none."""
    for part in letters.parts():
        for line in letters.lines(part):
            letter = read_letter(line, letters.place)
            if selection.takes(letter):
                return letter
    return None


@dataclass
class ReadLetters(beam.PTransform):
    """Nothing -> source batches of the letters' rows, and failure records.

    of_stream: whether letters of streams are replayed, or those of batch runs.
    """

    letters: Letters
    selection: Selection
    of_stream: bool
    message_format: MessageFormat
    provenance: Provenance
    batch_rows: int = 32_768

    def _parts(self, _: None) -> Iterator[Any]:
        return self.letters.parts()

    def _select(self, part: Any) -> Iterator[tuple[str, bytes]]:
        for line in self.letters.lines(part):
            letter = read_letter(line, self.letters.place)
            if self.selection.takes(letter):
                self._check(letter)
                yield letter.key, line

    def _check(self, letter: Letter) -> None:
        if letter.of_stream != self.of_stream:
            raise InputError(
                f"{self.letters.place} holds dead letters of {letter.pipeline} and of "
                f"{'batch runs' if letter.of_stream else 'streams'} as well: replay one after the "
                f"other, with --pipeline {letter.pipeline}"
            )

    def _messages(self, row: tuple[str, Iterable[bytes]]) -> list[bytes]:
        letters = [read_letter(line, self.letters.place) for line in row[1]]
        return [serialize(to_message(letter)) for letter in last_letters(letters)]

    def expand(self, pipeline: beam.Pipeline) -> Read:
        """parts -> letters -> those of a row together -> messages -> decode."""
        messages = (
            pipeline
            | "Letters" >> beam.Create([None])
            | "Parts" >> beam.FlatMap(self._parts)
            | "SpreadParts" >> beam.Reshuffle()
            | "Select" >> beam.FlatMap(self._select).with_output_types(tuple[str, bytes])
            | "OfARow" >> beam.GroupByKey()
            | "Messages" >> beam.FlatMap(self._messages).with_output_types(bytes)
        )
        return messages | DecodeMessages(self.message_format, self.provenance, self.batch_rows)
