"""The sender of a stream's messages: each message is published once, in few requests."""

import json
import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from google.pubsub_v1.types import PublishRequest

from scale_tests.load.rows import Bodies
from scale_tests.streams import sender
from scale_tests.streams.sender import Load, publish

ROWS = (b'{"a":1', b'{"a":2')


@dataclass
class Topic:
    """Stands in for the cloud and its client, and keeps the requests."""

    requests: list[PublishRequest] = field(default_factory=list)
    fails: bool = False

    def publisher(self) -> "Topic":
        return self

    def publish(self, request: PublishRequest, **_: Any) -> None:
        if self.fails:
            raise RuntimeError("no such topic")
        self.requests.append(request)


def load(topic: Topic, offsets: np.ndarray) -> Load:
    count = len(offsets)
    return Load(
        cloud=topic,  # type: ignore[arg-type]
        topic="projects/p/topics/t",
        test_id="test",
        bodies=Bodies(good=ROWS, bad=(b'{"a":{}', b'{"a":{}'), faulty=0.5, seed=1),
        sequence=np.arange(100, 100 + count),
        due=time.time() + offsets,
        faulty=np.arange(count) % 2 == 1,
    )


def test_messages_that_become_due_within_the_gap_share_a_request(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sender, "GAP_SECONDS", 0.1)
    topic = Topic()
    done = publish(load(topic, np.linspace(0, 0.05, 500)))
    # The first request has what is due when it starts, and the second one the rest.
    assert len(topic.requests) <= 2
    assert done.error == ""
    assert not np.isnan(done.at).any()
    rows = [json.loads(one.data) for request in topic.requests for one in request.messages]
    assert sorted(row["sequence"] for row in rows) == list(range(100, 600))
    assert {request.topic for request in topic.requests} == {"projects/p/topics/t"}
    assert all(row["test_id"] == "test" for row in rows)
    assert all((row["a"] == {}) == (row["sequence"] % 2 == 1) for row in rows)


def test_a_request_has_at_most_as_many_messages_as_pubsub_takes() -> None:
    topic = Topic()
    publish(load(topic, np.full(2_500, -1.0)))
    assert sorted(len(request.messages) for request in topic.requests) == [500, 1_000, 1_000]


def test_no_message_is_sent_before_it_is_due() -> None:
    topic = Topic()
    one = load(topic, np.linspace(0, 0.2, 50))
    done = publish(one)
    assert (done.at >= one.due).all()


def test_messages_that_cannot_be_published_have_no_time() -> None:
    done = publish(load(Topic(fails=True), np.zeros(3)))
    assert np.isnan(done.at).all()
    assert "no such topic" in done.error
