"""Tests of VertexEndpointHandler: each row is answered once and correctly, despite faults."""

import gc
import pickle
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pytest
from apache_beam.testing.util import assert_that, equal_to
from faulty_endpoint import (
    ERROR_WITH_200,
    HANG,
    HTML,
    NOT_A_NUMBER,
    NULL,
    QUICK_FAULTS,
    RESET,
    SERVER_ERROR,
    THROTTLED,
    TOO_FEW,
    UNAVAILABLE,
    Fault,
    Faults,
    FaultyEndpoint,
    Request,
    at_rate,
    faulty_endpoint,
    in_turn,
    latency,
    no_faults,
    refusal,
    retry_after,
)
from same_scores import assert_scores
from serving_client import running

from cloud import retry_pacing
from cloud.endpoint_client import DIGEST_HEADER
from cloud.vertex import EndpointAddress
from common.errors import EndpointError, UsageError
from common.record_batch import to_rows, typed
from examples.transactions.data import FEATURES
from model_handlers.endpoints.endpoint import CONFIRMATIONS, Endpoint, RequestLimits
from model_handlers.endpoints.handler import VertexEndpointHandler
from model_handlers.endpoints.request_rows import TensorRows
from model_handlers.manifests.manifest import GoldenRows, InputSpec, Manifest, OutputSpec
from model_handlers.package import read_manifest
from model_handlers.torch_model import TorchModelHandler
from transforms.predict import Predict
from transforms.validate import validate

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
Make = Callable[..., Any]


@pytest.fixture(autouse=True)
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry_pacing, "FIRST_BACKOFF", 0.001)


def score(instances: list[Any]) -> list[Any]:
    return [{"total": 2 * a, "code": [b, c]} for a, b, c in instances]


def some_rows(count: int) -> np.ndarray:
    numbers = np.arange(count, dtype=np.float32)
    return np.stack([numbers, numbers + 0.5, -numbers], axis=1)


Connected = tuple[VertexEndpointHandler, Endpoint]


@contextmanager
def connected(url: str, manifest: Manifest, **settings: Any) -> Iterator[Connected]:
    """Yield a handler for a server, and its connected endpoint, which is closed after the block."""
    names = RequestLimits.__dataclass_fields__
    limits = {"retry_seconds": 2.0} | {n: settings.pop(n) for n in names if n in settings}
    address = EndpointAddress(url=url)
    handler = VertexEndpointHandler(address, manifest, limits=RequestLimits(**limits), **settings)
    model = handler.load_model()
    try:
        yield handler, model
    finally:
        model.client.close()


@pytest.fixture
def serve(make_manifest: Make) -> Make:
    """Return a function that starts an endpoint with faults, and a handler connected to it."""

    @contextmanager
    def start(
        faults: Faults = no_faults, predict: Any = score, **settings: Any
    ) -> Iterator[tuple[FaultyEndpoint, VertexEndpointHandler, Endpoint]]:
        manifest = settings.pop("manifest", None) or make_manifest()
        with (
            faulty_endpoint(predict, faults) as endpoint,
            connected(endpoint.predict_url, manifest, **settings) as (handler, model),
        ):
            yield endpoint, handler, model

    return start


def check_rows(got: tuple[pa.StructArray, pa.StructArray], rows: np.ndarray, *bad: int) -> None:
    """Check that good rows have the right outputs, and bad rows an error."""
    outputs, error = got
    assert len(outputs) == len(error) == len(rows)
    assert np.flatnonzero(np.asarray(error.is_valid())).tolist() == list(bad)
    assert np.flatnonzero(np.asarray(outputs.is_null())).tolist() == list(bad)
    good = np.delete(np.arange(len(rows)), bad)
    kept, expected = outputs.take(pa.array(good)), rows[good]
    np.testing.assert_array_equal(np.array(kept.field("total")), expected[:, 0] * 2)
    codes = np.array(kept.field("code").flatten()).reshape(-1, 2)
    np.testing.assert_array_equal(codes, expected[:, 1:])


