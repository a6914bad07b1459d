"""Rows are prepared by the worker or by the server of an endpoint, with equal results."""

import functools
import json
import math
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pytest
from faulty_endpoint import (
    NOT_A_NUMBER,
    SERVER_ERROR,
    Fault,
    Faults,
    Request,
    at_rate,
    faulty_endpoint,
    in_turn,
    no_faults,
    refusal,
)
from hypothesis import given
from hypothesis import strategies as st
from raw_endpoint import (
    expected,
    handler_for,
    logits,
    predict_tensors,
    raw_predictor,
    some_rows,
    validated,
    write_golden_package,
)
from raw_model import FAULTS, GOOD, KINDS, ROWS, write_raw_package
from same_scores import assert_scores
from serving_client import Running, running

from cloud import retry_pacing
from cloud.endpoint_client import DIGEST_HEADER, PREPARATION_HEADER
from common.errors import ContractBroken, EndpointError, UsageError
from common.record_batch import source_batch
from model_handlers.endpoints.handler import VertexEndpointHandler
from model_handlers.endpoints.known_row import known_raw
from model_handlers.endpoints.request_rows import RawRows, raw_rows
from model_handlers.manifests.manifest import Manifest
from model_handlers.manifests.model_json import preparation_digest
from model_handlers.packaged_steps import PackagedSteps
from model_handlers.steps.raw import RAW_TYPES, become
from model_handlers.steps.values import from_values
from pipelines.endpoint_check import Way, find_way
from pipelines.options import EndpointOptions

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
PLACES = ("worker", "server")
Package = tuple[Path, Manifest]


@pytest.fixture(autouse=True)
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry_pacing, "FIRST_BACKOFF", 0.001)


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Package:
    folder = tmp_path_factory.mktemp("raw") / "model"
    return folder, write_golden_package(folder)


@pytest.fixture(scope="module")
def served(package: Package) -> Iterator[Running]:
    with running(package[0], outputs="all") as server:
        yield server


items = {
    "float64": st.floats(),
    "int64": st.integers(-(2**63), 2**63 - 1),
    "string": st.text(st.characters(exclude_categories=["Cs"]), max_size=5),
}
values = items | {
    "bool": st.booleans(),
    "timestamp": st.integers(-62_135_596_800_000_000, 253_402_300_799_999_999),
    "datetime": st.integers(-62_135_596_800_000_000, 253_402_300_799_999_999),
    "date": st.integers(-719_162, 2_932_896),
    # Empty bytes would be an empty text, which is null.
    "binary": st.binary(min_size=1, max_size=5),
    **{f"list<{name}>": st.lists(st.none() | cells, max_size=4) for name, cells in items.items()},
}


@pytest.mark.parametrize("raw", list(RAW_TYPES))
@given(data=st.data())
def test_a_column_arrives_at_the_server_as_it_is_at_the_worker(raw: str, data: Any) -> None:
    cells = data.draw(st.lists(st.none() | values[raw], min_size=1, max_size=5))
    column = pa.array(cells, RAW_TYPES[raw])
    manifest = SimpleNamespace(columns={"x": raw}, inputs=())
    batch = source_batch(pa.array(["r"] * len(cells)), pa.record_batch({"x": column}))
    sent = raw_rows([batch], [], cast(Manifest, manifest))
    arrived = from_values([json.loads(text)["x"] for text in sent.texts], raw)
    assert not arrived.refused
    assert_equal(arrived.values, become(column, raw).values)


def test_lists_that_are_texts_and_words_of_a_dictionary_are_sent_as_what_they_are() -> None:
    columns = {
        "clicks": pa.array(["[1, 2]", "", "[]"]),
        "kind": pa.array(["web", None, "web"]).dictionary_encode(),
    }
    manifest = SimpleNamespace(columns={"clicks": "list<int64>", "kind": "string"}, inputs=())
    batch = source_batch(pa.array(["a", "b", "c"]), pa.record_batch(columns))
    sent = raw_rows([batch], [], cast(Manifest, manifest))
    assert list(map(json.loads, sent.texts)) == [
        {"clicks": [1, 2], "kind": "web"},
        {"clicks": None, "kind": None},
        {"clicks": [], "kind": "web"},
    ]


