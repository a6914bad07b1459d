"""batch_vertex returns the rows, scores and dead letters of batch_local, even if requests fail."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from faulty_endpoint import (
    HTML,
    NAME,
    QUICK_FAULTS,
    Fault,
    FaultyEndpoint,
    Request,
    at_rate,
    faulty_endpoint,
    refusal,
)
from same_scores import assert_scores
from serving_client import Running, running

from pipelines.batch_local import COMMAND as LOCAL
from pipelines.batch_vertex import COMMAND
from pipelines.command import main

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture(scope="module")
def served(example: Path) -> Iterator[Running]:
    with running(example / "model") as server:
        yield server


@pytest.fixture(scope="module")
def local(example: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of batch_local."""
    folder = tmp_path_factory.mktemp("local")
    assert main(LOCAL, flags(example, folder)) == 0
    return folder / "r"


def flags(example: Path, out: Path, **given: Any) -> list[str]:
    values = {
        "input_files": example / "transactions.parquet",
        "id_column": "transaction_id",
        "model": example / "model",
        "output_files": out,
        "run_id": "r",
    } | given
    return [text for name, value in values.items() for text in (f"--{name}", str(value))]


def scores(folder: Path) -> dict[str, tuple[float, list[float]]]:
    rows = pq.read_table(folder / "scores").to_pylist()
    found = {row["row_id"]: (row["score"], row["encoded"]) for row in rows}
    assert len(found) == len(rows)
    return found


def letters(folder: Path) -> dict[str, tuple[str, str, str]]:
    paths = (folder / "dead_letters").glob("*")
    records = [json.loads(line) for path in paths for line in path.read_text().splitlines()]
    return {r["row_id"]: (r["stage"], r["reason"], r["message"]) for r in records}


def assert_same(got: Path, wanted: Path) -> None:
    """Assert that scores and latent values agree and that dead letters are equal."""
    mine, theirs = scores(got), scores(wanted)
    assert mine.keys() == theirs.keys()
    for part in (0, 1):
        assert_scores([mine[i][part] for i in mine], [theirs[i][part] for i in mine])
    assert letters(got) == letters(wanted)


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    "given",
    [
        {},
        {"instance_format": "named"},
        {"endpoint_request_rows": 1},
        {"endpoint_request_rows": 7},
        {"endpoint_request_rows": 1_000},
    ],
)
@pytest.mark.slow
def test_an_endpoint_returns_what_a_model_in_the_worker_returns(
    example: Path, served: Running, local: Path, tmp_path: Path, given: dict[str, Any]
) -> None:
    url = f"http://{served.client.address}"
    assert main(COMMAND, flags(example, tmp_path, endpoint_url=url, **given)) == 0
    assert_same(tmp_path / "r", local)
    report = json.loads((tmp_path / "r" / "report.json").read_text())
    assert report["pipeline"] == "batch_vertex"


@pytest.fixture(scope="module")
def predict(example: Path) -> Callable[[list[Any]], list[Any]]:
    """A function that predicts as the reference's container does, with torch only."""
    manifest = json.loads((example / "model" / "model.json").read_text())
    module, score = torch.jit.load(example / "model" / "model.pt"), manifest["score_output"]

    def predict(instances: list[Any]) -> list[Any]:
        with torch.inference_mode():
            answer = module(torch.tensor(instances, dtype=torch.float32))
        pairs = zip(answer[score].tolist(), answer["encoded"].tolist(), strict=True)
        return [{"anomaly_score": one, "encoded": code} for one, code in pairs]

    return predict


@pytest.mark.slow
def test_nothing_is_lost_or_wrong_while_one_request_in_five_fails(
    example: Path, local: Path, tmp_path: Path, predict: Any
) -> None:
    with faulty_endpoint(predict, at_rate(0.2, seed=5, kinds=QUICK_FAULTS)) as endpoint:
        given = {"endpoint": NAME, "endpoint_url": endpoint.url, "endpoint_request_rows": 10}
        assert main(COMMAND, flags(example, tmp_path, skip_endpoint_check="true", **given)) == 0
    assert sum(endpoint.faults.values()) > 20
    assert_same(tmp_path / "r", local)


@pytest.mark.slow
def test_if_the_endpoint_refuses_a_row_only_that_row_is_lost(
    example: Path, local: Path, tmp_path: Path, predict: Any
) -> None:
    good = scores(local).keys()
    rows = pq.read_table(example / "transactions.parquet").to_pylist()
    rows = [row for row in rows if str(row["transaction_id"]) in good]
    worst = sorted(rows, key=lambda row: row["V1"])[-15:]

    def refuse_worst(request: Request) -> Fault | None:
        one_is = any(row[1] > worst[0]["V1"] - 1e-5 for row in request.instances)
        return refusal(400) if one_is else None

    with faulty_endpoint(predict, refuse_worst) as endpoint:
        assert main(COMMAND, flags(example, tmp_path, endpoint_url=endpoint.predict_url)) == 0
    refused = {i for i, letter in letters(tmp_path / "r").items() if letter[0] == "infer"}
    assert refused == {str(row["transaction_id"]) for row in worst}
    assert {letters(tmp_path / "r")[i][1] for i in refused} == {"endpoint_refused"}
    assert scores(tmp_path / "r").keys() == good - refused


