"""Tests that the benchmark of servers detects a wrong one and counts the responses correctly."""

import asyncio
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import uvicorn
from command_line import words
from faulty_endpoint import SERVER_ERROR, TOO_FEW, faulty_endpoint, in_turn
from same_scores import assert_predictions
from serving_client import Client, Running, running
from waiting import wait_until

from benchmarks.serving import scale_test, sender
from benchmarks.serving.http_load import run
from benchmarks.serving.minimal_fastapi import make_app
from benchmarks.serving.servers import GATE_ROWS, body_of, find_fault

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture(scope="module")
def served(example: Path) -> Iterator[Running]:
    with running(example / "model") as server:
        yield server


def test_the_server_of_millrace_passes_the_gate_and_a_wrong_one_does_not(
    served: Running, example: Path
) -> None:
    assert find_fault(f"{served.server.url}/predict", example) == ""
    right = served.client.predict(json.loads(body_of(GATE_ROWS))["instances"]).json["predictions"]
    wrong = [row | {"anomaly_score": row["anomaly_score"] * 1.001} for row in right]
    with faulty_endpoint(lambda _: right) as endpoint:
        assert find_fault(endpoint.predict_url, example) == ""
    with faulty_endpoint(lambda _: wrong, in_turn(TOO_FEW)) as endpoint:
        assert find_fault(endpoint.predict_url, example) == "199 predictions for 200 rows"
        assert find_fault(endpoint.predict_url, example).startswith("anomaly_score differs")


def test_the_minimal_app_predicts_like_the_server_of_millrace(
    served: Running, example: Path
) -> None:
    body = body_of(3)
    app = make_app(str(example / "model" / "model.pt"))
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        wait_until(lambda: server.started)
        port = server.servers[0].sockets[0].getsockname()[1]
        theirs = Client(f"127.0.0.1:{port}").ask("POST", "/predict", body).json["predictions"]
    finally:
        server.should_exit = True
        thread.join()
    ours = served.client.ask("POST", "/predict", body).json["predictions"]
    for their, our in zip(theirs, ours, strict=True):
        assert_predictions(our, their)


def test_the_load_generator_counts_the_responses_of_the_server() -> None:
    with faulty_endpoint(lambda rows: rows, in_turn(None, SERVER_ERROR)) as endpoint:
        load = asyncio.run(run(endpoint.predict_url, body_of(2), 2, 0.2, 0.0))
        answered = endpoint.statuses
        # Responses after the end are not counted.
        assert 0 < load.statuses["200"] <= answered[200] <= load.statuses["200"] + 2
        assert load.statuses["500"] == answered[500] == 1
        assert len(load.latencies) == load.statuses.total()
        assert endpoint.connections == 2


def test_the_log_of_a_server_has_the_requests_of_a_scale_test(
    tmp_path: Path, example: Path
) -> None:
    (tmp_path / "example").symlink_to(example)
    flags = ["--seconds", "2", "--workdir", str(tmp_path), "--output", str(tmp_path)]
    assert scale_test.main(flags) == 0
    levels = json.loads((tmp_path / "scale_test.json").read_text())["levels"]
    for found in levels.values():
        assert found["requests"] == found["requests_in_log"] > 10
        # The server delays each answer by at least 100 ms.
        assert found["logged_ms"]["p50"] >= 100


def test_a_request_that_the_log_lacks_is_noticed() -> None:
    sent = np.array([1.0, 2.0, 3.0])
    log = np.array([[0.1, 0.2], [1.01, 1.19], [2.01, 2.19], [3.01, 3.19]])
    found = scale_test.compare(sent, sent + 0.2, log)
    assert (found["requests"], found["requests_in_log"]) == (3, 3)
    assert found["difference"]["p50"] == pytest.approx(0.2 / 0.18 - 1, abs=1e-3)
    assert scale_test.compare(sent, sent + 0.2, log[:3])["requests_in_log"] == 2


def test_a_sender_is_measured_against_a_server_that_answers_at_once(tmp_path: Path) -> None:
    flags = {"output": tmp_path, "rates": 40, "seconds": 1, "rounds": 2}
    sender.main(words(flags))
    found = json.loads((tmp_path / "endpoint_sender.json").read_text())
    assert [run["rate"] for run in found["runs"]] == [40, 40]
    assert all(run["sent"] > 10 and len(run["late_ms"]) == 3 for run in found["runs"])
