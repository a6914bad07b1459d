"""The metrics of Millrace's server split the time of a request."""

from pathlib import Path

import numpy as np
import pytest
from serving_client import running

from scale_tests.endpoints.server_times import (
    ServerTimes,
    metrics_url,
    parse_times,
    read_times,
    split_parts,
)
from scale_tests.measures.stamps import OF_REQUESTS, breakdown


def parts(count: int) -> tuple:  # type: ignore[type-arg]
    due = np.zeros(count)
    return breakdown({"due": due, "sent": due + 0.001, "arrived": due + 0.101}, OF_REQUESTS)


def test_the_parts_of_the_server_and_the_network_add_up_to_that_of_the_endpoint() -> None:
    before, after = ServerTimes(10, 1, 5, 0.5), ServerTimes(14, 1.2, 7, 0.56)
    found = split_parts(parts(4), before, after)
    assert [(part.name, round(part.mean_ms, 6)) for part in found] == [
        ("sender", 1),
        ("predict", 30),
        ("server", 20),
        ("network", 50),
    ]


def test_a_server_that_counts_other_requests_does_not_split_the_parts() -> None:
    before, after = ServerTimes(10, 1, 5, 0.5), ServerTimes(15, 1.2, 7, 0.56)
    assert split_parts(parts(4), before, after) == parts(4)
    assert split_parts(parts(4), None, after) == parts(4)


@pytest.mark.parametrize(
    ("url", "metrics"),
    [
        ("http://h:1/predict", "http://h:1/metrics"),
        ("https://h/a/predict?b=c", "https://h/a/metrics"),
        ("https://h/v1/projects/p/locations/l/endpoints/1:predict", None),
    ],
)
def test_the_metrics_are_beside_the_route_of_predictions(url: str, metrics: str | None) -> None:
    assert metrics_url(url) == metrics


def test_the_metrics_of_a_running_server_are_read(example: Path) -> None:
    with running(example / "model") as server:
        url = metrics_url(f"{server.server.url}/predict")
        before = read_times(url)
        assert server.client.predict([[0.1] * 30] * 2).status == 200
        after = read_times(url)
    assert before is not None
    assert after is not None
    assert (after.requests - before.requests, after.passes - before.passes) == (1, 1)
    assert after.request_seconds - before.request_seconds >= after.pass_seconds > 0
    assert read_times(url) is None
    assert parse_times("up 1\n") is None
