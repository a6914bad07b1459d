"""The app on a real socket: predictions equal a worker's, and errors have the right status."""

import gzip
import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
from same_scores import assert_predictions, assert_scores
from serving_client import Client, Running, half_a_request, running
from waiting import wait_until

from common.errors import DeviceError
from common.record_batch import OUTPUTS as OUTPUTS_COLUMN
from common.record_batch import to_rows
from examples.transactions.data import FEATURES
from examples.transactions.model import OUTPUTS
from model_handlers.devices.pass_size import PassSize
from model_handlers.loaded_model import LoadedModel
from model_handlers.manifests.manifest import InputSpec, Manifest, OutputSpec
from model_handlers.package import read_manifest
from model_handlers.torch_model import TorchModelHandler
from model_handlers.write_package import write_package
from serving.service import State
from transforms.validate import validate

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture(scope="module")
def served(example: Path) -> Iterator[Running]:
    with running(example / "model") as server:
        yield server


@pytest.fixture
def client(served: Running) -> Client:
    return served.client


def rows(count: int, seed: int = 0) -> list[list[float]]:
    values = np.random.default_rng(seed).normal(size=(count, 30)) * 2
    values[:, 0] = np.arange(count) * 1000.0
    return values.tolist()  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def worker_outputs(example: Path, make_source: Any) -> Any:
    """Return a function that computes outputs with TorchModelHandler, as a worker does."""
    manifest = read_manifest(str(example / "model"))
    handler = TorchModelHandler(str(example / "model"), manifest)
    model = handler.load_model()

    def outputs(instances: list[list[float]]) -> list[dict[str, Any]]:
        source = make_source(dict(zip(FEATURES, zip(*instances, strict=True), strict=True)))
        good, _, _ = validate(source, manifest)
        (answer,) = handler.run_inference([good], model)
        return [row[OUTPUTS_COLUMN] for row in to_rows(answer)]

    return outputs


def test_all_outputs_equal_the_outputs_of_a_worker(client: Client, worker_outputs: Any) -> None:
    instances = rows(57)
    answer = client.predict(instances, outputs="all")
    assert (answer.status, answer.headers["content-type"]) == (200, "application/json")
    expected = worker_outputs(instances)
    predictions = answer.json["predictions"]
    assert len(predictions) == len(expected)
    for got, row in zip(predictions, expected, strict=True):
        assert list(got) == [name for name, _ in OUTPUTS]
        for name, _ in OUTPUTS:
            assert_scores(got[name], row[name], name)


@pytest.mark.exhaustive
@pytest.mark.parametrize("size", [1, 7, 1_000])
@pytest.mark.slow
def test_outputs_do_not_depend_on_the_rows_of_a_request(
    client: Client, worker_outputs: Any, size: int
) -> None:
    instances = rows(1_000)
    expected = worker_outputs(instances)
    starts = [*range(0, 1_000, size)][:150]
    for start in starts:
        answer = client.predict(instances[start : start + size], outputs="all")
        for got, row in zip(answer.json["predictions"], expected[start:], strict=False):
            assert_predictions(got, row)


def test_a_prediction_has_the_fields_of_the_references_container_by_default(
    client: Client, worker_outputs: Any
) -> None:
    instances = rows(3)
    predictions = client.predict(instances).json["predictions"]
    for got, row in zip(predictions, worker_outputs(instances), strict=True):
        assert list(got) == ["anomaly_score", "encoded"]
        assert_scores(got["anomaly_score"], row["denormalized_MAE"])
        assert_scores(got["encoded"], row["encoded"])


def test_a_request_chooses_its_fields(client: Client) -> None:
    wanted = ["normalized_MAE", "anomaly_score"]
    (by_list,) = client.predict(rows(1), outputs=wanted).json["predictions"]
    (by_text,) = client.predict(rows(1), outputs=",".join(wanted)).json["predictions"]
    assert list(by_list) == wanted
    assert_predictions(by_list, by_text)


def test_lists_and_names_in_any_order_are_the_same_row(client: Client) -> None:
    (row,) = rows(1)
    named = dict(zip(FEATURES, row, strict=True))
    backwards = dict(reversed(named.items()))
    answer = client.predict([row, named, backwards, {"features": row}])
    first, *others = answer.json["predictions"]
    for other in [*others, *client.predict([named, backwards]).json["predictions"]]:
        assert_predictions(other, first)


