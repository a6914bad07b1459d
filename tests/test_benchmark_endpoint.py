"""Tests that both endpoint clients predict like the model, and that a wrong one is detected."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from faulty_endpoint import faulty_endpoint
from serving_client import Running, running

from benchmarks.serving.endpoint_client import CONTESTANTS, find_fault, measure, millrace

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture(scope="module")
def served(example: Path) -> Iterator[Running]:
    with running(example / "model") as server:
        yield server


@pytest.mark.parametrize("name", CONTESTANTS)
def test_each_client_predicts_like_the_model(served: Running, example: Path, name: str) -> None:
    ask = CONTESTANTS[name](f"{served.server.url}/predict", example / "model", 50, 2)
    assert find_fault(ask, example / "model") == ""
    before = served.client.metric("millrace_rows_total")
    figures = measure(ask, 100, seconds=0.0, warm=0.0)
    assert served.client.metric("millrace_rows_total") == before + figures["rows"] == before + 100
    assert set(figures) == {"rows", "wall_seconds", "cpu_seconds"}


def test_wrong_predictions_are_detected(example: Path) -> None:
    def wrong(instances: list[Any]) -> list[Any]:
        return [{"anomaly_score": 1.0, "encoded": [0.0] * 4} for _ in instances]

    with faulty_endpoint(wrong) as endpoint:
        ask = millrace(endpoint.predict_url, example / "model", 50, 2)
        assert find_fault(ask, example / "model").startswith("denormalized_MAE differs by ")
