"""Batch commands on Beam's runner Prism: they do what they do in this process, and clean up."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest
from command_line import RunCommand, assert_one_line_error, words
from prism_runner import PRISM, processes_of
from same_scores import assert_same_rows
from serving_client import running
from waiting import wait_until

from common.errors import DigestMismatch
from examples.local_cloud import PROJECT, LocalCloud, free_port
from model_handlers.torch_model import TorchModelHandler
from pipelines import batch_local, batch_vertex
from pipelines.replay import command as replay

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
OWN_PROCESS = {"experiments": "use_loopback_process_worker=True"}
# What differs between two runs over the same rows.
OF_A_RUN = {
    *("run_id", "report", "output", "dead_letter_output", "started_at", "finished_at"),
    *("attempt", "files", "replaced"),
}


def rows_of(run: Path) -> list[dict[str, Any]]:
    table = pq.read_table(run / "scores").drop_columns(["scored_at", "run_id"])
    return sorted(table.to_pylist(), key=lambda row: row["row_id"])


def letters_of(run: Path) -> list[dict[str, Any]]:
    files = (run / "dead_letters").glob("*")
    found = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    different = {"failed_at": None, "run_id": None}
    return sorted((letter | different for letter in found), key=lambda letter: letter["row_id"])


def report_of(run: Path) -> dict[str, Any]:
    found = json.loads((run / "report.json").read_text())
    return {name: value for name, value in found.items() if name not in OF_A_RUN}


def assert_same_run(got: Path, expected: Path) -> None:
    """Check that two runs have the same rows, dead letters and reports."""
    assert_same_rows(rows_of(got), rows_of(expected))
    assert letters_of(got) == letters_of(expected)
    mine, theirs = report_of(got), report_of(expected)
    assert mine.pop("scores") == pytest.approx(theirs.pop("scores"), rel=1e-5)
    assert mine == theirs


@pytest.fixture
def values(example: Path, tmp_path: Path) -> dict[str, Any]:
    """The flags of a run of batch_local over the example."""
    return {
        "input_files": example / "transactions.parquet",
        "model": example / "model",
        "output_files": tmp_path,
        "id_column": "transaction_id",
        "output_fields": "encoded,Amount,Class",
        "run_id": "there",
    }


@pytest.fixture
def run_both(
    prism: dict[str, str], values: dict[str, Any], run_command: RunCommand
) -> Callable[..., tuple[Any, Any]]:
    """A function that runs a command in this process and on Prism, and returns both results."""

    def run(command: Any, more: dict[str, str] | None = None, **given: Any) -> tuple[Any, Any]:
        here = run_command(command.COMMAND, values | given | {"run_id": "here"})
        there = run_command(command.COMMAND, values | given | prism | (more or {}))
        return here, there

    return run


@pytest.mark.parametrize("more", [{}, OWN_PROCESS], ids=["threads", "process"])
def test_files_have_the_same_result(
    run_both: Callable[..., Any], example: Path, tmp_path: Path, more: dict[str, str]
) -> None:
    table = pq.read_table(example / "transactions.parquet")
    inputs = tmp_path / "in"
    inputs.mkdir()
    pq.write_table(table[:700], inputs / "a.parquet", row_group_size=100)
    pa_csv.write_csv(table[700:1_400], inputs / "b.csv")
    pa_csv.write_csv(table[1_400:], inputs / "c.csv")
    here, there = run_both(batch_local, more, input_files=inputs)
    assert (here[0], here[2], there[0], there[2]) == (0, "", 0, "")
    assert_same_run(tmp_path / "there", tmp_path / "here")
    assert not (tmp_path / ".staging").exists()


def test_an_endpoint_has_the_same_result(
    run_both: Callable[..., Any], example: Path, tmp_path: Path
) -> None:
    with running(example / "model") as served:
        url = f"http://{served.client.address}"
        here, there = run_both(batch_vertex, endpoint_url=url, skip_endpoint_check="true")
    assert (here[0], here[2], there[0], there[2]) == (0, "", 0, "")
    assert_same_run(tmp_path / "there", tmp_path / "here")


def test_a_replay_has_the_same_result(
    run_command: RunCommand, prism: dict[str, str], values: dict[str, Any], tmp_path: Path
) -> None:
    assert run_command(batch_local.COMMAND, values)[0] == 0
    flags = {name: values[name] for name in ("model", "output_fields")}
    flags |= {"input_files": tmp_path / "there/dead_letters", "max_dead_letter_share": 1}
    found = []
    for more in ({}, prism):
        out = tmp_path / f"out{len(found)}"
        code, _, err = run_command(replay.COMMAND, flags | {"output_files": out} | more)
        assert (code, err.count("\n")) == (1, 1)
        (report,) = out.rglob("report.json")
        found.append((err.replace(str(out), ""), letters_of(report.parent)))
    assert found[0] == found[1]
    assert len(found[0][1]) == 20