def test_an_empty_request_gets_no_predictions(client: Client) -> None:
    assert client.predict([]).json == {"predictions": []}


def without(name: str) -> dict[str, float]:
    return {feature: 0.5 for feature in FEATURES if feature != name}


def with_value(value: Any) -> list[Any]:
    return [0.5, value, *[0.5] * 28]


GOOD = [0.5] * 30
NO_ROWS = 'expected an object with a list of rows as "instances": {"instances": [...]}'


@pytest.mark.parametrize(
    ("bad", "reason", "message"),
    [
        (GOOD[:29], "wrong_width", "expected 30 values, got 29"),
        ([], "wrong_width", "expected 30 values, got 0"),
        (with_value(None), "null", "column V1: null"),
        (with_value("x"), "wrong_type", "column V1: expected a number, got string"),
        (with_value(True), "wrong_type", "column V1: expected a number, got boolean"),
        (with_value([1.0, 2.0]), "wrong_type", "column V1: expected a number, got list"),
        (with_value(1e39), "not_finite", "column V1: infinite, or outside the range of float32"),
        (with_value(10**60), "not_finite", "column V1: infinite, or outside the range of float32"),
        (with_value(float("nan")), "not_finite", "column V1: NaN"),
        (with_value(-float("inf")), "not_finite", "column V1: infinite, or outside"),
        (without("") | {"V2": float("nan")}, "not_finite", "column V2: NaN"),
        (without("V3"), "missing_feature", "the row has no column V3"),
        (without("V3") | {"v3": 1.0}, "unknown_feature", "unknown feature 'v3' (did you mean 'V3"),
        (without("") | {"Class": 0}, "unknown_feature", "unknown feature 'Class'"),
        (without("") | {"Amount": None}, "null", "column Amount: null"),
        (3, "not_an_object", "expected a JSON object, got integer"),
        ("text", "not_an_object", "expected a JSON object, got string"),
        (None, "not_an_object", "expected a JSON object, got null"),
        ({}, "missing_feature", "the row has no column Time"),
        ({"features": GOOD[:3]}, "wrong_width", "column features: expected 30 values, got 3"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_bad_row_is_refused_with_its_index_and_reason(
    client: Client, bad: Any, reason: str, message: str
) -> None:
    answer = client.predict([GOOD, bad, GOOD])
    assert (answer.status, answer.error["status"]) == (400, "INVALID_ARGUMENT")
    (listed,) = answer.error["instances"]
    assert (listed["index"], listed["reason"]) == (1, reason)
    assert listed["message"].startswith(message)
    assert answer.error["bad_instances"] == 1
    assert "1 of 3 instances failed; the first is instance 1:" in answer.error["message"]


def test_a_row_with_a_duplicate_key_is_refused(client: Client) -> None:
    good = json.dumps(without(""))
    body = f'{{"instances": [{good}, {good[:-1]}, "V1": 0}}, {good}]}}'.encode()
    answer = client.ask("POST", "/predict", body)
    (listed,) = answer.error["instances"]
    assert (answer.status, listed["index"], listed["reason"]) == (400, 1, "duplicate_key")
    assert listed["message"] == "key 'V1' appears twice"


def test_a_row_with_a_constant_and_a_duplicate_key_is_refused(client: Client) -> None:
    row = json.dumps(without("") | {"V2": float("nan")})
    body = f'{{"instances": [{row}, {row[:-1]}, "V1": 0}}]}}'.encode()
    listed = client.ask("POST", "/predict", body).error["instances"]
    assert [one["reason"] for one in listed] == ["not_finite", "duplicate_key"]


def test_all_bad_rows_are_counted_and_the_first_twenty_listed(client: Client) -> None:
    error = client.predict([GOOD, *[with_value(None)] * 30, *[GOOD[:3]] * 2]).error
    assert error["bad_instances"] == 32
    assert [listed["index"] for listed in error["instances"]] == list(range(1, 21))


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "the body is not JSON"),
        (b'{"instances": [[1', "the body is not JSON"),
        (b'{"instances": [[NaN]}', "the body is not JSON"),
        (b"[" * 1_000 + b"NaN" + b"]" * 1_000, "the body is nested too deeply"),
        (b"NaN", NO_ROWS),
        (b'{"instances": NaN}', NO_ROWS),
        (b"\xff\xfe", "the body is not JSON"),
        (gzip.compress(b'{"instances": []}', mtime=0), "send it with Content-Encoding: gzip"),
        (b"[" * 5000, "the body is not JSON"),
        (b"[[1, 2]]", NO_ROWS),
        (b'{"instances": {}}', NO_ROWS),
        (b'{"instances": [], "instances": []}', "key 'instances' appears twice"),
        (b'{"rows": []}', NO_ROWS),
        (b'{"instances": [], "parameters": 3}', "parameters: expected an object, got integer"),
        (
            b'{"instances": [], "parameters": {"output": "all"}}',
            "unknown parameter 'output': the parameters are outputs and prepared",
        ),
        (b'{"instances": [], "parameters": {"outputs": 0}}', "all, score, or a list of names"),
        (b'{"instances": [], "parameters": {"outputs": 3}}', "all, score, or a list of names"),
        (b'{"instances": [], "parameters": {"outputs": [null]}}', "or a list of names"),
        (b'{"instances": [], "parameters": {"outputs": []}}', "of outputs, got an empty list"),
        (b'{"instances": [], "parameters": {"outputs": "encodd"}}', "(did you mean 'encoded"),
    ],
    ids=str,
)
def test_a_body_that_is_not_a_request_is_refused(client: Client, body: bytes, message: str) -> None:
    answer = client.ask("POST", "/predict", body)
    assert answer.status == answer.error["code"] == 400
    assert message in answer.error["message"]


