"""batch_vertex with a package of steps returns what batch_local returns, wherever they run."""

import json
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from faulty_endpoint import QUICK_FAULTS, at_rate, faulty_endpoint
from raw_endpoint import predict_tensors, some_rows, write_golden_package
from raw_model import FAULTS, ROWS
from same_scores import assert_scores
from serving_client import Running, running

from pipelines.batch_local import COMMAND as LOCAL
from pipelines.batch_vertex import COMMAND
from pipelines.command import main

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
COUNT = 60


def typed_rows() -> pa.Table:
    """Return rows as a table has them: a time is a time, and each fault is one of a value."""
    rows = [row for row in ROWS if row["id"] in ("unknown", "zero")] + some_rows(COUNT)
    rows[3]["at"] = None
    moments = [row["at"] and datetime.fromisoformat(row["at"]) for row in rows]
    columns = {name: [row[name] for row in rows] for name in ("id", "amount", "limit", "clicks")}
    kinds = pa.array([row["kind"] for row in rows]).dictionary_encode()
    return pa.table({**columns, "kind": kinds, "at": pa.array(moments, pa.timestamp("ns", "UTC"))})


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the package, rows as JSON Lines and Parquet, and what batch_local returns."""
    folder = tmp_path_factory.mktemp("raw")
    write_golden_package(folder / "model")
    rows = [*some_rows(COUNT), *(row for row in ROWS if row["id"] in FAULTS)]
    rows.insert(7, {k: v for k, v in rows[0].items() if k != "kind"} | {"id": "missing"})
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pq.write_table(typed_rows(), folder / "rows.parquet")
    for kind in ("jsonl", "parquet"):
        assert main(LOCAL, flags(folder, kind, folder / f"local-{kind}")) == 0
    return folder


@pytest.fixture(scope="module")
def served(place: Path) -> Iterator[Running]:
    with running(place / "model", outputs="all") as server:
        yield server


def flags(place: Path, kind: str, out: Path, **given: Any) -> list[str]:
    values = {
        "input_files": place / f"rows.{kind}",
        "id_column": "id",
        "model": place / "model",
        "output_files": out,
        "output_format": "jsonl",
        "run_id": "r",
    } | given
    return [text for name, value in values.items() for text in (f"--{name}", str(value))]


def records(folder: Path, part: str) -> dict[str, dict[str, Any]]:
    paths = (folder / "r" / part).glob("*.jsonl")
    found = [json.loads(line) for path in paths for line in path.read_text().splitlines()]
    by_id = {one["row_id"]: one for one in found}
    assert len(by_id) == len(found)
    return by_id


def assert_same(got: Path, wanted: Path) -> None:
    """Assert that scores agree within the tolerance, and that decisions and letters are equal."""
    mine, theirs = records(got, "scores"), records(wanted, "scores")
    assert mine.keys() == theirs.keys()
    assert_scores([mine[i]["score"] for i in mine], [theirs[i]["score"] for i in mine])
    names = ("label", "decision")
    for i in mine:
        assert [mine[i][name] for name in names] == [theirs[i][name] for name in names]
    reasons = [
        {i: (one["stage"], one["reason"], one["message"]) for i, one in letters.items()}
        for letters in (records(got, "dead_letters"), records(wanted, "dead_letters"))
    ]
    assert reasons[0] == reasons[1]


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
@pytest.mark.parametrize(
    ("asked", "found"), [("auto", "server"), ("worker", "worker")], ids=["auto", "worker"]
)
@pytest.mark.exhaustive
@pytest.mark.slow
def test_the_own_server_returns_what_a_model_in_the_worker_returns(
    place: Path, served: Running, tmp_path: Path, kind: str, asked: str, found: str
) -> None:
    before = served.client.metric('millrace_requests_total{status="400"}')
    given = {"endpoint_url": served.server.url, "endpoint_request_rows": 7, "prepare_at": asked}
    assert main(COMMAND, flags(place, kind, tmp_path, **given)) == 0
    assert_same(tmp_path, place / f"local-{kind}")
    report = json.loads((tmp_path / "r" / "report.json").read_text())
    assert report["prepared_at"] == found
    # The test row is refused once as tensors. No bad row costs a request.
    assert served.client.metric('millrace_requests_total{status="400"}') == before + 1


@pytest.mark.slow
def test_the_own_server_needs_no_flags(place: Path, tmp_path: Path) -> None:
    with running(place / "model") as server:
        assert main(COMMAND, flags(place, "jsonl", tmp_path, endpoint_url=server.server.url)) == 0
    assert_same(tmp_path, place / "local-jsonl")


@pytest.mark.slow
def test_a_server_without_steps_returns_what_a_model_in_the_worker_returns(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with faulty_endpoint(predict_tensors, at_rate(0.2, seed=5, kinds=QUICK_FAULTS)) as endpoint:
        given = {"endpoint_url": endpoint.predict_url, "endpoint_request_rows": 5}
        assert main(COMMAND, flags(place, "jsonl", tmp_path, **given)) == 0
    assert_same(tmp_path, place / "local-jsonl")
    assert set(endpoint.requests[-1].instances[0]) == {"dense", "kind", "clicks", "mask"}
    assert "prepared      at the worker" in capsys.readouterr().out