def assert_equal(got: pa.Array, wanted: pa.Array) -> None:
    """Assert that columns are equal, in which NaN equals NaN."""
    assert got.type == wanted.type
    if not pa.types.is_list(wanted.type):
        np.testing.assert_equal(got.to_pylist(), wanted.to_pylist())
        return
    for mine, theirs in zip(got.to_pylist(), wanted.to_pylist(), strict=True):
        np.testing.assert_equal(mine, theirs)


@pytest.mark.parametrize("rows", [1, 7, 100])
@pytest.mark.parametrize("prepare_at", PLACES)
@pytest.mark.exhaustive
def test_both_places_give_the_answers_of_a_model_in_the_worker(
    package: Package, served: Running, prepare_at: Any, rows: int
) -> None:
    folder, manifest = package
    raw = some_rows(50)
    parameters = '{"prepared":true}' if prepare_at == "worker" else None
    handler = handler_for(
        served.server.url,
        folder,
        manifest,
        prepare_at=prepare_at,
        parameters=parameters,
        rows=rows,
    )
    model = handler.load_model()
    try:
        model.check()
        batch = validated(folder, manifest, raw)
        # Two batches, so that their rows are joined.
        answers = handler.run_inference([batch.slice(0, 20), batch.slice(20)], model)
    finally:
        model.client.close()
    got = np.concatenate([logits(answer) for answer in answers])
    wanted = expected(folder, manifest, raw).field("logits").to_pylist()
    assert_scores(got, wanted, "logits", manifest.tolerance)


def ask(
    package: Package,
    prepare_at: Any,
    faults: Faults = no_faults,
    count: int = 40,
    times: int = 1,
    **given: Any,
) -> tuple[list[pa.RecordBatch], Any]:
    """Send rows to an endpoint with faults; return the answers, and the endpoint."""
    folder, manifest = package
    predict = predict_tensors if prepare_at == "worker" else raw_predictor(folder, manifest)
    with faulty_endpoint(predict, faults) as endpoint:
        handler = handler_for(
            endpoint.predict_url, folder, manifest, prepare_at=prepare_at, **given
        )
        model = handler.load_model()
        try:
            batch = validated(folder, manifest, some_rows(count))
            answers = [handler.run_inference([batch], model)[0] for _ in range(times)]
        finally:
            model.client.close()
    return answers, endpoint


def assert_right(package: Package, answer: pa.RecordBatch, *bad: int) -> None:
    """Assert that all rows but the bad ones have the right outputs."""
    failed = np.flatnonzero(np.asarray(answer.column("error").is_valid())).tolist()
    assert failed == list(bad)
    wanted = expected(*package, some_rows(answer.num_rows)).field("logits").to_pylist()
    good = [row for i, row in enumerate(wanted) if i not in bad]
    assert_scores(logits(answer), good, "logits", package[1].tolerance)


@pytest.mark.parametrize("prepare_at", PLACES)
def test_faults_of_the_endpoint_cost_no_row(package: Package, prepare_at: Any) -> None:
    (answer,), endpoint = ask(
        package, prepare_at, at_rate(0.3, seed=3), count=200, rows=10, retry_seconds=60
    )
    assert endpoint.faults.total() > 3
    assert_right(package, answer)


def refuse(fault: Fault, row: int) -> Faults:
    """Make the requests with one of some_rows fail, which its limit identifies either way."""
    raw = some_rows(40)[row]
    ratio = raw["amount"] / raw["limit"]

    def is_it(one: dict[str, Any]) -> bool:
        found = (one["amount"] or 1.0) / one["limit"] if "amount" in one else one["dense"][1]
        return math.isclose(found, ratio, rel_tol=1e-6)

    return lambda request: fault if any(map(is_it, request.instances)) else None


