"""The examples with raw columns: a thousand rows, faulty ones among them, give the same results in
a batch, a stream, behind an endpoint that prepares or does not, and from a server."""

import json
import math
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
import pyarrow.parquet as pq
import pytest
from command_line import RunCommand, words
from pubsub_mailbox import Mailbox
from serving_client import Running, running

from common.plain_json import to_json
from examples.churn.build import build as build_churn
from examples.local_cloud import LocalCloud
from examples.sensors.build import build as build_sensors
from model_handlers.manifests.tolerance import ATOL, RTOL
from pipelines.batch_local import COMMAND as BATCH_LOCAL
from pipelines.batch_vertex import COMMAND as BATCH_VERTEX
from pipelines.command import Command, main
from pipelines.stream_local import COMMAND as STREAM_LOCAL
from pipelines.stream_vertex import COMMAND as STREAM_VERTEX

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
ROWS = 1_000
# The columns of results that differ in every run.
OWN = ("run_id", "scored_at", "row_id", "model_digest")


@dataclass(frozen=True)
class Example:
    """An example: its package, and the rows to score."""

    folder: Path
    file: str
    id_column: str

    @property
    def package(self) -> Path:
        return self.folder / "package"

    @property
    def rows(self) -> dict[str, dict[str, Any]]:
        """The rows by id, as JSON has them."""
        table = pq.read_table(self.folder / self.file).to_pylist()
        return {row[self.id_column]: orjson.loads(to_json(row)) for row in table}


@dataclass
class Results:
    """What became of rows: fields by row id, and the reason and column of dead letters."""

    scored: dict[str, dict[str, Any]] = field(default_factory=dict)
    refused: dict[str, tuple[str, str]] = field(default_factory=dict)


@pytest.fixture(scope="module", params=["churn", "sensors"])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Example:
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "churn":
        build_churn(folder, rows=ROWS, train_rows=2_000, seed=7)
        return Example(folder, "customers.parquet", "customer_id")
    build_sensors(folder, rows=ROWS, train_rows=2_000, seed=7)
    return Example(folder, "windows.parquet", "window_id")


@pytest.fixture(scope="module")
def served(made: Example) -> Iterator[Running]:
    with running(made.package, outputs="all") as server:
        yield server


@pytest.fixture(scope="module")
def batch(made: Example, tmp_path_factory: pytest.TempPathFactory) -> Results:
    """The results of batch_local."""
    out = tmp_path_factory.mktemp("batch")
    assert main(BATCH_LOCAL, words(flags(made, out))) == 0
    return of_batch(out / "r")


def flags(made: Example, out: Path, **given: Any) -> dict[str, Any]:
    own = {
        "input_files": made.folder / made.file,
        "model": made.package,
        "id_column": made.id_column,
        "output_files": out,
        "run_id": "r",
        "direct_num_workers": 1,
    }
    return own | given


def results(rows: list[dict[str, Any]], letters: list[dict[str, Any]]) -> Results:
    found = Results()
    for row in rows:
        assert row["row_id"] not in found.scored
        found.scored[row["row_id"]] = {k: v for k, v in row.items() if k not in OWN}
    for letter in letters:
        column = json.loads(letter["attributes"])["column"]
        found.refused[letter["row_id"]] = (letter["reason"], column)
    return found


def of_batch(folder: Path) -> Results:
    paths = (folder / "dead_letters").glob("*.jsonl")
    letters = [json.loads(line) for path in paths for line in path.read_text().splitlines()]
    return results(pq.read_table(folder / "scores").to_pylist(), letters)


def assert_agree(got: Results, wanted: Results, names: Mapping[str, Any] | None = None) -> None:
    """Assert that results agree: numbers within the tolerance, everything else exactly."""
    assert got.refused == wanted.refused
    assert got.scored.keys() == wanted.scored.keys()
    for row_id, row in wanted.scored.items():
        for name in names or row:
            assert same(got.scored[row_id][name], row[name]), (row_id, name)


def same(got: Any, wanted: Any) -> bool:
    if isinstance(wanted, list):
        return len(got) == len(wanted) and all(map(same, got, wanted))
    if isinstance(wanted, dict):
        return got.keys() == wanted.keys() and all(same(got[k], v) for k, v in wanted.items())
    if isinstance(wanted, float):
        return math.isclose(got, wanted, rel_tol=RTOL, abs_tol=ATOL)
    return bool(got == wanted)