def reasons(got: tuple[pa.StructArray, pa.StructArray]) -> list[str]:
    return [fault["reason"] for fault in got[1].drop_null().to_pylist()]


def failure(handler: VertexEndpointHandler, model: Endpoint, rows: np.ndarray) -> str:
    with pytest.raises(EndpointError) as raised:
        handler.predict(model, [rows], len(rows))
    message = str(raised.value)
    assert "\n" not in message
    assert len(message) < 500
    return message


def test_rows_are_answered_in_order_with_requests_of_the_chosen_size(serve: Make) -> None:
    rows = some_rows(1_050)
    with serve(rows=100) as (endpoint, handler, model):
        check_rows(handler.predict(model, [rows], len(rows)), rows)
        assert sorted(len(r.instances) for r in endpoint.requests) == [50] + [100] * 10


@pytest.mark.parametrize("count", [0, 1, 99, 100, 101])
def test_any_number_of_rows_is_returned(serve: Make, count: int) -> None:
    rows = some_rows(count)
    with serve(rows=100) as (_, handler, model):
        check_rows(handler.predict(model, [rows], count), rows)


@pytest.mark.parametrize("fault", QUICK_FAULTS, ids=lambda fault: fault.name)
def test_each_fault_alone_costs_no_row(serve: Make, fault: Fault) -> None:
    rows = some_rows(500)
    faults = at_rate(0.3, seed=3, kinds=[fault])
    with serve(faults, rows=20) as (endpoint, handler, model):
        check_rows(handler.predict(model, [rows], len(rows)), rows)
        assert endpoint.faults[fault.name] > 3


def test_a_request_that_hangs_costs_no_row(serve: Make) -> None:
    rows = some_rows(100)
    with serve(in_turn(None, HANG, HANG), rows=20, timeout_seconds=0.1) as (_, handler, model):
        check_rows(handler.predict(model, [rows], len(rows)), rows)


@pytest.mark.slow
def test_each_row_is_answered_correctly_if_a_fifth_of_the_requests_fail(serve: Make) -> None:
    rows = some_rows(100_000)
    settings: dict[str, Any] = {"rows": 100, "concurrency": 16, "retry_seconds": 60}
    with serve(at_rate(0.2, seed=5), **settings) as (endpoint, handler, model):
        check_rows(handler.predict(model, [rows], len(rows)), rows)
        assert endpoint.faults.total() > 200
        assert {*endpoint.faults} >= {fault.name for fault in QUICK_FAULTS}


def test_faults_are_not_blamed_on_rows_in_requests_of_one_row(serve: Make) -> None:
    rows = some_rows(300)
    settings: dict[str, Any] = {"rows": 1, "concurrency": 16, "retry_seconds": 60}
    with serve(at_rate(0.2, seed=6), **settings) as (_, handler, model):
        check_rows(handler.predict(model, [rows], len(rows)), rows)


def refuse_rows(fault: Fault, *bad: int) -> Faults:
    """Make requests with any of the bad rows fail."""

    def choose(request: Request) -> Fault | None:
        return fault if {a for a, *_ in request.instances} & {*bad} else None

    return choose


@pytest.mark.parametrize("status", [400, 413, 422])
def test_a_refused_request_is_halved_until_the_bad_rows_are_alone(serve: Make, status: int) -> None:
    rows, bad = some_rows(400), (7, 8, 199, 399)
    faults = refuse_rows(refusal(status, "no such Amount"), *bad)
    with serve(faults, rows=100) as (endpoint, handler, model):
        got = handler.predict(model, [rows], len(rows))
        check_rows(got, rows, *bad)
        assert reasons(got) == ["endpoint_refused"] * 4
        (message,) = {fault["message"] for fault in got[1].drop_null().to_pylist()}
        assert message.startswith(f"{status} ")
        assert message.endswith(": no such Amount")
        assert len(endpoint.requests) < 4 * 2 * 8 + 8