@pytest.mark.parametrize("prepare_at", PLACES)
@pytest.mark.parametrize(
    ("fault", "reason"),
    [(refusal(400, "never"), "endpoint_refused"), (SERVER_ERROR, "endpoint_failed")],
    ids=lambda value: getattr(value, "name", ""),
)
def test_a_row_that_fails_costs_no_other_row(
    package: Package, prepare_at: Any, fault: Fault, reason: str
) -> None:
    (answer,), _ = ask(package, prepare_at, refuse(fault, 17), rows=10, retry_seconds=60)
    assert_right(package, answer, 17)
    assert answer["error"][17].as_py()["reason"] == reason


def test_a_message_has_no_value_of_a_raw_row(package: Package) -> None:
    row = some_rows(40)[15]
    fault = refusal(400, f"kind {row['kind']!r} at {row['at']} with limit {row['limit']} is odd")
    (answer,), _ = ask(package, "server", refuse(fault, 15), rows=10)
    message = answer["error"][15].as_py()["message"]
    assert message == "400 Bad Request: kind '...' at ... with limit ... is odd"


@pytest.mark.parametrize("prepare_at", PLACES)
@pytest.mark.slow
def test_rows_that_occur_again_are_not_sent_again(package: Package, prepare_at: Any) -> None:
    answers, endpoint = ask(package, prepare_at, times=3, cache_rows=100)
    for answer in answers:
        assert_right(package, answer)
    assert sum(len(request.instances) for request in endpoint.requests) == 40


@pytest.mark.parametrize("prepare_at", PLACES)
def test_numbers_that_were_lost_arrive_with_a_later_request(
    package: Package, prepare_at: Any
) -> None:
    (answer,), endpoint = ask(package, prepare_at, in_turn(NOT_A_NUMBER))
    assert_right(package, answer)
    assert [len(request.instances) for request in endpoint.requests] == [40, 1]


@pytest.mark.parametrize("prepare_at", PLACES)
def test_a_request_has_no_more_bytes_than_the_limit(package: Package, prepare_at: Any) -> None:
    (answer,), endpoint = ask(package, prepare_at, bytes=900)
    assert_right(package, answer)
    assert len(endpoint.requests) > 5
    assert all(len(json.dumps(r.body, separators=(",", ":"))) <= 900 for r in endpoint.requests)


def test_a_raw_row_that_is_too_large_costs_no_other_row(package: Package) -> None:
    folder, manifest = package
    rows = some_rows(5)
    rows[3] = rows[3] | {"clicks": [3] * 1_000}
    with faulty_endpoint(raw_predictor(folder, manifest)) as endpoint:
        handler = handler_for(
            endpoint.predict_url, folder, manifest, prepare_at="server", bytes=1_000
        )
        model = handler.load_model()
        (answer,) = handler.run_inference([validated(folder, manifest, rows)], model)
        model.client.close()
    errors = [error and error["reason"] for error in answer["error"].to_pylist()]
    assert errors == [None, None, None, "too_large", None]


def way(
    url: str,
    package: Package,
    prepare_at: Any = "auto",
    *,
    retry_seconds: float = 0.2,
    **flags: Any,
) -> tuple[Way, list[VertexEndpointHandler]]:
    """Return the way to an endpoint, and the handlers that sent test rows."""
    folder, manifest = package
    made: list[VertexEndpointHandler] = []

    def make(chosen: Way) -> VertexEndpointHandler:
        handler = handler_for(
            url,
            folder,
            manifest,
            prepare_at=chosen.place,
            parameters=chosen.parameters,
            instance_format=flags.get("instance_format"),
            retry_seconds=retry_seconds,
        )
        made.append(handler)
        return handler

    options = EndpointOptions(endpoint_url=url, prepare_at=prepare_at, **flags)
    return find_way(options, manifest, make), made


# A server on a busy machine may take longer to respond than an endpoint that fails has.
way_to_server = functools.partial(way, retry_seconds=30)