@pytest.mark.slow
def test_the_endpoints_own_score_never_stands_for_another_score(
    example: Path,
    served: Running,
    tmp_path: Path,
    predict: Any,
    capsys: pytest.CaptureFixture[str],
) -> None:
    other = {"score_output": "normalized_MAE", "output_fields": "encoded"}
    with faulty_endpoint(predict) as endpoint:
        given = {"endpoint_url": endpoint.predict_url, **other}
        assert main(COMMAND, flags(example, tmp_path / "two", **given)) == 1
    assert "expected each prediction to have 'normalized_MAE'" in capsys.readouterr().err
    url = f"http://{served.client.address}"
    whole = {"endpoint_url": url, "endpoint_parameters": '{"outputs":"all"}', **other}
    assert main(COMMAND, flags(example, tmp_path / "all", **whole)) == 0
    assert main(LOCAL, flags(example, tmp_path / "local", **other)) == 0
    assert_same(tmp_path / "all" / "r", tmp_path / "local" / "r")


@pytest.mark.slow
def test_repeated_rows_are_requested_once(
    example: Path, local: Path, tmp_path: Path, predict: Any
) -> None:
    source = example / "transactions.parquet"
    again = pq.read_table(source)
    names = [f"again-{i}" for i in range(again.num_rows)]
    column = again.schema.get_field_index("transaction_id")
    pq.write_table(again.set_column(column, "transaction_id", [names]), tmp_path / "2.parquet")
    with faulty_endpoint(predict) as endpoint:
        given = {"endpoint_url": endpoint.predict_url, "endpoint_cache_rows": 100_000}
        command = flags(example, tmp_path, direct_num_workers=1, batch_rows=500, **given)
        command[1:2] = [str(source), str(tmp_path / "2.parquet")]
        assert main(COMMAND, command) == 0
    assert len(scores(tmp_path / "r")) == 2 * len(scores(local))
    # Rows of the second file are cached, except those whose first request was still in flight.
    assert endpoint.rows[200] < 1.5 * len(scores(local))


UNUSABLE = [
    (refusal(400, "wrong number of features"), "does not answer like model pytorch-autoencoder"),
    (refusal(401), "no token was sent"),
    (refusal(403), "roles/aiplatform.user"),
    (refusal(404), "check --endpoint"),
    (HTML, "expected JSON, got an HTML page"),
    (refusal(503), "the last error was: 503 Service Unavailable"),
]


# Without the check, the pipeline itself receives the response. It treats three kinds differently:
# the endpoint refuses the rows, it refuses the caller, or it stays down.
@pytest.mark.parametrize(
    ("skip", "fault", "message"),
    [
        *[("false", *case) for case in UNUSABLE],
        *[("true", *case) for case in (UNUSABLE[0], UNUSABLE[2], UNUSABLE[5])],
    ],
    ids=lambda value: value.name if isinstance(value, Fault) else "",
)
@pytest.mark.exhaustive
def test_an_unusable_endpoint_loses_no_row_and_is_reported_in_one_line(
    example: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    predict: Any,
    fault: Fault,
    message: str,
    skip: str,
) -> None:
    def always(_: Request) -> Fault:
        return fault

    def run(endpoint: FaultyEndpoint) -> int:
        given = {"endpoint_url": endpoint.predict_url, "skip_endpoint_check": skip}
        return main(COMMAND, flags(example, tmp_path, retry_seconds=1, **given))

    with faulty_endpoint(predict, always) as endpoint:
        assert run(endpoint) == 1
    errors = capsys.readouterr().err.strip().splitlines()
    assert len(errors) == 1
    what = "a request to endpoint" if fault.status == 503 else "endpoint"
    assert errors[0].startswith(f"error: {what} ")
    assert message in errors[0]
    assert not list(tmp_path.glob("r/*"))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "missing --endpoint (or --endpoint_url)"),
        ({"endpoint": "fraud"}, "pass --endpoint_project and --endpoint_location"),
        ({"endpoint": "a/b"}, "expected projects/PROJECT/"),
        (
            {"endpoint_url": "localhost:80"},
            "--endpoint_url must begin with http:// or https://, got",
        ),
        ({"endpoint_url": "http://h", "endpoint_parameters": "[]"}, "must be a JSON object"),
        (
            {"endpoint_url": "http://h", "device": "cpu"},
            "this pipeline does not take --device, which belongs to other pipelines",
        ),
        (
            {"endpoint_url": "http://h", "endpoint_concurrency": "0"},
            "--endpoint_concurrency must be at least 1, got 0",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else "",
)
def test_a_wrong_flag_is_reported_before_any_request(
    example: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    given: dict[str, Any],
    message: str,
) -> None:
    assert main(COMMAND, flags(example, tmp_path, **given)) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert message in error
