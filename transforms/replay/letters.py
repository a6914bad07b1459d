"""Dead letters as values: read from lines, chosen, and made the messages that they were.

A letter is a line of JSON, as files hold it (transforms/files/writers.py); those of
tables and topics become such lines first.
"""

from __future__ import annotations

import base64
import binascii
import datetime
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from common.errors import InputError, UsageError
from transforms.dead_letter_schema import FAILURE_SCHEMA
from transforms.lineage import BATCH_REPLAY, STREAM_REPLAY, LetterKind, Lineage, Taken
from transforms.messages.message import ATTEMPTS, REPLAYED_ID, STAGE, Message, attempts_of
from transforms.messages.publish import MESSAGE_ATTRIBUTES, OWN
from transforms.row_ids import content_id

# What the append of a scored row refuses holds no features.
UNREPLAYABLE = "write"


@dataclass(frozen=True, kw_only=True)
class Letter:
    """A dead letter, as far as a replay needs it. attributes: as a record has them."""

    failed_at: datetime.datetime
    run_id: str
    pipeline: str
    stage: str
    reason: str
    row_id: str
    payload: bytes
    attributes: Mapping[str, Any]
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
            failed_at=moment(record["failed_at"]),
            run_id=record["run_id"] or "",
            pipeline=record["pipeline"] or "",
            stage=record["stage"],
            reason=record["reason"],
            row_id=record["row_id"] or "",
            payload=payload,
            attributes=_read_attributes(record["attributes"]),
            attempts=record["attempts"] or 1,
        )
    except (ValueError, TypeError, KeyError, AttributeError, binascii.Error) as error:
        raise InputError(
            f"{place}: expected dead letters, lines of JSON with failed_at, stage, reason and "
            f"payload; got {len(line):,} bytes without these ({type(error).__name__}); name the "
            "folder dead_letters of a run"
        ) from error


def _read_attributes(text: str | None) -> dict[str, Any]:
    """A letter's attributes -> as values. Raises ValueError where their time is none."""
    attributes: dict[str, Any] = orjson.loads(text or "{}")
    if "event_time" in attributes.get("message", {}):
        moment(attributes["message"]["event_time"])
    return attributes


@dataclass(frozen=True, kw_only=True)
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
    before = letter.attributes.get("message", {})
    attributes = dict(before.get("attributes", {}))
    # A row that was decoded once and then, by another model, was not, still is columns.
    earlier = attributes.get(STAGE, "decode")
    attributes = {name: text for name, text in attributes.items() if not name.startswith(OWN)}
    attributes[ATTEMPTS] = str(letter.attempts)
    attributes[STAGE] = earlier if letter.stage == "decode" else letter.stage
    if letter.row_id:
        attributes[REPLAYED_ID] = letter.row_id
    time = letter.failed_at
    if "event_time" in before:
        time = moment(before["event_time"])
    return Message(
        letter.payload,
        attributes,
        before.get("id") or letter.row_id or content_id(letter.payload),
        round(time.timestamp() * 1_000_000),
        before.get("ordering_key", ""),
    )


def from_message(message: Message) -> dict[str, Any] | None:
    """A message of a dead letter topic -> a record as of FAILURE_SCHEMA.

    None if it is none, or holds the row no longer: a message has its limits.
    """
    own = {n: text for n, text in message.attributes.items() if n.startswith(OWN)}
    fields = {
        name.removeprefix(OWN): text for name, text in own.items() if name not in MESSAGE_ATTRIBUTES
    }
    if not {"stage", "reason", "failed_at"} <= fields.keys() or "payload_bytes" in fields:
        return None
    about: dict[str, Any] = {
        key: own[name] for name, key in MESSAGE_ATTRIBUTES.items() if name in own
    }
    if others := {n: text for n, text in message.attributes.items() if n not in own}:
        about["attributes"] = others
    record = dict.fromkeys(FAILURE_SCHEMA.names) | fields
    return record | {
        "payload": message.data,
        "attributes": orjson.dumps({"message": about} if about else {}).decode(),
        "attempts": attempts_of(message) - 1,
    }


def lineage_of(run_id: str, letters: Iterable[Letter]) -> Lineage:
    """A replay's run id and the letters that it takes -> its lineage."""
    found: dict[LetterKind, Taken] = {}
    for letter in letters:
        kind = LetterKind(letter.run_id, letter.pipeline, letter.stage, letter.reason)
        time = letter.failed_at.timestamp()
        found[kind] = found[kind].add(time) if kind in found else Taken(1, time, time)
    return Lineage(run_id, found)
