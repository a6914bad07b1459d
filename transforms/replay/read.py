"""Read dead letters from files or a table as source batches, to score their rows again.

If a row failed several times, in a run and its replays, the last dead letter is used.
"""

from __future__ import annotations

import datetime
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import apache_beam as beam
from google.cloud.bigquery_storage_v1 import types

from cloud.clients import Cloud
from cloud.errors import translate_errors
from common.errors import InputError
from common.record_batch import to_rows
from transforms.accounts import Entry, Settle, counted, expect, found, promise, taken
from transforms.bigquery.schema import TableName
from transforms.bigquery.session import (
    ReadStream,
    create_session,
    promise_streams,
    read_stream,
)
from transforms.bigquery.source import BigQuerySource, describe_source
from transforms.dead_letter_schema import FAILURE_SCHEMA
from transforms.dead_letters import to_letter_line
from transforms.files.pins import unchanged
from transforms.files.ranges import FileRange, match_files, plan_file, split_file
from transforms.files.read import Read
from transforms.files.text_lines import line_blocks, without_compression
from transforms.messages.decode import MESSAGE_BYTES, DecodeMessages, MessageFormat
from transforms.messages.message import serialize
from transforms.provenance import Provenance
from transforms.replay.letters import Letter, Selection, last_letters, read_letter, to_message


class Chunk(NamedTuple):
    """Some dead letters of a part.

    Attributes:
        lines: The dead letters as lines of JSON.
        read: The entry that records what has been read of the place (transforms/accounts.py).
    """

    lines: list[bytes]
    read: Entry


class Letters(Protocol):
    """A place that holds dead letters, and can be read in parts."""

    @property
    def place(self) -> str:
        """The name of the place, for messages."""

    def parts(self) -> tuple[list[Any], list[Entry]]:
        """Return parts that can be read independently, and entries that promise what they hold.

        Raises:
            InputError: The place cannot be read, or holds no dead letters.
        """

    def chunks(self, part: Any) -> Iterator[Chunk]:
        """Yield the dead letters of a part; raise InputError if it cannot be read."""

    def runs(self) -> Counter[str]:
        """Return how many dead letters of each run the place holds, by run id."""


@dataclass(frozen=True)
class LetterFiles:
    """Dead letters in JSON Lines files.

    Attributes:
        patterns: Paths, globs and folders. Other files in a folder are ignored.
    """

    patterns: tuple[str, ...]

    @property
    def place(self) -> str:
        """The patterns, separated by commas."""
        return ", ".join(self.patterns)

    def parts(self) -> tuple[list[FileRange], list[Entry]]:
        """Return the ranges of all files, which are pinned, and what they hold."""
        files = [f for f in match_files(self.patterns) if _is_lines(f.path)]
        if not files:
            raise InputError(
                f"no file in {self.place} ends in .jsonl: expected files of dead letters; choose "
                "the dead_letters folder of a run"
            )
        planned = [plan_file(file, "jsonl") for file in files]
        ranges = [part for file in planned for part in split_file(file)]
        return ranges, [promise(file.pin.path, file.unit, file.size) for file in planned]

    def chunks(self, part: FileRange) -> Iterator[Chunk]:
        """Yield the lines that start in a range."""
        with unchanged(part.pin):
            for _, block, span in line_blocks(part.path, part.start, part.stop, part.compression):
                lines = [line for line in block.split(b"\n") if line.strip()]
                yield Chunk(lines, taken(part.path, part.unit, *span))

    def runs(self) -> Counter[str]:
        """Count the dead letters of each run, by run id."""
        return Counter(letter.run_id for letter in selected(self, Selection()))


def _is_lines(path: str) -> bool:
    return without_compression(path).lower().endswith(".jsonl")


@dataclass(frozen=True, kw_only=True)
class LetterTable:
    """Dead letters in a BigQuery table with the columns of FAILURE_SCHEMA.

    Attributes:
        cloud: The clients of Google Cloud.
        table: The name of the table.
        moment: The table is read in the state that it had at this time.
        since: The earliest time of failure to read, or None for all.
        rows: The number of rows of the table at that moment, or why it is not known.
    """

    cloud: Cloud
    table: TableName
    moment: datetime.datetime
    since: datetime.datetime | None = None
    rows: int | str | None = None

    @property
    def place(self) -> str:
        """The name of the table."""
        return f"table {self.table}"

    def parts(self) -> tuple[list[ReadStream], list[Entry]]:
        """Return the streams of a read session; the list is empty if there are no dead letters."""
        options = types.ReadSession.TableReadOptions(selected_fields=self._columns())
        if self.since is not None:
            # If the table is partitioned by failed_at, this skips the partitions of earlier days.
            options.row_restriction = f"failed_at >= TIMESTAMP '{self.since.isoformat()}'"
        streams = self._open(options)
        promises = [promise_streams(self.place, streams)]
        if isinstance(self.rows, int) and self.since is None:
            promises.append(promise(self.place, "table_rows", self.rows))
        return streams, promises

    def _columns(self) -> list[str]:
        """Return the columns of dead letters, as the table spells them."""
        present = describe_source(BigQuerySource(cloud=self.cloud, table=self.table)).names
        spelled = {name.lower(): name for name in present}
        missing = [name for name in FAILURE_SCHEMA.names if name not in spelled]
        if missing:
            raise InputError(
                f"{self.place} is not a table of dead letters, because it lacks "
                f"{', '.join(missing)}: choose the dead letter table of a run"
            )
        return [spelled[name] for name in FAILURE_SCHEMA.names]

    def _open(self, options: types.ReadSession.TableReadOptions) -> list[ReadStream]:
        """Return the streams of a new read session."""
        session = types.ReadSession(
            table=self.table.path,
            data_format=types.DataFormat.ARROW,
            read_options=options,
            table_modifiers=types.ReadSession.TableModifiers(snapshot_time=self.moment),
        )
        with translate_errors(InputError, f"{self.place} cannot be read"):
            return ReadStream.all_of(create_session(self.cloud, session))

    def runs(self) -> Counter[str]:
        """Count the dead letters of each run, by run id. Only this column is read."""
        own = self._columns()[FAILURE_SCHEMA.get_field_index("run_id")]
        options = types.ReadSession.TableReadOptions(selected_fields=[own])
        counts: Counter[str] = Counter()
        with translate_errors(InputError, f"reading {self.place} failed part-way"):
            client = self.cloud.bigquery_read()
            for part in self._open(options):
                for batch in read_stream(part, client, self.cloud.retry_seconds):
                    for value in batch.column(own).value_counts():
                        counts[value["values"].as_py() or ""] += value["counts"].as_py()
        return counts

    def chunks(self, part: ReadStream) -> Iterator[Chunk]:
        """Yield the rows of a stream."""
        with translate_errors(InputError, f"reading {self.place} failed part-way"):
            client = self.cloud.bigquery_read()
            for batch in read_stream(part, client, self.cloud.retry_seconds):
                rows = batch.rename_columns([name.lower() for name in batch.schema.names])
                lines = list(map(to_letter_line, to_rows(rows)))
                yield Chunk(lines, counted(self.place, "table_rows", len(lines)))
        yield Chunk([], taken(self.place, "streams", part.number, part.number + 1))


