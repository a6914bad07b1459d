"""Read dead letters, select those to replay, and turn them back into messages.

Dead letters are read from lines of JSON, the form that files have
(transforms/files/sink/writers.py). Dead letters from tables and topics are converted to such lines
first.
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
from transforms.messages.message import (
    ATTEMPTS,
    OWN,
    REPLAYED_ID,
    STAGE,
    Message,
    attempts_of,
    schema_attributes,
)
from transforms.messages.publish import MESSAGE_ATTRIBUTES, RESERVED
from transforms.row_ids import content_id

# Dead letters of this stage are rows that were scored but could not be written. They hold no
# features, so they cannot be scored again.
UNREPLAYABLE = "write"


@dataclass(frozen=True, kw_only=True)
class Letter:
    """The parts of a dead letter that a replay needs, with the names of FAILURE_SCHEMA."""

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
        """Whether a stream wrote the dead letter."""
        return self.pipeline.startswith("stream")

    @property
    def key(self) -> str:
        """A key that all dead letters of a row share. Ids are not enough: they may repeat."""
        return content_id(self.row_id.encode() + b"\0" + self.payload)


def moment(text: str) -> datetime.datetime:
    """Parse an ISO 8601 time, in UTC if it has no zone; raise ValueError for other texts."""
    found = datetime.datetime.fromisoformat(text)
    return found if found.tzinfo else found.replace(tzinfo=datetime.UTC)


def read_letter(line: bytes, place: str) -> Letter:
    """Read a dead letter from a line of JSON.

    Args:
        line: The line.
        place: Where the line is, for messages.

    Raises:
        InputError: The line is not a dead letter.
    """
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
            f"{place}: expected dead letters, which are lines of JSON with failed_at, stage, "
            f"reason and payload; got a line of {len(line):,} bytes without these "
            f"({type(error).__name__}): choose the dead_letters folder of a run"
        ) from error


def _read_attributes(text: str | None) -> dict[str, Any]:
    """Parse the attributes of a dead letter; raise ValueError if their event time is invalid."""
    attributes: dict[str, Any] = orjson.loads(text or "{}")
    if "event_time" in attributes.get("message", {}):
        moment(attributes["message"]["event_time"])
    return attributes


@dataclass(frozen=True, kw_only=True)
class Selection:
    """A selection of the dead letters to replay; None selects all.

    Attributes:
        reasons: The reasons to select.
        stages: The stages to select.
        since: The earliest time of failure to select.
        pipelines: The pipelines whose dead letters to select.
        run_ids: The runs whose dead letters to select.
        run_id: The run id of the replay itself.
        own: Whether to select dead letters that earlier attempts at this replay wrote. They are
            left out if the dead letters that they came from are in the same source.
    """

    reasons: tuple[str, ...] | None = None
    stages: tuple[str, ...] | None = None
    since: datetime.datetime | None = None
    pipelines: tuple[str, ...] | None = None
    run_ids: tuple[str, ...] | None = None
    run_id: str | None = None
    own: bool = False

    def excludes(self, letter: Letter) -> str:
        """Return why the filters exclude a dead letter, in words, or "" if they do not."""
        if letter.stage == UNREPLAYABLE:
            return "that a table refused, which cannot be scored again"
        if self.reasons is not None and letter.reason not in self.reasons:
            return "with another reason than --reason"
        if self.stages is not None and letter.stage not in self.stages:
            return "from another stage than --stage"
        if self.since is not None and letter.failed_at < self.since:
            return "older than --since"
        if self.pipelines is not None and letter.pipeline not in self.pipelines:
            return "of another pipeline than --pipeline"
        if self.run_ids is not None and letter.run_id not in self.run_ids:
            return "of another run than --replayed_run_id"
        return ""

    def takes(self, letter: Letter) -> bool:
        """Return whether to replay a dead letter.

        Raises:
            UsageError: The replay has the run id of the run that it would replay.
        """
        wanted = not self.excludes(letter)
        if not wanted or letter.run_id != self.run_id:
            return wanted
        if letter.pipeline in (STREAM_REPLAY, BATCH_REPLAY):
            return self.own
        raise UsageError(
            f"--run_id {self.run_id} is the id of the run that is replayed, whose rows would be "
            "replaced: choose another id, or leave out --run_id"
        )


def last_letters(letters: Iterable[Letter]) -> list[Letter]:
    """Return the dead letters to replay among all dead letters of a row.

    Streams write a dead letter at least once, so one of them is replayed. In a batch run each
    dead letter stands for one row, even if rows are equal, so all of the last run are replayed.
    """
    ordered = sorted(letters, key=lambda letter: (letter.attempts, letter.failed_at))
    last = ordered[-1]
    if last.of_stream:
        return [last]
    return [letter for letter in ordered if letter.run_id == last.run_id]


def to_message(letter: Letter) -> Message:
    """Turn a dead letter into the message that it was, or that its row would have been."""
    before = letter.attributes.get("message", {})
    attributes = dict(before.get("attributes", {}))
    # A row that was once decoded is still stored as columns, even if a later replay with another
    # model failed to decode it.
    earlier = attributes.get(STAGE, "decode")
    described = schema_attributes(attributes)
    attributes = {name: text for name, text in attributes.items() if not name.startswith(OWN)}
    attributes |= described
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
    """Return a record with the columns of FAILURE_SCHEMA from a message of a dead letter topic.

    Returns:
        The record. None if the message is not a dead letter, or does not hold the whole row
        because of the size limit of messages.
    """
    own = {n: text for n, text in message.attributes.items() if n.startswith(OWN)}
    fields = {
        name.removeprefix(OWN): text
        for name, text in own.items()
        if name not in MESSAGE_ATTRIBUTES and not name.startswith(OWN + RESERVED)
    }
    if not {"stage", "reason", "failed_at"} <= fields.keys() or "payload_bytes" in fields:
        return None
    about: dict[str, Any] = {
        key: own[name] for name, key in MESSAGE_ATTRIBUTES.items() if name in own
    }
    others = {n: text for n, text in message.attributes.items() if n not in own}
    if others := {**others, **schema_attributes(message.attributes)}:
        about["attributes"] = others
    record = dict.fromkeys(FAILURE_SCHEMA.names) | fields
    return record | {
        "payload": message.data,
        "attributes": orjson.dumps({"message": about} if about else {}).decode(),
        "attempts": attempts_of(message) - 1,
    }


def lineage_of(run_id: str, letters: Iterable[Letter]) -> Lineage:
    """Return the lineage of a replay, given its run id and the dead letters that it uses."""
    found: dict[LetterKind, Taken] = {}
    for letter in letters:
        kind = LetterKind(letter.run_id, letter.pipeline, letter.stage, letter.reason)
        time = letter.failed_at.timestamp()
        found[kind] = found[kind].add(time) if kind in found else Taken(1, time, time)
    return Lineage(run_id, found)