def test_the_own_server_prepares_rows_unless_the_worker_is_asked_to(
    package: Package, served: Running
) -> None:
    url = served.server.url
    assert way_to_server(url, package)[0] == Way("server", None)
    assert way_to_server(url, package, "server")[0] == Way("server", None)
    assert way_to_server(url, package, "worker")[0] == Way("worker", '{"prepared":true}')
    found = way_to_server(url, package, "worker", endpoint_parameters='{"outputs":"all"}')[0]
    assert json.loads(found.parameters or "") == {"outputs": "all", "prepared": True}


def test_the_worker_prepares_rows_for_a_server_with_other_steps(
    package: Package, served: Running, tmp_path: Path
) -> None:
    columns = {**package[1].columns, "limit": "int64"}
    changed = write_raw_package(tmp_path / "model", columns=columns)
    assert preparation_digest(changed) != preparation_digest(package[1])
    other = (tmp_path / "model", changed)
    assert way_to_server(served.server.url, other)[0] == Way("worker", '{"prepared":true}')
    with pytest.raises(EndpointError, match="prepares rows by other steps than the package"):
        way_to_server(served.server.url, other, "server")


def test_the_worker_prepares_rows_for_a_server_that_runs_the_model_only(package: Package) -> None:
    with faulty_endpoint(predict_tensors) as endpoint:
        assert way(endpoint.predict_url, package)[0] == Way("worker", None)
        assert way(endpoint.predict_url, package, "worker")[0] == Way("worker", None)


def refuse_tensors(request: Request) -> Fault | None:
    return refusal(400, "dense is unknown") if "dense" in request.instances[0] else None


@pytest.mark.parametrize("header", ["kept", "lost"])
@pytest.mark.slow
def test_a_server_that_returns_only_the_score_is_asked_for_what_is_needed(
    package: Package, monkeypatch: pytest.MonkeyPatch, header: str
) -> None:
    if header == "lost":
        # As behind Vertex AI, which does not pass on headers.
        monkeypatch.setattr("serving.service.PREPARATION_HEADER", "X-Lost")
    outputs = {"outputs": ["logits"]}
    with running(package[0]) as server:
        url = server.server.url
        for prepare_at in ("auto", "server"):
            found, _ = way_to_server(url, package, prepare_at)
            assert found.place == "server"
            assert json.loads(found.parameters or "") == outputs
        if header == "kept":
            found, _ = way_to_server(url, package, "worker")
            assert found.place == "worker"
            assert json.loads(found.parameters or "") == outputs | {"prepared": True}
        # What the user names is sent as it is.
        with pytest.raises(EndpointError, match="expected each prediction to have 'logits'"):
            way(url, package, "server", endpoint_parameters='{"outputs":["label"]}')


def test_an_endpoint_that_has_no_more_outputs_is_reported_as_before(package: Package) -> None:
    def score_only(instances: list[Any]) -> list[Any]:
        return [{"anomaly_score": 0.5} for _ in instances]

    with faulty_endpoint(score_only) as endpoint:
        with pytest.raises(EndpointError, match=r"expected each .*'logits', got one with 'anomaly"):
            way(endpoint.predict_url, package, "worker")
        assert [r.body.get("parameters") for r in endpoint.requests][-1] == {"outputs": ["logits"]}


def refuse_columns(request: Request) -> Fault | None:
    return refusal(400, "amount is unknown") if "amount" in request.instances[0] else None


def test_a_server_whose_headers_are_lost_prepares_rows_if_it_answers_a_raw_row(
    package: Package,
) -> None:
    with faulty_endpoint(raw_predictor(*package), refuse_tensors) as endpoint:
        assert way(endpoint.predict_url, package)[0] == Way("server", None)
        assert [len(r.instances) for r in endpoint.requests] == [1, 1]
        with pytest.raises(EndpointError, match="400 Bad Request: dense is unknown"):
            way(endpoint.predict_url, package, "worker")


def crash_on_columns(request: Request) -> Fault | None:
    return SERVER_ERROR if "amount" in request.instances[0] else None