def selected(letters: Letters, selection: Selection) -> Iterator[Letter]:
    """Yield the dead letters of a place that are selected for a replay.

    Args:
        letters: The place.
        selection: Which dead letters to replay.

    Raises:
        InputError: The place cannot be read, or holds something other than dead letters.
        UsageError: The replay has the run id of the run that it would replay.
    """
    for part in letters.parts()[0]:
        for line in (line for chunk in letters.chunks(part) for line in chunk.lines):
            letter = read_letter(line, letters.place)
            if selection.takes(letter):
                yield letter


@dataclass(kw_only=True)
class ReadLetters(beam.PTransform):
    """A transform that reads dead letters: it returns source batches of their rows.

    Rows that cannot be decoded become new dead letters.

    Attributes:
        letters: The place that holds the dead letters.
        selection: Which dead letters to replay.
        of_stream: Whether dead letters of streams are replayed, or dead letters of batch runs.
        message_format: How to decode the rows.
        provenance: The run and the model that new dead letters name.
        batch_rows: The maximum number of rows in a batch.
        batch_bytes: The maximum number of bytes of a batch, as for DecodeMessages.
    """

    letters: Letters
    selection: Selection
    of_stream: bool
    message_format: MessageFormat
    provenance: Provenance
    batch_rows: int = 32_768
    batch_bytes: int = MESSAGE_BYTES

    def _parts(self, _: None) -> Iterator[Any]:
        parts, promises = self.letters.parts()
        yield from parts
        for entry in promises:
            yield beam.pvalue.TaggedOutput("entries", entry)

    def _select(self, part: Any) -> Iterator[tuple[str, bytes] | beam.pvalue.TaggedOutput]:
        chosen = 0
        for lines, read in self.letters.chunks(part):
            for line in lines:
                letter = read_letter(line, self.letters.place)
                if self.selection.takes(letter):
                    self._check(letter)
                    yield letter.key, line
                    chosen += 1
            yield beam.pvalue.TaggedOutput("entries", read)
        yield beam.pvalue.TaggedOutput("counts", expect("letters", chosen))

    def _check(self, letter: Letter) -> None:
        if letter.of_stream != self.of_stream:
            raise InputError(
                f"{self.letters.place} holds dead letters of both {letter.pipeline} and "
                f"{'batch runs' if letter.of_stream else 'streams'}: replay them separately, "
                f"starting with --pipeline {letter.pipeline}"
            )

    def _messages(
        self, row: tuple[str, Iterable[bytes]]
    ) -> Iterator[bytes | beam.pvalue.TaggedOutput]:
        letters = [read_letter(line, self.letters.place) for line in row[1]]
        last = last_letters(letters)
        yield from (serialize(to_message(letter)) for letter in last)
        for count in (found("letters", len(letters)), expect("messages", len(last))):
            yield beam.pvalue.TaggedOutput("counts", count)

    def expand(self, pipeline: beam.Pipeline) -> Read:
        """Read the parts, group the dead letters of each row, and decode them as messages."""
        parts = (
            pipeline
            | "Letters" >> beam.Create([None])
            | "Parts" >> beam.ParDo(self._parts).with_outputs("entries", main="parts")
        )
        chosen = (
            parts.parts
            | "SpreadParts" >> beam.Reshuffle()
            | "Select" >> beam.ParDo(self._select).with_outputs("entries", "counts", main="chosen")
        )
        # Beam infers no type for multiple outputs. Without a type the elements would be pickled
        # between workers.
        chosen.chosen.element_type = beam.typehints.Tuple[str, bytes]
        made = (
            chosen.chosen
            | "OfARow" >> beam.GroupByKey()
            | "Messages" >> beam.ParDo(self._messages).with_outputs("counts", main="messages")
        )
        decode = DecodeMessages(
            self.message_format, self.provenance, self.batch_rows, self.batch_bytes
        )
        made.messages.element_type = bytes
        read = made.messages | decode
        entries = (parts.entries, chosen.entries) | "Entries" >> beam.Flatten()
        settled = entries | "Settle" >> Settle()
        counts = (settled, chosen.counts, made.counts, read.counts)
        return read._replace(counts=counts | "AllCounts" >> beam.Flatten())