@pytest.mark.parametrize(
    "fault", [SERVER_ERROR, UNAVAILABLE, RESET, TOO_FEW, ERROR_WITH_200], ids=lambda f: f.name
)
def test_a_row_on_which_the_endpoint_always_fails_costs_no_other_row(
    serve: Make, fault: Fault
) -> None:
    rows = some_rows(200)
    with serve(refuse_rows(fault, 42), rows=50, retry_seconds=60) as (endpoint, handler, model):
        got = handler.predict(model, [rows], len(rows))
        check_rows(got, rows, 42)
        assert reasons(got) == ["endpoint_failed"]
        alone = [r for r in endpoint.requests if len(r.instances) == 1 and r.instances[0][0] == 42]
        assert len(alone) >= CONFIRMATIONS


@pytest.mark.slow
def test_a_row_that_hangs_the_endpoint_costs_no_other_row(serve: Make) -> None:
    rows = some_rows(4)
    settings: dict[str, Any] = {"rows": 4, "timeout_seconds": 0.02, "retry_seconds": 60}
    with serve(refuse_rows(HANG, 2), **settings) as (_, handler, model):
        got = handler.predict(model, [rows], len(rows))
        check_rows(got, rows, 2)
        assert reasons(got) == ["endpoint_failed"]


def test_an_output_that_the_model_leaves_out_stays_missing(serve: Make) -> None:
    def predict(instances: list[Any]) -> list[Any]:
        return [row | ({"total": None} if row["total"] == 6 else {}) for row in score(instances)]

    rows = some_rows(50)
    with serve(predict=predict) as (endpoint, handler, model):
        outputs, error = handler.predict(model, [rows], len(rows))
        assert error.null_count == 50
        total = np.array(outputs.field("total"))
        assert np.flatnonzero(np.isnan(total)).tolist() == [3]
        # Only the row itself is sent again.
        assert {len(request.instances) for request in endpoint.requests[1:]} == {1}


@pytest.mark.parametrize("fault", [NOT_A_NUMBER, NULL], ids=lambda fault: fault.name)
def test_a_number_that_was_lost_arrives_with_a_later_request(serve: Make, fault: Fault) -> None:
    rows = some_rows(50)
    with serve(in_turn(fault, fault, None)) as (endpoint, handler, model):
        check_rows(handler.predict(model, [rows], len(rows)), rows)
        assert len(endpoint.requests) == 3


def test_a_short_outage_costs_no_row_and_no_bundle(serve: Make) -> None:
    rows, outage = some_rows(300), [UNAVAILABLE, RESET, SERVER_ERROR] * 10
    settings: dict[str, Any] = {"rows": 50, "concurrency": 2, "retry_seconds": 60}
    with serve(in_turn(None, *outage), **settings) as (_, handler, model):
        check_rows(handler.predict(model, [rows], len(rows)), rows)


@pytest.mark.parametrize(
    "fault", [SERVER_ERROR, UNAVAILABLE, RESET, THROTTLED, retry_after("0")], ids=lambda f: f.name
)
@pytest.mark.parametrize("count", [1, 300])
@pytest.mark.exhaustive
def test_a_dead_endpoint_fails_the_bundle_and_blames_no_row(
    serve: Make, fault: Fault, count: int
) -> None:
    rows = some_rows(count)
    with serve(lambda _: fault, retry_seconds=0.3) as (endpoint, handler, model):
        message = failure(handler, model, rows)
        assert message.startswith(f"a request to endpoint {endpoint.predict_url} failed ")
        assert "its rows were neither scored nor written as dead letters" in message
        # When the endpoint answers again, it is used again.
        endpoint.choose_fault = no_faults
        check_rows(handler.predict(model, [rows], len(rows)), rows)


def test_an_endpoint_that_goes_down_during_a_batch_blames_no_row(serve: Make) -> None:
    def dies(request: Request) -> Fault | None:
        return SERVER_ERROR if request.number > 3 else None

    rows = some_rows(100)
    with serve(dies, rows=1, concurrency=1, retry_seconds=0.3) as (_, handler, model):
        assert "its rows were neither scored nor written as dead letters" in failure(
            handler, model, rows
        )


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        (refusal(400, "expected 7 features"), "400 Bad Request: expected 7 features"),
        (HTML, "expected JSON, got an HTML page"),
        (ERROR_WITH_200, "expected predictions, got Prediction failed"),
        (
            Fault("other", change=lambda rows: [{"label": "cat"}] * len(rows)),
            "expected each prediction to have 'total', 'code', got one with 'label'",
        ),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
