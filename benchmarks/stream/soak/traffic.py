"""The messages of a soak: most can be scored, and the others are faulty in a known way."""

from __future__ import annotations

import gzip
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from benchmarks.stream.run import numbered, topic
from cloud.clients import Cloud

# One message in this many is faulty.
FAULTY_EVERY = 20
# The pause after a request to publish, which collects messages for the next one and saves CPU time.
PAUSE_SECONDS = 0.01
_ENCODING = "content-encoding"
# Above the limit of 1 MiB when it is decompressed.
_BOMB = gzip.compress(bytes(2 << 20), mtime=0)


@dataclass(frozen=True)
class Fault:
    """A way to spoil a message.

    Attributes:
        reason: The reason that the dead letter must have.
        spoil: Returns the faulty bytes for those of a good message.
        attributes: The attributes of the faulty message.
    """

    reason: str
    spoil: Callable[[bytes], bytes]
    attributes: Mapping[str, str] = field(default_factory=dict)


def _first_value(text: bytes) -> Callable[[bytes], bytes]:
    """Return a function that replaces the first value of a row, which is the feature `Time`."""
    return lambda body: b'{"Time":' + text + body[body.index(b",") :]


FAULTS = (
    Fault("invalid_json", lambda body: body[: len(body) // 2]),
    Fault("invalid_json", lambda body: body.replace(b"Amount", b"\xff", 1)),
    Fault("not_an_object", lambda body: b"12.5"),
    Fault("duplicate_key", lambda body: body[:-1] + b',"V1":1}'),
    Fault("missing_feature", lambda body: body.replace(b"Amount", b"amount", 1)),
    Fault("null", _first_value(b"null")),
    Fault("wrong_type", _first_value(b'"yesterday"')),
    Fault("not_finite", _first_value(b"NaN")),
    Fault("invalid_gzip", lambda body: body, {_ENCODING: "gzip"}),
    Fault("unknown_encoding", lambda body: body, {_ENCODING: "zstd"}),
    Fault("too_large", lambda body: _BOMB, {_ENCODING: "gzip"}),
)
# What can become of a message. The code of an outcome is its index.
OUTCOMES = ("scored", *dict.fromkeys(fault.reason for fault in FAULTS))
CODES = {outcome: code for code, outcome in enumerate(OUTCOMES)}
# The code of any other outcome.
UNKNOWN = -1


def fault_of(number: int) -> Fault | None:
    """Return how a message is spoiled, or None for a good message."""
    if number % FAULTY_EVERY != FAULTY_EVERY - 1:
        return None
    return FAULTS[number // FAULTY_EVERY % len(FAULTS)]


def expected_outcomes(count: int) -> np.ndarray:
    """Return the code of the outcome that each of the first messages must have."""
    codes = np.zeros(count, np.int8)
    faulty = [CODES[fault.reason] for fault in FAULTS]
    places = codes[FAULTY_EVERY - 1 :: FAULTY_EVERY]
    places[:] = np.resize(np.array(faulty, np.int8), len(places))
    return codes


def make_messages(bodies: Sequence[bytes], numbers: Sequence[int]) -> list[dict[str, Any]]:
    """Return the messages with the given numbers. `bodies` are as for `numbered`."""
    messages: list[dict[str, Any]] = []
    for number, message in zip(numbers, numbered(bodies, numbers), strict=True):
        fault = fault_of(number)
        messages.append(
            dict(message)
            if fault is None
            else {"data": fault.spoil(message["data"]), "attributes": dict(fault.attributes)}
        )
    return messages


def send(publish: Callable[[range], object], due: np.ndarray) -> np.ndarray:
    """Send each message when it is due, and return when it was sent, in seconds since 1970.

    Args:
        publish: Publishes the messages with the given numbers, up to a thousand, in one request.
        due: When each message is to be sent, in seconds since 1970 and ascending.
    """
    sent = np.empty(len(due))
    start = 0
    while start < len(due):
        time.sleep(max(0.0, due[start] - time.time()))
        now = time.time()
        stop = min(int(np.searchsorted(due, now, "right")), start + 1_000)
        stop = max(stop, start + 1)
        publish(range(start, stop))
        sent[start:stop] = now
        start = stop
    return sent


class Sender(threading.Thread):
    """Sends each message when it is due, whatever becomes of the others.

    Args:
        cloud: The clients of the project.
        bodies: As for `numbered`.
        due: When each message is to be sent, in seconds since 1970 and ascending.

    Attributes:
        ids: The id of each message that was sent; 0 before that.
        times: When each was sent; NaN until all are.
    """

    def __init__(self, cloud: Cloud, bodies: Sequence[bytes], due: np.ndarray) -> None:
        super().__init__(daemon=True)
        self._client: Any = cloud.publisher()
        self._bodies, self.due = bodies, due
        self.ids, self.times = np.zeros(len(due), np.int64), np.full(len(due), np.nan)

    def run(self) -> None:
        """Send the messages."""
        self.times = send(self._publish, self.due)

    def _publish(self, numbers: range) -> None:
        messages = make_messages(self._bodies, numbers)
        answer = self._client.publish(topic=topic("in"), messages=messages)
        self.ids[numbers.start : numbers.stop] = [int(one) for one in answer.message_ids]
        time.sleep(PAUSE_SECONDS)

    @property
    def has_failed(self) -> bool:
        """Whether it has ended before all messages were sent."""
        return not self.is_alive() and bool(np.isnan(self.times).any())
