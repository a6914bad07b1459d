"""ReadLetters: dead letters as messages once more, so that their rows are scored again.

A letter is a line of JSON, as files hold it (transforms/file_writers.py); those of
tables and topics become such lines first. Of a row that failed several times, in runs
and their replays, the last letter is sent.
"""

from __future__ import annotations

import base64
import binascii
import datetime
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import apache_beam as beam
import orjson
from google.cloud.bigquery_storage_v1 import types

from cloud.clients import Cloud
from cloud.errors import retry, told_as
from model_handlers.errors import InputError, UsageError, one_line
from transforms.bigquery_schema import TableName
from transforms.decode import content_id
from transforms.decode_messages import DecodeMessages, MessageFormat
from transforms.failures import FAILURE_SCHEMA, Provenance
from transforms.file_ranges import FileRange, match_files, split_file
from transforms.file_writers import to_json_line
from transforms.messages import (
    ATTEMPTS,
    REPLAYED_ID,
    STAGE,
    Message,
    attempts_of,
    serialize,
)
from transforms.read_bigquery import BigQuerySource, ReadStream, describe, read_stream
from transforms.read_files import Read
from transforms.record_batch import to_rows
from transforms.text_lines import line_blocks, without_compression

STREAM_REPLAY, BATCH_REPLAY = "stream_replay", "batch_replay"
# Attributes of messages that are ours begin so.
OWN = "millrace_"
# What the append of a scored row refuses holds no features.
UNREPLAYABLE = "write"


@dataclass(frozen=True)
class Letter:
    """A dead letter, as far as a replay needs it. told: its attributes."""

    failed_at: datetime.datetime
    run_id: str
    pipeline: str
    stage: str
    reason: str
    row_id: str
    payload: bytes
    told: Mapping[str, Any]
    attempts: int

    @property
    def of_stream(self) -> bool:
        """Whether a stream wrote it."""
        return self.pipeline.startswith("stream")

    @property
    def key(self) -> str:
        """The same for all letters of a row: an id may be less than unique."""
        return content_id(self.row_id.encode() + b"\0" + self.payload)


def moment(text: str) -> datetime.datetime:
    """A time of ISO 8601, in UTC where it names no zone -> it. Raises ValueError."""
    found = datetime.datetime.fromisoformat(text)
    return found if found.tzinfo else found.replace(tzinfo=datetime.UTC)


def read_letter(line: bytes, place: str) -> Letter:
    """A line of a file of dead letters, and where it is -> the letter. Raises InputError."""
    try:
        record = orjson.loads(line)
        if "payload_base64" in record:
            payload = base64.b64decode(record["payload_base64"], validate=True)
        else:
            payload = (record["payload"] or "").encode()
        return Letter(
            moment(record["failed_at"]),
            record["run_id"] or "",
            record["pipeline"] or "",
            record["stage"],
            record["reason"],
            record["row_id"] or "",
            payload,
            orjson.loads(record["attributes"] or "{}"),
            record["attempts"] or 1,
        )
    except (ValueError, TypeError, KeyError, AttributeError, binascii.Error) as error:
        raise InputError(
            f"{place}: expected dead letters, lines of JSON with failed_at, stage, reason and "
            f"payload; got {line[:60].decode(errors='replace')!r} ({one_line(error, 60)}); name "
            "the folder dead_letters of a run"
        ) from error


@dataclass(frozen=True)
class Selection:
    """Which letters are replayed; None takes all.

    run_id: of the replay itself. own: whether letters of its own earlier attempts are
    taken; they are not where those that they came from lie as well.
    """

    reasons: tuple[str, ...] | None = None
    stages: tuple[str, ...] | None = None
    since: datetime.datetime | None = None
    pipelines: tuple[str, ...] | None = None
    run_ids: tuple[str, ...] | None = None
    run_id: str | None = None
    own: bool = False

    def takes(self, letter: Letter) -> bool:
        """Whether a letter is to be replayed. Raises UsageError for a run's own id."""
        wanted = (
            letter.stage != UNREPLAYABLE
            and (self.reasons is None or letter.reason in self.reasons)
            and (self.stages is None or letter.stage in self.stages)
            and (self.since is None or letter.failed_at >= self.since)
            and (self.pipelines is None or letter.pipeline in self.pipelines)
            and (self.run_ids is None or letter.run_id in self.run_ids)
        )
        if not wanted or letter.run_id != self.run_id:
            return wanted
        if letter.pipeline in (STREAM_REPLAY, BATCH_REPLAY):
            return self.own
        raise UsageError(
            f"--run_id {self.run_id} is the id of the run that is replayed, whose rows would be "
            "replaced: choose another, or leave it out"
        )


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


def last_letters(letters: Iterable[Letter]) -> list[Letter]:
    """All letters of a row -> those to replay.

    Of a stream's, one: it writes letters at least once. Of batch runs', all of the last
    run: each stands for a row, even where rows are equal.
    """
    ordered = sorted(letters, key=lambda letter: (letter.attempts, letter.failed_at))
    last = ordered[-1]
    if last.of_stream:
        return [last]
    return [letter for letter in ordered if letter.run_id == last.run_id]


def to_message(letter: Letter) -> Message:
    """A letter -> the message it was, or would have been, with what it says of itself."""
    told = letter.told.get("message", {})
    attributes = dict(told.get("attributes", {}))
    # A row that was decoded once and then, by another model, was not, still is columns.
    earlier = attributes.get(STAGE, "decode")
    attributes = {name: text for name, text in attributes.items() if not name.startswith(OWN)}
    attributes[ATTEMPTS] = str(letter.attempts)
    attributes[STAGE] = earlier if letter.stage == "decode" else letter.stage
    if letter.row_id:
        attributes[REPLAYED_ID] = letter.row_id
    time = letter.failed_at
    if "event_time" in told:
        time = moment(told["event_time"])
    return Message(
        letter.payload,
        attributes,
        told.get("id") or letter.row_id or content_id(letter.payload),
        round(time.timestamp() * 1_000_000),
        told.get("ordering_key", ""),
    )


def from_message(message: Message) -> dict[str, Any] | None:
    """A message of a dead letter topic -> a record as of FAILURE_SCHEMA, None if it is none."""
    own = {
        name.removeprefix(OWN): text
        for name, text in message.attributes.items()
        if name.startswith(OWN)
    }
    if not {"stage", "reason", "failed_at"} <= own.keys():
        return None
    others = {n: text for n, text in message.attributes.items() if not n.startswith(OWN)}
    told = {"message": {"attributes": others}} if others else {}
    record = dict.fromkeys(FAILURE_SCHEMA.names) | own
    return record | {
        "payload": message.data,
        "attributes": orjson.dumps(told).decode(),
        "attempts": attempts_of(message) - 1,
    }


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