@pytest.mark.parametrize("count", [1, 300])
def test_an_endpoint_of_another_model_fails_the_bundle_with_one_line(
    serve: Make, fault: Fault, expected: str, count: int
) -> None:
    with serve(lambda _: fault) as (endpoint, handler, model):
        message = failure(handler, model, some_rows(count))
        assert f"does not answer like model tiny 3: {expected}" in message
        assert "check that this model is deployed there" in message
        # This is noticed before requests are halved.
        assert len(endpoint.requests) < 60


def test_a_row_that_is_too_large_for_a_request_costs_no_other_row(make_manifest: Make) -> None:
    manifest = make_manifest(
        InputSpec("x", ("vector",), shape=(5,)), outputs=(OutputSpec("total"),)
    )
    rows = np.ones((40, 5))
    rows[17] = 1.2345678901234567
    with (
        faulty_endpoint(lambda instances: [sum(row) for row in instances]) as endpoint,
        connected(endpoint.predict_url, manifest, bytes=110) as (handler, model),
    ):
        outputs, error = handler.predict(model, [rows], len(rows))
        assert np.flatnonzero(np.asarray(error.is_valid())).tolist() == [17]
        assert error[17].as_py() == {
            "reason": "too_large",
            "message": "expected a request of at most 110 bytes, got 112",
        }
        assert outputs.field("total")[16].as_py() == 5
        assert {len(r.instances) for r in endpoint.requests} <= {1, 2, 3, 4, 5}


def test_the_limit_of_requests_in_flight_holds_for_all_threads_together(serve: Make) -> None:
    rows = some_rows(400)
    faults = at_rate(1.0, seed=1, kinds=[latency(0.002)])
    with serve(faults, rows=20, concurrency=3) as (endpoint, handler, model):
        with ThreadPoolExecutor(5) as pool:
            answers = list(pool.map(lambda _: handler.predict(model, [rows], 400), range(5)))
        for got in answers:
            check_rows(got, rows)
        assert endpoint.most_in_flight == endpoint.connections == 3


def test_a_pickled_handler_connects_where_it_is_loaded(make_manifest: Make) -> None:
    handler = VertexEndpointHandler(EndpointAddress(url="http://nowhere.invalid"), make_manifest())
    again = pickle.loads(pickle.dumps(handler))
    assert (again.address, again.codec, again.limits) == (
        handler.address,
        handler.codec,
        handler.limits,
    )
    before = set(threading.enumerate())
    model = again.load_model()
    (thread,) = [t for t in set(threading.enumerate()) - before if t.name == "endpoint"]
    del model
    gc.collect()
    thread.join(10)
    assert not thread.is_alive()


def test_invalid_settings_are_refused(make_manifest: Make) -> None:
    for wrong in ({"rows": 0}, {"bytes": 0}, {"concurrency": 0}, {"timeout_seconds": 0}):
        with pytest.raises(UsageError):
            RequestLimits(**wrong)  # type: ignore[arg-type]
    address = EndpointAddress(url="http://nowhere.invalid")
    with pytest.raises(UsageError, match="cache_rows must be at least 0, got -1"):
        VertexEndpointHandler(address, make_manifest(), cache_rows=-1)
    with pytest.raises(UsageError, match="has no output 'totl'"):
        VertexEndpointHandler(address, make_manifest(), outputs=["totl"])


GOLDEN = GoldenRows({"x": [[1.0, 2.0, 3.0]]}, {"total": [2.0], "code": [[2.0, 3.0]]})


def test_a_check_sends_a_known_good_row(serve: Make, make_manifest: Make) -> None:
    with serve(manifest=make_manifest(golden=GOLDEN)) as (endpoint, _, model):
        model.check()
        assert [request.instances for request in endpoint.requests] == [[[1, 2, 3]]]
    wrong = GoldenRows(GOLDEN.inputs, {"total": [2.5]})
    with (
        serve(manifest=make_manifest(golden=wrong)) as (_, _, model),
        pytest.raises(
            EndpointError, match=r"'total' of a known-good row: expected 2\.5, got 2\.0; check"
        ),
    ):
        model.check()


