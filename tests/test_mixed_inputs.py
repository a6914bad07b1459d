"""Packages whose rows are sent raw although some inputs have no steps, or the names of columns."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from faulty_endpoint import Fault, Request, faulty_endpoint, refusal
from raw_endpoint import handler_for
from same_scores import assert_scores
from serving_client import Running, running
from test_packaging import script
from torch import Tensor, nn

from common.errors import UsageError
from millrace import column, package
from model_handlers.manifests.manifest import Manifest
from model_handlers.manifests.model_json import write_manifest
from model_handlers.package import read_manifest
from pipelines.batch_local import COMMAND as LOCAL
from pipelines.batch_vertex import COMMAND as VERTEX
from pipelines.command import main
from pipelines.endpoint_check import Way, find_way
from pipelines.options import EndpointOptions

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]
COUNT = 30


class Mixed(nn.Module):
    """One number from a tensor that steps make, two columns, a list column and a number."""

    def forward(self, dense: Tensor, pair: Tensor, series: Tensor, flag: Tensor) -> Tensor:
        return dense.sum(1) + 2 * pair[:, 0] - pair[:, 1] + series.prod(1) + 5 * flag


class Pair(nn.Module):
    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return a + 10 * b


def mixed_rows() -> list[dict[str, Any]]:
    random = np.random.default_rng(0)
    return [
        {
            "id": f"r{i}",
            "kind": ["a", "b"][i % 2],
            "amount": float(random.uniform(1, 50)),
            "x": i / 4,
            "y": float(i),
            "s": random.uniform(0.5, 2, 3).tolist(),
            "z": i % 3,
        }
        for i in range(COUNT)
    ]


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a package, a copy without known-good rows, rows, and what a batch returns."""
    folder = tmp_path_factory.mktemp("mixed")
    (folder / "m.pt").write_bytes(script(Mixed()))
    rows = mixed_rows()
    inputs: Any = {
        "dense": [column("kind").vocabulary(), column("amount").log1p()],
        "pair": ["x", "y"],
        "series": "s",
        "flag": "z",
    }
    package(folder / "m.pt", folder / "model", sample=pa.Table.from_pylist(rows), inputs=inputs)
    manifest = read_manifest(str(folder / "model"))
    assert [bool(spec.chains) for spec in manifest.inputs] == [True, False, False, False]
    (folder / "bare").mkdir()
    for path in (folder / "model").iterdir():
        (folder / "bare" / path.name).write_bytes(path.read_bytes())
    (folder / "bare" / "model.json").write_text(write_manifest(replace(manifest, golden=None)))
    # A fault in a column that steps read, and one in a column that none reads.
    rows += [rows[0] | {"id": "unknown", "kind": "c"}, rows[0] | {"id": "text", "y": "much"}]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main(LOCAL, flags(folder, "model", folder / "local")) == 0
    return folder


def flags(folder: Path, model: str, out: Path, **given: Any) -> list[str]:
    values = {
        "input_files": folder / "rows.jsonl",
        "id_column": "id",
        "model": folder / model,
        "output_files": out,
        "output_format": "jsonl",
        "run_id": "r",
    } | given
    return [text for name, value in values.items() for text in (f"--{name}", str(value))]


def found(out: Path, part: str, member: str) -> dict[str, Any]:
    lines = [line for path in (out / "r" / part).glob("*") for line in path.open()]
    return {one["row_id"]: one[member] for one in map(json.loads, lines)}


@pytest.mark.parametrize("model", ["model", "bare"])
@pytest.mark.slow
def test_columns_without_steps_reach_a_server_that_prepares_rows(
    mixed: Path, tmp_path: Path, model: str
) -> None:
    with running(mixed / model, outputs="all") as served:
        given = {"endpoint_url": served.server.url, "prepare_at": "server"}
        assert main(VERTEX, flags(mixed, model, tmp_path, **given)) == 0
    wanted = found(mixed / "local", "scores", "score")
    got = found(tmp_path, "scores", "score")
    assert len(wanted) == COUNT
    assert got.keys() == wanted.keys()
    assert_scores(list(got.values()), [wanted[name] for name in got])
    letters = found(tmp_path, "dead_letters", "message")
    assert letters == found(mixed / "local", "dead_letters", "message")
    assert letters.keys() == {"unknown", "text"}


# The inputs have the names of their columns.


@pytest.fixture(scope="module")
def alike(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Manifest]:
    folder = tmp_path_factory.mktemp("alike")
    (folder / "m.pt").write_bytes(script(Pair()))
    table = pa.table({"a": [0.0, 2.0, 3.0], "b": [0.0, 5.0, 9.0]})
    inputs: Any = {name: column(name).fill(0).log1p() for name in "ab"}
    package(folder / "m.pt", folder / "model", sample=table, inputs=inputs)
    return folder / "model", read_manifest(str(folder / "model"))


@pytest.fixture
def silent(alike: tuple[Path, Manifest], monkeypatch: pytest.MonkeyPatch) -> Iterator[Running]:
    """Millrace's server whose header is lost on the way, as behind Vertex AI."""
    monkeypatch.setattr("serving.service.PREPARATION_HEADER", "X-Lost")
    with running(alike[0], outputs="all") as server:
        yield server


def way(url: str, package: tuple[Path, Manifest], prepare_at: Any = "auto", **given: Any) -> Way:
    """Return the way to an endpoint. Workers of streams have no known-good rows."""

    def make(chosen: Way) -> Any:
        return handler_for(
            url, *package, prepare_at=chosen.place, parameters=chosen.parameters, retry_seconds=0.2
        )

    options = EndpointOptions(endpoint_url=url, prepare_at=prepare_at, **given)
    return find_way(options, package[1], make)


@pytest.mark.parametrize("prepare_at", ["auto", "worker"])
def test_prepared_rows_are_not_prepared_again_if_the_header_is_lost(
    alike: tuple[Path, Manifest], silent: Running, prepare_at: str
) -> None:
    """The first known-good row is 0, to which the steps give 0 however often they run."""
    assert way(silent.server.url, alike, prepare_at) == Way("worker", '{"prepared":true}')
    assert way(silent.server.url, alike, "server") == Way("server", None)


def test_prepared_rows_that_could_be_taken_for_raw_ones_are_not_sent_unchecked(
    alike: tuple[Path, Manifest],
) -> None:
    url = "http://nowhere.invalid"
    with pytest.raises(UsageError, match="leave out --skip_endpoint_check, or add --endpoint_par"):
        way(url, alike, "worker", skip_endpoint_check=True)
    said = '{"prepared": true}'
    found = way(url, alike, "worker", skip_endpoint_check=True, endpoint_parameters=said)
    assert found == Way("worker", said)
    for place in ("auto", "server"):
        with pytest.raises(UsageError, match="takes rows as prepared: add --prepare_at worker"):
            way(url, alike, place, endpoint_parameters=said)


@pytest.mark.parametrize("refuses", [True, False])
def test_other_servers_do_not_get_the_parameter(
    alike: tuple[Path, Manifest], refuses: bool
) -> None:
    def predict(instances: list[Any]) -> list[Any]:
        rows = [torch.tensor([float(one[name]) for one in instances]) for name in "ab"]
        return [{"output": value} for value in Pair()(*rows).tolist()]

    def refuse(request: Request) -> Fault | None:
        return refusal(400, "unknown") if refuses and "parameters" in request.body else None

    with faulty_endpoint(predict, refuse) as endpoint:
        assert way(endpoint.predict_url, alike, "worker") == Way("worker", None)
        assert way(endpoint.predict_url, alike) == Way("worker", None)