def test_a_request_above_the_limit_is_refused_with_and_without_a_declared_length(
    example: Path,
) -> None:
    with running(example / "model", max_request_bytes=20_000) as server:
        client = server.client
        small, large = (json.dumps({"instances": rows(n)}).encode() for n in (10, 100))
        assert client.ask("POST", "/predict", small).status == 200
        answer = client.ask("POST", "/predict", large)
        assert (answer.status, answer.error["code"]) == (413, 413)
        assert "20,000 bytes" in answer.error["message"]
        # http.client sends an iterable in chunks, without a length.
        assert client.ask("POST", "/predict", iter([small[:99], small[99:]])).status == 200
        pieces = iter([large[i : i + 1000] for i in range(0, len(large), 1000)])
        assert client.ask("POST", "/predict", pieces).status == 413
        assert client.metric('millrace_requests_total{status="413"}') == 2


def test_wrong_paths_and_methods_get_their_status(client: Client) -> None:
    missing = client.get("/predictions")
    assert (missing.status, missing.error["status"]) == (404, "NOT_FOUND")
    wrong = client.get("/predict")
    assert (wrong.status, wrong.headers["allow"]) == (405, "POST")
    assert wrong.error["message"] == "GET /predict: Method Not Allowed"
    assert client.ask("POST", "/health", b"{}").status == 405


@pytest.mark.parametrize(
    "path",
    [
        "/predict",
        "/v1/endpoints/12/deployedModels/34:predict",
        "/v1/projects/p/locations/us-central1/endpoints/12:predict",
        "/v1/projects/p/locations/us-central1/endpoints/12:rawPredict",
    ],
)
def test_the_predict_routes_of_vertex_ai_work(client: Client, path: str) -> None:
    answer = client.ask("POST", path, json.dumps({"instances": [GOOD]}))
    assert len(answer.json["predictions"]) == 1


@pytest.mark.parametrize("path", ["/health", "/ping", "/v1/endpoints/12/deployedModels/34"])
def test_health_names_the_model(client: Client, example: Path, path: str) -> None:
    answer = client.get(path)
    manifest = read_manifest(str(example / "model"))
    assert answer.status == 200
    assert answer.json == {
        "status": "ready",
        "model": {
            "name": "pytorch-autoencoder",
            "version": "1.0.0",
            "sha256": manifest.sha256,
            "digest": manifest.sha256,
            "schema_version": 1,
            "prepares": False,
        },
    }


def test_the_health_route_reports_a_package_that_cannot_be_used(
    example: Path, tmp_path: Path
) -> None:
    manifest = read_manifest(str(example / "model"))
    write_package(tmp_path / "model", b"other bytes", manifest)
    with running(tmp_path / "model", until_ready=False) as server:
        wait_until(lambda: server.client.get("/health").status != 503)
        health = server.client.get("/health")
        assert (health.status, health.json["status"]) == (500, "failed")
        assert "expects sha256" in health.json["reason"]
        answer = server.client.predict([GOOD])
        assert (answer.status, answer.error["code"]) == (500, 500)