@pytest.mark.parametrize("columns", [refuse_columns, crash_on_columns])
def test_an_endpoint_that_answers_neither_way_is_reported_in_one_line(
    package: Package, columns: Faults
) -> None:
    def neither(request: Request) -> Fault | None:
        return refuse_tensors(request) or columns(request)

    with (
        faulty_endpoint(predict_tensors, neither) as endpoint,
        pytest.raises(EndpointError) as raised,
    ):
        way(endpoint.predict_url, package)
    message = str(raised.value)
    assert "does not answer like model raw 1: 400 Bad Request: dense is unknown" in message
    assert "check --prepare_at and --instance_format" in message
    assert "\n" not in message


def test_a_server_that_cannot_prepare_rows_is_reported_in_one_line(package: Package) -> None:
    with (
        faulty_endpoint(predict_tensors, refuse_columns) as endpoint,
        pytest.raises(EndpointError) as raised,
    ):
        way(endpoint.predict_url, package, "server")
    assert str(raised.value) == (
        f"endpoint {endpoint.predict_url} does not prepare rows as model raw 1 needs it: 400 Bad "
        "Request: amount is unknown; use --prepare_at worker, or deploy the package with "
        "Millrace's server"
    )


def test_a_server_that_prepares_rows_wrongly_is_not_used(package: Package) -> None:
    def shifted(instances: list[Any]) -> list[Any]:
        return raw_predictor(*package)([one | {"amount": 7.5} for one in instances])

    with faulty_endpoint(shifted, refuse_tensors) as endpoint:
        with pytest.raises(EndpointError, match="dense is unknown"):
            way(endpoint.predict_url, package)
        with pytest.raises(EndpointError, match="output 'logits' of a known-good row: expected"):
            way(endpoint.predict_url, package, "server")


def test_without_evidence_the_user_has_to_choose(package: Package, tmp_path: Path) -> None:
    """An input has the name of its column, and there are no known-good rows."""
    inputs = [
        {"name": "amount", "dtype": "float32", "from": [[{"column": "amount"}, {"step": "log1p"}]]},
        {"name": "limit", "dtype": "float32", "from": [[{"column": "limit"}]]},
    ]
    columns = {"amount": "float64", "limit": "float64"}
    unclear = write_raw_package(tmp_path / "model", inputs=inputs, columns=columns)
    answer = [{"logits": [0.0, 0.0, 0.0]}]
    with faulty_endpoint(lambda instances: answer * len(instances)) as endpoint:
        other = (tmp_path / "model", unclear)
        with pytest.raises(EndpointError, match="add --prepare_at worker or --prepare_at server"):
            way(endpoint.predict_url, other)
        for place in PLACES:
            assert way(endpoint.predict_url, other, place)[0] == Way(place, None)  # type: ignore[arg-type]


def test_flags_that_do_not_fit_are_refused(package: Package, make_manifest: Any) -> None:
    with pytest.raises(UsageError, match="add --prepare_at worker or --prepare_at server"):
        way("http://nowhere.invalid", package, skip_endpoint_check=True)
    assert way("http://nowhere.invalid", package, "server", skip_endpoint_check=True)[0] == Way(
        "server", None
    )
    with pytest.raises(UsageError, match="--prepare_at has no effect, because model tiny has no"):
        way("http://nowhere.invalid", (package[0], make_manifest()), "server")
    with pytest.raises(UsageError, match="prepare_at must be worker or server, got auto"):
        handler_for("http://nowhere.invalid", *package, prepare_at="auto")
    with pytest.raises(UsageError, match="model tiny has no steps that prepare rows"):
        handler_for("http://nowhere.invalid", package[0], make_manifest(), prepare_at="server")