@pytest.mark.exhaustive
def test_a_batch_scores_all_rows_but_the_faulty_ones(made: Example, batch: Results) -> None:
    assert batch.scored.keys() | batch.refused.keys() == made.rows.keys()
    assert 0 < len(batch.refused) < ROWS // 20
    assert len({row["decision"] for row in batch.scored.values()}) == 3
    reasons = {reason for reason, _ in batch.refused.values()}
    assert reasons <= {"unknown_value", "out_of_range", "null"}
    accuracy = json.loads((made.folder / "accuracy.json").read_text())
    if "accuracy" in accuracy:
        assert accuracy["accuracy"] > accuracy["accuracy_of_guessing"]
    else:
        guessing = accuracy["mean_absolute_error_of_guessing"]
        assert accuracy["mean_absolute_error"] < 0.3 * guessing


@pytest.mark.parametrize("prepare_at", ["auto", "worker", "server"])
@pytest.mark.slow
def test_an_endpoint_gives_the_results_of_the_batch(
    made: Example,
    served: Running,
    batch: Results,
    run_command: RunCommand,
    tmp_path: Path,
    prepare_at: str,
) -> None:
    given = flags(made, tmp_path, endpoint_url=served.server.url, prepare_at=prepare_at)
    code, _, err = run_command(BATCH_VERTEX, given)
    assert (code, err) == (0, "")
    report = json.loads((tmp_path / "r/report.json").read_text())
    assert report["prepared_at"] == ("worker" if prepare_at == "worker" else "server")
    assert_agree(of_batch(tmp_path / "r"), batch)


@pytest.mark.slow
def test_a_server_gives_the_results_of_the_batch(
    made: Example, served: Running, batch: Results
) -> None:
    rows = made.rows
    # A server refuses columns that the model does not read.
    columns = json.loads((made.package / "model.json").read_text())["columns"]
    good = [{name: rows[row_id][name] for name in columns} for row_id in batch.scored]
    fields = [name for name in next(iter(batch.scored.values())) if not name.startswith("model")]
    names = [name for name in fields if name != "score"]
    answers: list[Any] = []
    for start in range(0, len(good), 100):
        part = good[start : start + 100]
        answers += served.client.predict(part, outputs=names).json["predictions"]
    got = Results(dict(zip(batch.scored, answers, strict=True)), batch.refused)
    assert_agree(got, batch, dict.fromkeys(names))
    for row_id, (reason, _) in batch.refused.items():
        row = {name: rows[row_id][name] for name in columns}
        (refused,) = served.client.predict([good[0], row]).error["instances"]
        assert (refused["index"], refused["reason"]) == (1, reason)


def stream(
    made: Example, cloud: LocalCloud, folder: Path, run: Callable[[list[str]], int], **given: Any
) -> Results:
    """Publish all rows, run a stream until it is empty, and return its results."""
    box = Mailbox(cloud.cloud, f"raw-{uuid.uuid4().hex[:12]}").create()
    box.publish([json.dumps(row).encode() for row in made.rows.values()])
    own = {
        "input_subscription": box.subscription,
        "model": made.package,
        "id_column": made.id_column,
        "output_files": folder / "scores",
        "dead_letter_files": folder / "dead_letters",
        "stop_after_seconds": 2,
        "retry_seconds": 20,
    }
    assert run(words(own | given)) == 0
    paths = sorted((folder / "scores").rglob("*.parquet"))
    rows = [row for path in paths for row in pq.read_table(path).to_pylist()]
    lines = [p.read_text() for p in sorted((folder / "dead_letters").rglob("*.jsonl"))]
    letters = [json.loads(line) for text in lines for line in text.splitlines()]
    return results(rows, letters)


@pytest.mark.parametrize("prepare_at", [None, "worker", "server"])
def test_a_stream_gives_the_results_of_the_batch(
    made: Example,
    served: Running,
    batch: Results,
    stream_emulators: LocalCloud,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    prepare_at: str | None,
) -> None:
    for variable, address in stream_emulators.environment.items():
        monkeypatch.setenv(variable, address)
    command: Command = STREAM_LOCAL if prepare_at is None else STREAM_VERTEX
    endpoint = {"endpoint_url": served.server.url, "prepare_at": prepare_at}
    given = {} if prepare_at is None else endpoint
    got = stream(made, stream_emulators, tmp_path, lambda argv: main(command, argv), **given)
    names = dict.fromkeys(next(iter(batch.scored.values())))
    assert_agree(got, batch, names)