class Gate:
    """A gate that holds the model's forward passes until it is opened."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.sizes: list[int] = []
        self.open = threading.Event()
        forward = LoadedModel.forward

        def wait(model: LoadedModel, inputs: Any, window: slice) -> Any:
            self.sizes.append(window.stop - window.start)
            assert self.open.wait(60)
            return forward(model, inputs, window)

        monkeypatch.setattr(LoadedModel, "forward", wait)


@pytest.mark.slow
def test_while_the_model_loads_health_says_so_and_predictions_are_refused(
    example: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(monkeypatch)
    with running(example / "model", until_ready=False) as server:
        wait_until(lambda: bool(gate.sizes))
        health = server.client.get("/health")
        assert (health.status, health.json) == (503, {"status": "loading"})
        answer = server.client.predict([GOOD])
        assert (answer.status, answer.headers["retry-after"]) == (503, "1")
        gate.open.set()
        wait_until(lambda: server.client.get("/health").status == 200)
        assert server.client.predict([GOOD]).status == 200


def test_requests_that_arrive_during_a_pass_share_the_next_one(
    served: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, gate = served.client, Gate(monkeypatch)
    alone = {}
    with ThreadPoolExecutor(6) as pool:
        first = pool.submit(client.predict, rows(2, seed=9))
        # An idle model takes a single request at once. Wait until this pass holds the model, so
        # that the later requests queue.
        wait_until(lambda: gate.sizes == [2])
        later = [pool.submit(client.predict, rows(n, seed=n)) for n in (1, 3, 5)]
        wait_until(lambda: client.metric("millrace_waiting") == 3)
        gate.open.set()
        together = {n: done.result().json for n, done in zip((1, 3, 5), later, strict=True)}
        assert first.result().status == 200
    assert gate.sizes == [2, 9]
    for n, answer in together.items():
        alone[n] = client.predict(rows(n, seed=n)).json
        for got, expected in zip(answer["predictions"], alone[n]["predictions"], strict=True):
            assert_predictions(got, expected)


def test_requests_beyond_max_in_flight_are_refused_at_once(
    example: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running(example / "model", max_in_flight=2) as server, ThreadPoolExecutor(2) as pool:
        gate = Gate(monkeypatch)
        held = [pool.submit(server.client.predict, [GOOD]) for _ in range(2)]
        wait_until(lambda: server.server.service.in_flight == 2)
        refused = server.client.predict([GOOD])
        assert (refused.status, refused.headers["retry-after"]) == (503, "1")
        gate.open.set()
        assert [done.result().status for done in held] == [200, 200]


def test_a_draining_server_refuses_new_requests_and_finishes_the_others(
    example: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running(example / "model") as server, ThreadPoolExecutor(1) as pool:
        gate = Gate(monkeypatch)
        held = pool.submit(server.client.predict, [GOOD])
        wait_until(lambda: bool(gate.sizes))
        server.server.drain()
        assert server.client.get("/health").json == {"status": "draining"}
        refused = server.client.predict([GOOD])
        assert (refused.status, refused.headers["connection"]) == (503, "close")
        gate.open.set()
        assert held.result().status == 200


@pytest.mark.slow
def test_an_incomplete_request_does_not_prolong_the_drain(
    example: Path,
) -> None:
    with running(example / "model", drain_seconds=0.1) as server:
        connection, _ = half_a_request(server.client, [GOOD])
        server.server.drain()
        server.thread.join(60)
        assert not server.thread.is_alive()
        connection.close()


@pytest.mark.slow
def test_a_failed_device_makes_the_server_unhealthy(
    example: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> Any:
        raise DeviceError("the accelerator failed: CUDA error")

    with running(example / "model") as server:
        monkeypatch.setattr(LoadedModel, "forward", broken)
        answer = server.client.predict([GOOD])
        assert (answer.status, answer.error["status"]) == (500, "INTERNAL")
        assert server.client.get("/health").json["reason"].startswith("the accelerator failed")
        assert server.server.service.state is State.FAILED


def test_a_row_that_needs_a_missing_device_does_not_stop_the_server(
    served: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> Any:
        raise RuntimeError("No CUDA GPUs are available")

    with monkeypatch.context() as patched:
        patched.setattr(LoadedModel, "_forward", broken)
        answer = served.client.predict([GOOD])
        assert (answer.status, answer.error["status"]) == (500, "INTERNAL")
        assert "this machine lacks what a part of the model needs" in answer.error["message"]
    assert served.server.service.state is State.READY
    assert served.client.predict([GOOD]).status == 200


@pytest.mark.parametrize("where", ["model", "instances"])
def test_a_request_that_exhausts_memory_gets_503_and_the_next_one_is_answered(
    served: Running, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> Any:
        if where == "model":
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")
        raise MemoryError

    model = served.server.service._chosen.model
    with monkeypatch.context() as patched:
        # A pass gets smaller when memory runs out, and other tests use the same server.
        patched.setattr(model, "size", PassSize(model.batch_rows))
        if where == "model":
            patched.setattr(LoadedModel, "_forward", broken)
        else:
            patched.setattr(served.server.service.reader, "read", broken)
        answer = served.client.predict([GOOD] * 2)
    assert (answer.status, answer.error["status"]) == (503, "UNAVAILABLE")
    assert answer.headers["retry-after"] == "1"
    message = answer.error["message"]
    assert message.startswith("out of memory: ")
    assert message.endswith("; send fewer instances, or allow the server more memory")
    assert served.client.get("/health").status == 200
    assert served.client.predict([GOOD] * 2).status == 200


def test_an_unexpected_error_gets_500_and_its_message_is_neither_sent_nor_logged(
    served: Running, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(instances: Any) -> Any:
        raise KeyError(str(instances[0][0]))

    monkeypatch.setattr(served.server.service.reader, "read", broken)
    answer = served.client.predict([[12345.678]])
    assert (answer.status, answer.error["code"]) == (500, 500)
    assert "KeyError" in answer.error["message"]
    assert "unexpected KeyError" in caplog.text
    assert "12345" not in answer.error["message"] + caplog.text


def test_metrics_count_requests_rows_and_passes(example: Path) -> None:
    with running(example / "model") as server:
        client = server.client
        for n in (1, 4):
            assert client.predict(rows(n)).status == 200
        assert client.predict([GOOD, GOOD[:2]]).status == 400
        assert client.metric('millrace_requests_total{status="200"}') == 2
        assert client.metric('millrace_requests_total{status="400"}') == 1
        assert client.metric("millrace_rows_total") == 5
        assert client.metric('millrace_bad_rows_total{reason="wrong_width"}') == 1
        assert client.metric("millrace_request_seconds_count") == 3
        assert client.metric("millrace_pass_rows_sum") == 5
        assert client.metric("millrace_pass_rows_count") == 2
        wait_until(lambda: client.metric("millrace_in_flight") == 0)


def test_instance_keys_are_copied_to_the_predictions(example: Path) -> None:
    plain = {"anomaly_score", "encoded"}
    with running(example / "model", instance_keys=("id", "100 %", "V1")) as server:
        named = dict(zip(FEATURES, GOOD, strict=True))
        ids = ["a", 7, -(1 << 63), 'x"\n', None]
        instances: list[Any] = [{**named, "id": i, "100 %": n} for n, i in enumerate(ids)]
        instances += [named, GOOD]
        answer = server.client.predict(instances).json["predictions"]
        assert [one["id"] for one in answer] == [*ids, None, None]
        assert [one["100 %"] for one in answer] == [0, 1, 2, 3, 4, None, None]
        assert {*answer[0]} == plain | {"id", "100 %", "V1"}
        # A feature is copied too, and stays in its instance.
        assert [one["V1"] for one in answer] == [0.5] * 6 + [None]
        (first, *_) = server.client.predict([GOOD]).json["predictions"]
        assert {*first} == plain
        assert_predictions(first, {name: answer[0][name] for name in first})
        wrong = server.client.predict([GOOD, {**named, "id": 10**30}, {**named, "idd": 1}])
        assert wrong.status == 400
        assert [(one["index"], one["reason"]) for one in wrong.error["instances"]] == [
            (1, "wrong_type"),
            (2, "unknown_feature"),
        ]
        assert (
            "key id: expected a string or an integer of 64 bits, got float"
            in (wrong.error["message"])
        )


@pytest.mark.parametrize("name", ["encoded", "anomaly_score"])
def test_an_output_cannot_be_an_instance_key(example: Path, name: str) -> None:
    with (
        pytest.raises(AssertionError, match=f"--instance_keys: '{name}' is an output of model"),
        running(example / "model", instance_keys=(name,)),
    ):
        raise NotImplementedError


def test_fixed_outputs_are_not_chosen_by_requests(example: Path) -> None:
    with running(example / "model", fixed_outputs=True, outputs="encoded") as server:
        assert list(server.client.predict([GOOD]).json["predictions"][0]) == ["encoded"]
        refused = server.client.predict([GOOD], outputs="all")
        assert refused.status == 400
        assert "--fixed_outputs, and computes no other outputs: leave" in refused.error["message"]


@pytest.mark.slow
def test_the_score_and_the_routes_can_be_chosen_at_the_start(example: Path) -> None:
    with running(
        example / "model_pt2",
        score_output="normalized_MAE",
        predict_route="/score",
        health_route="/alive",
    ) as server:
        answer = server.client.ask("POST", "/score", json.dumps({"instances": [GOOD]}))
        (got,) = answer.json["predictions"]
        (same,) = server.client.predict([GOOD], outputs=["normalized_MAE"]).json["predictions"]
        assert_scores(got["anomaly_score"], same["normalized_MAE"])
        assert server.client.get("/alive").status == 200


def test_one_connection_carries_any_number_of_requests(served: Running) -> None:
    with requests.Session() as session:
        url = f"{served.server.url}/predict"
        for n in (1, 2, 3):
            answer = session.post(url, json={"instances": rows(n)}, timeout=60)
            assert len(answer.json()["predictions"]) == n
        assert session.post(url, data=b"no", timeout=60).status_code == 400
        assert session.post(url, json={"instances": rows(1)}, timeout=60).status_code == 200


@pytest.fixture(scope="module")
def fragile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A package of a model with two features, which raises on rows with a 13."""
    import hashlib
    import io

    import torch

    class Fragile(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            if bool((x == 13).any()):
                raise ValueError("this model refuses a 13")
            return {"total": x.sum(1), "ratio": x[:, 0] / x[:, 1]}

    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(Fragile()), buffer)
    data = buffer.getvalue()
    manifest = Manifest(
        name="fragile",
        version="1",
        format="torchscript",
        file="model.pt",
        sha256=hashlib.sha256(data).hexdigest(),
        inputs=(InputSpec("x", ("a", "b"), shape=(2,)),),
        outputs=(OutputSpec("total"), OutputSpec("ratio")),
        score_output="total",
    )
    folder = tmp_path_factory.mktemp("fragile")
    write_package(folder, data, manifest)
    return folder