def test_a_row_is_made_up_if_there_are_no_known_good_rows(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    manifest = write_raw_package(folder)
    steps = PackagedSteps(manifest, str(folder)).load()
    row = json.loads(known_raw(manifest, None, steps).texts[0])
    assert row.keys() == set(manifest.features)
    assert row["kind"] == KINDS[0]
    _, refused = steps.tensors([row])
    assert not refused
    strict = write_raw_package(
        folder,
        inputs=[
            {
                "name": "dense",
                "dtype": "float32",
                "from": [[{"column": "kind"}, {"step": "cast", "to": "float64"}]],
            }
        ],
        columns={"kind": "string"},
    )
    with pytest.raises(ContractBroken, match="no known-good rows, and its steps refuse a test row"):
        known_raw(strict, None, PackagedSteps(strict, str(folder)).load())


def test_raw_rows_of_a_stream_are_sent_raw(package: Package) -> None:
    folder, manifest = package
    with faulty_endpoint(raw_predictor(folder, manifest)) as endpoint:
        handler = handler_for(endpoint.predict_url, folder, manifest, prepare_at="server")
        model = handler.load_model()
        (answer,) = handler.run_inference([validated(folder, manifest, some_rows(40))], model)
        model.client.close()
    assert_right(package, answer)
    assert set(endpoint.requests[0].instances[0]) == set(manifest.features)


def test_the_server_says_that_it_prepares_rows(package: Package, served: Running) -> None:
    digest = preparation_digest(package[1])
    model = served.client.get("/health").json["model"]
    assert (model["schema_version"], model["prepares"], model["preparation"]) == (2, True, digest)
    good = served.client.predict([{k: v for k, v in ROWS[0].items() if k != "id"}])
    bad = served.client.predict([[1.0]])
    assert (good.status, bad.status) == (200, 400)
    for answer in (good, bad, served.client.get("/health")):
        assert answer.headers[PREPARATION_HEADER.lower()] == digest
        assert answer.headers[DIGEST_HEADER.lower()] == package[1].sha256


def test_the_server_refuses_rows_for_the_reasons_of_a_batch(served: Running) -> None:
    rows = [{k: v for k, v in row.items() if k != "id"} for row in ROWS]
    without = {k: v for k, v in rows[0].items() if k != "kind"}
    wrong: list[dict[str, Any]] = [
        {"limit": [1]},
        {"at": 5},
        {"clicks": 3},
        {"clicks": [1.5]},
        {"kind": {}},
        {"at": None},
    ]
    extra = [without, rows[0] | {"amounts": 1.0}, [1.0, 2.0], *(rows[0] | one for one in wrong)]
    error = served.client.predict([*rows, *extra]).error
    got = {one["index"]: one["reason"] for one in error["instances"]}
    of_rows = {i: FAULTS[row["id"]][0] for i, row in enumerate(ROWS) if row["id"] in FAULTS}
    of_extra = ["missing_feature", "unknown_feature", "not_an_object", *["wrong_type"] * 5, "null"]
    assert got == of_rows | {len(rows) + i: reason for i, reason in enumerate(of_extra)}
    (unknown,) = (one for one in error["instances"] if one["reason"] == "unknown_feature")
    assert unknown["message"] == "unknown feature 'amounts' (did you mean 'amount'?)"
    (listed,) = (one for one in error["instances"] if one["reason"] == "not_an_object")
    assert listed["message"] == (
        "expected an object with features by name, got a list: the model takes raw columns"
    )


def test_the_server_takes_prepared_rows_if_the_request_says_so(
    package: Package, served: Running
) -> None:
    batch = validated(*package, [ROWS[i] for i in GOOD])
    rows = batch["inputs"].to_pylist()
    answer = served.client.predict(rows, prepared=True)
    wanted = expected(*package, [ROWS[i] for i in GOOD]).field("logits").to_pylist()
    got = [row["logits"] for row in answer.json["predictions"]]
    assert_scores(got, wanted, "logits", package[1].tolerance)
    assert served.client.predict(rows).error["instances"][0]["reason"] == "unknown_feature"
    refused = served.client.predict(rows, prepared=1)
    assert refused.error["message"] == "parameters.prepared: expected a boolean, got integer"


def test_rows_have_no_effect_on_each_other_in_a_raw_request() -> None:
    rows = RawRows([b'{"a":1}', b'{"a":2}', b'{"a":3}'])
    assert rows.instances(slice(1, 3)) == b'[{"a":2},{"a":3}]'
    assert rows.take(np.array([2, 0])).texts == [b'{"a":3}', b'{"a":1}']
    assert rows.instances(np.array([2])) == b'[{"a":3}]'
    assert rows.keys() == list(rows.texts)