def test_rows_that_occur_again_are_not_sent_again(serve: Make) -> None:
    rows = some_rows(60)
    faults = refuse_rows(refusal(400), 5)
    with serve(faults, rows=10, cache_rows=1_000) as (endpoint, handler, model):
        for count in (40, 60, 60, 60):
            check_rows(handler.predict(model, [rows[:count]], count), rows[:count], 5)
        asked = [a for r in endpoint.requests for a, *_ in r.instances if len(r.instances) == 1]
        # A failed row is not cached.
        assert asked.count(5) == 4
        shuffled = rows[::-1][:30].copy()
        before = len(endpoint.requests)
        check_rows(handler.predict(model, [shuffled], 30), shuffled)
        assert len(endpoint.requests) == before
        assert model.predict(TensorRows(handler.codec, [shuffled])).hits == 30


def test_an_answer_that_names_another_model_fails_the_bundle(
    serve: Make, make_manifest: Make
) -> None:
    said = Fault("digest", headers=((DIGEST_HEADER, "b" * 64),))
    with serve(lambda _: said, manifest=make_manifest(sha256="a" * 64)) as (_, handler, model):
        assert "serves another model" in failure(handler, model, some_rows(3))
    with serve(lambda _: said, manifest=make_manifest(sha256="b" * 64)) as (_, handler, model):
        check_rows(handler.predict(model, [some_rows(3)], 3), some_rows(3))


def counters(result: Any) -> dict[str, int]:
    found = result.metrics().query()
    values = {c.key.metric.name: c.result for c in found["counters"]}
    return values | {d.key.metric.name: d.result.count for d in found["distributions"]}


@pytest.mark.slow
def test_through_beam_each_row_is_scored_or_dead_lettered_and_counted(
    make_manifest: Make, make_source: Make
) -> None:
    count, manifest = 600, make_manifest()
    columns = dict(zip("abc", some_rows(count).T.tolist(), strict=True))
    columns["b"][3] = None
    bad = refuse_rows(refusal(400, "not this one"), 77)
    throttled_once = in_turn(None, retry_after("1"))

    def faults(request: Request) -> Fault | None:
        return throttled_once(request) or bad(request)

    with faulty_endpoint(score, faults) as endpoint:
        handler = VertexEndpointHandler(EndpointAddress(url=endpoint.predict_url), manifest)
        pipeline = beam.Pipeline("FnApiRunner")
        source = typed(pipeline | beam.Create([make_source(columns)]))
        predicted = source | Predict(handler, manifest)
        scored = predicted.good | beam.FlatMap(
            lambda batch: [(r["row_id"], r["outputs"]["total"]) for r in to_rows(batch)]
        )
        failed = predicted.failures | beam.FlatMap(
            lambda batch: [(r["row_id"], r["reason"]) for r in to_rows(batch)]
        )
        good = [i for i in range(count) if i not in (3, 77)]
        assert_that(scored, equal_to([(f"r-{i}", 2.0 * i) for i in good]), label="scored")
        letters = [("r-3", "null"), ("r-77", "endpoint_refused")]
        assert_that(failed, equal_to(letters), label="failed")
        counted = counters(pipeline.run())
    sent = len(endpoint.requests)
    assert counted["rows_inferred"] == count - 1
    assert counted["endpoint_requests"] == counted["endpoint_request_ms"] == sent
    assert counted["endpoint_retries"] == 1
    assert counted["endpoint_answers_2xx"] == endpoint.statuses[200]
    assert counted["endpoint_answers_4xx"] == endpoint.statuses[400] + endpoint.statuses[429]
    assert counted["endpoint_bytes_sent"] > count * 10
    assert counted["cumulativeThrottlingSeconds"] == 1
    assert counted["endpoint_in_flight"] == 1
    assert "endpoint_cache_hits" not in counted


