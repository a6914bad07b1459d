"""The SDK harness as a separate process, as on Dataflow: it receives all that a step needs."""

import json
from pathlib import Path
from typing import Any, NoReturn

import pyarrow.parquet as pq
import pytest
from command_line import words
from same_scores import assert_same_rows
from serving_client import running

from model_handlers.endpoints.handler import VertexEndpointHandler
from model_handlers.torch_model import TorchModelHandler
from pipelines import batch_local, batch_vertex
from pipelines.command import Command, main

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def score(command: Command, example: Path, out: Path, **given: Any) -> None:
    flags = {
        "input_files": example / "transactions.parquet",
        "model": example / "model",
        "output_files": out,
        "run_id": "r",
        "direct_num_workers": 1,
    } | given
    assert main(command, words(flags)) == 0


def rows(out: Path) -> list[dict[str, Any]]:
    found = pq.read_table(out / "r/scores").drop_columns(["scored_at"]).to_pylist()
    return sorted(found, key=lambda row: row["row_id"])


def letters(out: Path) -> list[dict[str, Any]]:
    lines = [t for p in (out / "r/dead_letters").iterdir() for t in p.read_text().splitlines()]
    found = [json.loads(line) | {"failed_at": None} for line in lines]
    return sorted(found, key=lambda letter: letter["row_id"])


def not_here(_: Any) -> NoReturn:
    raise AssertionError("the model was loaded in the process that started the run")


@pytest.mark.parametrize(
    "command", [batch_local.COMMAND, batch_vertex.COMMAND], ids=lambda c: c.name
)
def test_separate_worker_processes_return_what_this_process_returns(
    command: Command,
    example: Path,
    tmp_path: Path,
    multi_processing: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with running(example / "model") as served:
        url = f"http://{served.client.address}"
        vertex = {"endpoint_url": url, "skip_endpoint_check": "true"}
        given = vertex if command is batch_vertex.COMMAND else {}
        score(command, example, tmp_path / "here", **given)
        for handler in (TorchModelHandler, VertexEndpointHandler):
            monkeypatch.setattr(handler, "load_model", not_here)
        score(command, example, tmp_path / "there", **given, **multi_processing)
    assert len(rows(tmp_path / "there")) == 1_980
    assert_same_rows(rows(tmp_path / "there"), rows(tmp_path / "here"))
    assert letters(tmp_path / "there") == letters(tmp_path / "here")