def test_a_row_on_which_the_model_raises_fails_only_its_request(
    fragile: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running(fragile) as server, ThreadPoolExecutor(3) as pool:
        client, gate = server.client, Gate(monkeypatch)
        first = pool.submit(client.predict, [[1, 1]])
        wait_until(lambda: bool(gate.sizes))
        good = pool.submit(client.predict, [[2, 3], [4, 5]])
        bad = pool.submit(client.predict, [[6, 7], [13, 0], [8, 9]])
        wait_until(lambda: client.metric("millrace_waiting") == 2)
        gate.open.set()
        assert first.result().status == 200
        assert [row["anomaly_score"] for row in good.result().json["predictions"]] == [5, 9]
        refused = bad.result()
        assert refused.status == 400
        (listed,) = refused.error["instances"]
        assert (listed["index"], listed["reason"]) == (1, "model_error")
        assert "this model refuses a 13" in listed["message"]


def test_a_nan_or_an_infinity_in_an_output_becomes_null(fragile: Path) -> None:
    with running(fragile, outputs="all") as server:
        predictions = server.client.predict([[0, 0], [1, 0], [1, 2]]).json["predictions"]
        assert [row["ratio"] for row in predictions] == [None, None, 0.5]


def test_a_request_larger_than_a_pass_takes_several_passes(fragile: Path) -> None:
    with running(fragile, max_batch_rows=8) as server:
        predictions = server.client.predict([[n, 1] for n in range(20, 45)]).json["predictions"]
        assert [row["anomaly_score"] for row in predictions] == list(range(21, 46))
        assert server.client.metric("millrace_pass_rows_sum") == 25