def test_through_beam_the_cache_is_counted(make_manifest: Make, make_source: Make) -> None:
    manifest = make_manifest()
    columns = dict(zip("abc", some_rows(20).T.tolist(), strict=True))
    with faulty_endpoint(score) as endpoint:
        handler = VertexEndpointHandler(
            EndpointAddress(url=endpoint.predict_url), manifest, batch_rows=20, cache_rows=50
        )
        pipeline = beam.Pipeline("FnApiRunner")
        typed(pipeline | beam.Create([make_source(columns)] * 3)) | Predict(handler, manifest)
        assert counters(pipeline.run())["endpoint_cache_hits"] == 40


@pytest.fixture(scope="module")
def inputs(example: Path, make_source: Make) -> tuple[Manifest, pa.RecordBatch]:
    """Return the example's manifest, and validated rows for it."""
    manifest = read_manifest(str(example / "model"))
    values = np.random.default_rng(4).normal(size=(30, 1_000)) * 2
    values[0] = np.arange(1_000) * 150.0
    good, _, _ = validate(make_source(dict(zip(FEATURES, values, strict=True))), manifest)
    return manifest, good


@pytest.mark.parametrize("instance_format", ["list", "named"])
@pytest.mark.parametrize("rows", [1, 7, 1_000])
@pytest.mark.slow
def test_the_served_model_and_the_one_in_the_worker_agree(
    example: Path, inputs: tuple[Manifest, pa.RecordBatch], instance_format: Any, rows: int
) -> None:
    manifest, batch = inputs
    local = TorchModelHandler(str(example / "model"), manifest)
    (expected,) = local.run_inference([batch], local.load_model())
    with (
        running(example / "model", outputs="all") as server,
        connected(
            f"{server.server.url}/predict", manifest, rows=rows, instance_format=instance_format
        ) as (handler, model),
    ):
        model.check()
        (got,) = handler.run_inference([batch], model)
    assert got.schema == expected.schema
    assert got.column("error").null_count == got.num_rows
    for field in expected.column("outputs").type:
        ours, theirs = (
            np.array(pa.chunked_array([b.column("outputs").field(field.name)]).to_pylist())
            for b in (got, expected)
        )
        assert_scores(ours, theirs, field.name, manifest.tolerance)


@pytest.mark.slow
def test_if_most_rows_are_refused_few_are_sent_alone(serve: Make) -> None:
    rows = some_rows(3_000)
    bad = {row for row in range(3_000) if row % 10}
    faults = refuse_rows(refusal(400, "no such row"), *bad)
    with serve(faults, rows=100) as (_, handler, model):
        _, error = handler.predict(model, [rows], len(rows))
    faults_by_row = {i: fault for i, fault in enumerate(error.to_pylist()) if fault is not None}
    assert faults_by_row.keys() >= bad
    assert {fault["reason"] for fault in faults_by_row.values()} == {"endpoint_refused"}
    texts = [fault["message"] for fault in faults_by_row.values()]
    left = [text for text in texts if text.startswith("not sent on its own, because most rows of")]
    assert len(left) > 2_000
    assert "no such row" in left[0]
    # Ten workers may each have been at work on a request of 100 rows at that time.
    assert len(texts) - len(left) < 1_200


@pytest.mark.slow
def test_many_adjacent_refused_rows_cost_no_other_row(serve: Make) -> None:
    rows = some_rows(3_000)
    bad = set(range(450, 810))
    for concurrency in (1, 8):
        faults = refuse_rows(refusal(400), *bad)
        with serve(faults, rows=100, concurrency=concurrency) as (_, handler, model):
            check_rows(handler.predict(model, [rows], len(rows)), rows, *sorted(bad))


@pytest.mark.slow
def test_a_server_of_another_package_is_refused(
    example: Path, inputs: tuple[Manifest, pa.RecordBatch]
) -> None:
    manifest, _ = inputs
    with (
        running(example / "model_pt2") as server,
        connected(f"{server.server.url}/predict", manifest) as (_, model),
        pytest.raises(EndpointError, match="serves another model: expected digest"),
    ):
        model.check()
