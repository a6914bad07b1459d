"""Batch commands on Beam's runner Prism: they do what they do in this process, and clean up."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest
from command_line import Result, RunCommand, assert_one_line_error, words
from google.cloud import bigquery
from prism_runner import PRISM, processes_of, processes_with
from same_scores import assert_same_rows
from serving_client import running
from waiting import wait_for_staged, wait_until
from worker_network import Network, worker_network

from common.errors import DigestMismatch
from examples.local_cloud import PROJECT, LocalCloud, free_port
from model_handlers.torch_model import TorchModelHandler
from pipelines import batch_local, batch_vertex
from pipelines.batch import worker_pools
from pipelines.replay import command as replay
from transforms.results import open_result

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
ROWS = 2_000  # of the fixture `example`
RunBoth = Callable[..., tuple[Result, Result]]
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
def run_both(prism: dict[str, str], values: dict[str, Any], run_command: RunCommand) -> RunBoth:
    """A function that runs a command in this process and on Prism, and returns both results.

    The own flags of each run are given in a list.
    """

    def run(
        command: Any, own: Sequence[dict[str, Any]] = ({}, {}), **given: Any
    ) -> tuple[Result, Result]:
        here = run_command(command.COMMAND, values | given | {"run_id": "here"} | own[0])
        there = run_command(command.COMMAND, values | given | prism | own[1])
        return here, there

    return run


@pytest.mark.parametrize("more", [{}, OWN_PROCESS], ids=["threads", "process"])
def test_files_have_the_same_result(
    run_both: RunBoth, example: Path, tmp_path: Path, more: dict[str, str]
) -> None:
    table = pq.read_table(example / "transactions.parquet")
    inputs = tmp_path / "in"
    inputs.mkdir()
    pq.write_table(table[:700], inputs / "a.parquet", row_group_size=100)
    pa_csv.write_csv(table[700:1_400], inputs / "b.csv")
    pa_csv.write_csv(table[1_400:], inputs / "c.csv")
    given = {"input_files": inputs, "output_fields": "encoded"}
    here, there = run_both(batch_local, [{}, more], **given)
    assert [here[0], here[2], there[0], there[2]] == [0, "", 0, ""]
    assert_same_run(tmp_path / "there", tmp_path / "here")
    assert not (tmp_path / ".staging").exists()


def test_an_endpoint_has_the_same_result(run_both: RunBoth, example: Path, tmp_path: Path) -> None:
    with running(example / "model") as served:
        url = f"http://{served.client.address}"
        here, there = run_both(batch_vertex, endpoint_url=url, skip_endpoint_check="true")
    assert [here[0], here[2], there[0], there[2]] == [0, "", 0, ""]
    assert_same_run(tmp_path / "there", tmp_path / "here")


def test_a_replay_has_the_same_result(
    run_command: RunCommand, prism: dict[str, str], values: dict[str, Any], tmp_path: Path
) -> None:
    assert run_command(batch_local.COMMAND, values)[0] == 0
    cured = shutil.copytree(values["model"], tmp_path / "cured")
    manifest = json.loads((cured / "model.json").read_text())
    for spec in manifest["inputs"]:
        spec["impute"] = dict.fromkeys(spec["columns"], "mean")
    (cured / "model.json").write_text(json.dumps(manifest))
    runs = []
    for name, more in (("here", {}), ("there", prism)):
        flags = {
            "input_files": tmp_path / "there/dead_letters",
            "model": cured,
            "output_files": tmp_path / "replays" / name,
        }
        code, _, err = run_command(replay.COMMAND, flags | more)
        assert (code, err) == (0, "")
        (report,) = (tmp_path / "replays" / name).rglob("report.json")
        runs.append(report.parent)
    assert_same_run(runs[1], runs[0])
    assert rows_of(runs[0])
    assert letters_of(runs[0])


@pytest.fixture
def table(emulators: LocalCloud, dataset: str, example: Path) -> str:
    """A table of the local BigQuery with the example's transactions."""
    name, client = f"{dataset}.transactions", emulators.cloud.bigquery()
    config = bigquery.LoadJobConfig(source_format="PARQUET")
    with (example / "transactions.parquet").open("rb") as file:
        client.load_table_from_file(file, name, job_config=config).result()
    return name


@pytest.mark.parametrize("method", ["direct", "export"])
def test_a_table_has_the_same_result(
    run_both: RunBoth,
    emulators: LocalCloud,
    dataset: str,
    table: str,
    method: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for variable, address in emulators.environment.items():
        monkeypatch.setenv(variable, address)

    def read(name: str) -> list[dict[str, Any]]:
        rows = emulators.cloud.bigquery().query(f"SELECT * FROM `{dataset}.{name}`").result()
        found = [dict(row) | dict.fromkeys(("scored_at", "failed_at", "run_id")) for row in rows]
        return sorted(found, key=lambda row: str(row["row_id"]))

    flags = {
        "input_files": None,
        "output_files": None,
        "input_table": table,
        "read_method": method,
        "temp_location": f"gs://bucket/{method}",
        "project": PROJECT,
        "retry_seconds": 20,
    }
    names = f"here_{method}", f"there_{method}"
    results = run_both(
        batch_local,
        [{"output_table": f"{dataset}.{name}"} for name in names],
        **flags,
    )
    assert [(code, err) for code, _, err in results] == [(0, "")] * 2
    here, there = map(read, names)
    assert len(here) == 1_980
    assert_same_rows(there, here)
    here, there = (read(f"{name}_dead_letters") for name in names)
    assert len(here) == 20
    assert there == here
    # Without a folder for results, the reports stay in the temp location.
    kept = emulators.cloud.storage().list_blobs("bucket", prefix=f"{method}/")
    assert {blob.name.rpartition("/")[2] for blob in kept} == {"report.json"}


def refuse(*_: Any) -> NoReturn:
    raise DigestMismatch("model.pt has another digest")


def fill_memory(*_: Any) -> NoReturn:
    raise MemoryError


@pytest.mark.parametrize("fault", ["input", "model", "memory", "limit", "flag"])
def test_a_failing_run_has_the_same_exit_code_and_error_line(
    run_both: RunBoth,
    example: Path,
    tmp_path: Path,
    fault: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given: dict[str, Any] = {}
    if fault == "input":
        (tmp_path / "in").mkdir()
        shutil.copy(example / "transactions.parquet", tmp_path / "in/a.parquet")
        (tmp_path / "in/b.parquet").write_bytes(b"PAR1" + b"x" * 1_000 + b"PAR1")
        given["input_files"] = tmp_path / "in"
    elif fault == "limit":
        given["max_dead_letter_share"] = 0.001
    elif fault == "flag":
        given["id_column"] = "no_column"
    else:
        load = refuse if fault == "model" else fill_memory
        monkeypatch.setattr(TorchModelHandler, "load_model", load)
    here, there = run_both(batch_local, **given)
    assert there[0] == here[0] != 0
    assert there[2].count("\n") == 1
    assert there[2].replace("run_id there", "run_id here").replace("/there/", "/here/") == here[2]


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        ({"job_endpoint": "localhost:{port}", "job_server_timeout": 1}, "no job server answers at"),
        (
            {"environment_type": "EXTERNAL", "environment_config": "localhost:{port}"},
            "no worker pool answers at localhost:",
        ),
    ],
    ids=["job server", "pool"],
)
def test_a_runner_that_cannot_be_reached_is_named_in_one_line(
    values: dict[str, Any],
    prism: dict[str, str],
    run_command: RunCommand,
    tmp_path: Path,
    flags: dict[str, Any],
    line: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(worker_pools, "ANSWER_SECONDS", 1.0)
    given = {name: str(value).format(port=free_port()) for name, value in flags.items()}
    result = run_command(batch_local.COMMAND, values | prism | given)
    assert_one_line_error(result, 1, line, "millrace explain runner")
    assert list(tmp_path.iterdir()) == []


def test_a_prism_that_does_not_exist_is_named_in_one_line(
    values: dict[str, Any], run_command: RunCommand, tmp_path: Path
) -> None:
    flags = {"runner": "PrismRunner", "prism_location": tmp_path / "prism"}
    result = run_command(batch_local.COMMAND, values | flags)
    assert_one_line_error(result, 2, f"--prism_location {tmp_path}/prism does not exist: get Prism")
    assert list(tmp_path.iterdir()) == []


@dataclass
class Machine:
    """A folder in which commands run as processes, with temporary files and a Prism of its own."""

    folder: Path
    values: dict[str, Any]

    def __post_init__(self) -> None:
        self.temp.mkdir()
        self.prism.symlink_to(PRISM)

    @property
    def temp(self) -> Path:
        return self.folder / "temp"

    @property
    def prism(self) -> Path:
        return self.folder / "prism"

    def start(self, **given: Any) -> subprocess.Popen[str]:
        """Start batch_local on Prism."""
        flags = {"runner": "PrismRunner", "prism_location": self.prism}
        return self.run("pipelines.batch_local", *words(self.values | flags | given))

    def run(
        self, module: str, *argv: str, inside: Sequence[str] = (), **given: Any
    ) -> subprocess.Popen[str]:
        """Start a module in the folder, with the Python of the tests first on the PATH.

        Words of `inside` come before the command.
        """
        bin_folder = os.path.dirname(sys.executable)
        own = {"TMPDIR": str(self.temp), "PATH": f"{bin_folder}:{os.environ['PATH']}"}
        settings: dict[str, Any] = {
            "stdout": subprocess.PIPE,
            "stderr": subprocess.PIPE,
            "cwd": self.folder,
            "env": os.environ | own,
        }
        command = [*inside, sys.executable, "-m", module, *argv]
        return subprocess.Popen(command, text=True, **settings | given)

    def wait_for_staged(self, process: subprocess.Popen[str]) -> None:
        wait_for_staged(process, Path(self.values["output_files"]))

    def assert_clean(self) -> None:
        """Check that no process runs on, and that no temporary files are left."""
        assert processes_of(self.prism) == []
        # Workers end when they notice that Prism has ended.
        wait_until(lambda: not self.processes())
        assert list(self.temp.iterdir()) == []

    def processes(self) -> list[int]:
        """Return the ids of the running commands, of Prism and of the workers."""
        return processes_with(f"TMPDIR={self.temp}")


@pytest.fixture
def machine(prism: dict[str, str], values: dict[str, Any], tmp_path: Path) -> Iterator[Machine]:
    made = Machine(tmp_path, values | {"output_files": tmp_path / "out"})
    yield made
    for process in made.processes():
        os.kill(process, signal.SIGKILL)


# How often the file of the example is in one with many rows.
COPIES = 100


@pytest.fixture
def many(example: Path, tmp_path: Path) -> dict[str, Any]:
    """The flags of a run that takes long enough to be interrupted."""
    table = pq.read_table(example / "transactions.parquet")
    pq.write_table(pa.concat_tables([table] * COPIES), tmp_path / "many.parquet")
    return {"input_files": tmp_path / "many.parquet", "batch_rows": 16, "id_column": None}


@pytest.mark.parametrize("more", [{}, OWN_PROCESS], ids=["threads", "process"])
@pytest.mark.parametrize("code", [0, 1])
def test_a_run_leaves_no_process_and_no_temporary_files(
    machine: Machine, code: int, more: dict[str, str]
) -> None:
    (machine.folder / "b.csv").write_text("no,columns\n1,2\n")
    given = {"input_files": f"{machine.values['input_files']},b.csv"} if code else {}
    process = machine.start(**given, **more)
    _, err = process.communicate(timeout=300)
    # A process of workers prints on its own that it cannot measure memory without SciPy.
    lines = [line for line in err.splitlines() if "Resource module" not in line]
    assert (process.returncode, len(lines)) == (code, code), err
    machine.assert_clean()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_the_run_and_cleans_up(
    machine: Machine, many: dict[str, Any], number: int
) -> None:
    process = machine.start(**many)
    machine.wait_for_staged(process)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    written = (process.returncode, out, err.strip())
    assert written == (128 + number, "", "interrupted: nothing was written")
    assert not [path for path in (machine.folder / "out").rglob("*") if path.is_file()]
    machine.assert_clean()


def test_a_killed_runner_is_reported(machine: Machine, many: dict[str, Any]) -> None:
    process = machine.start(**many)
    machine.wait_for_staged(process)
    (runner,) = processes_of(machine.prism)
    os.kill(runner, signal.SIGKILL)
    out, err = process.communicate(timeout=120)
    assert_one_line_error(
        (process.returncode, out, err), 1, "the runner's job server has stopped", "UNAVAILABLE"
    )
    assert not [path for path in (machine.folder / "out").rglob("*") if path.is_file()]
    machine.assert_clean()


def test_a_worker_that_is_killed_ends_the_run_in_one_line(
    machine: Machine, many: dict[str, Any]
) -> None:
    process = machine.start(**many, **OWN_PROCESS)
    machine.wait_for_staged(process)
    (worker,) = {*machine.processes()} - {process.pid, *processes_of(machine.prism)}
    os.kill(worker, signal.SIGKILL)
    out, err = process.communicate(timeout=120)
    result = (process.returncode, out, err)
    assert_one_line_error(result, 1, "a worker of the runner has ended before the job: it was")
    machine.assert_clean()


def test_a_run_takes_as_long_as_it_needs_however_soon_a_job_server_must_answer(
    machine: Machine, many: dict[str, Any]
) -> None:
    process = machine.start(**many | {"batch_rows": 512}, job_server_timeout=1)
    _, err = process.communicate(timeout=300)
    assert (process.returncode, err) == (0, "")


@pytest.mark.parametrize("debug", [False, True])
def test_workers_in_a_process_print_their_tracebacks_only_with_debug(
    machine: Machine, debug: bool
) -> None:
    broken = machine.folder / "z.parquet"
    broken.write_bytes(b"PAR1" + b"x" * 1_000 + b"PAR1")
    files = f"{machine.values['input_files']},{broken}"
    process = machine.start(input_files=files, debug=str(debug).lower(), **OWN_PROCESS)
    out, err = process.communicate(timeout=120)
    if debug:
        assert "Traceback" in err
    else:
        result = (process.returncode, out, err)
        assert_one_line_error(result, 1, "z.parquet is not a readable Parquet file")


def test_the_workers_of_a_killed_command_do_no_harm_to_the_next_attempt(
    machine: Machine, many: dict[str, Any]
) -> None:
    quick = many | {"batch_rows": 256}
    process = machine.start(**quick, **OWN_PROCESS)
    machine.wait_for_staged(process)
    process.kill()
    process.wait()
    again = machine.start(**quick)
    out, err = again.communicate(timeout=300)
    # The workers of the first attempt may have finished it.
    if again.returncode:
        assert_one_line_error((again.returncode, out, err), 1, "has finished first")
    wait_until(lambda: not machine.processes())
    report = json.loads((machine.folder / "out/there/report.json").read_text())
    assert report["balanced"]
    assert report["rows_in"] == COPIES * ROWS
    ids = open_result(str(machine.folder / "out/there")).to_table(["row_id"])["row_id"]
    assert len(ids.unique()) == len(ids) == report["rows_scored"] == COPIES * (ROWS - 20)


@contextmanager
def worker_pool(
    machine: Machine, folder: Path, network: Network | None = None, **given: Any
) -> Iterator[str]:
    """Run Beam's worker pool in a folder, in this or in another network; yield its address."""
    host, port = network.own if network else "localhost", free_port()
    pool = machine.run(
        *("apache_beam.runners.worker.worker_pool_main", f"--service_port={port}"),
        inside=network.inside if network else (),
        cwd=folder,
        **{"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL} | given,
    )
    try:
        wait_until(lambda: is_listening(host, port))
        yield f"{host}:{port}"
    finally:
        pool.send_signal(signal.SIGINT)
        pool.wait()


def is_listening(host: str, port: int) -> bool:
    with closing(socket.socket()) as client:
        return client.connect_ex((host, port)) == 0


def external(pool: str) -> dict[str, str]:
    return {"environment_type": "EXTERNAL", "environment_config": pool}


def test_relative_paths_mean_the_folder_of_the_command(
    machine: Machine, example: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    shutil.copytree(example / "model", machine.folder / "model")
    shutil.copy(example / "transactions.parquet", machine.folder)
    paths = {"input_files": "trans*.parquet", "model": "model", "output_files": "out"}
    with worker_pool(machine, elsewhere) as pool:
        process = machine.start(**paths, **external(pool))
        out, err = process.communicate(timeout=300)
    assert (process.returncode, err) == (0, "")
    assert "out/there/report.json" in out
    assert str(machine.folder) not in out
    assert len(rows_of(machine.folder / "out/there")) == ROWS - 20
    assert list(elsewhere.iterdir()) == []


def test_workers_in_another_network_have_the_same_result(
    machine: Machine, run_command: RunCommand
) -> None:
    here = run_command(batch_local.COMMAND, machine.values | {"run_id": "here"})
    assert here[0] == 0
    port = free_port()
    with (
        worker_network() as network,
        network.forwarding(port),
        worker_pool(machine, machine.folder, network) as pool,
    ):
        process = machine.start(job_port=str(port), **external(pool))
        _, err = process.communicate(timeout=300)
        assert (process.returncode, err) == (0, "")
    folder = Path(machine.values["output_files"])
    assert_same_run(folder / "there", folder / "here")


def python_of(machine: Machine, script: str) -> dict[str, str]:
    """Return an environment in which `python` is a script."""
    folder = machine.folder / "bin"
    folder.mkdir()
    (folder / "python").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "python").chmod(0o755)
    return os.environ | {"PATH": f"{folder}:{os.environ['PATH']}"}


def test_workers_that_lack_the_package_are_reported(machine: Machine) -> None:
    # Without the module `site`, no packages are found but those of this folder.
    packages = sysconfig.get_path("purelib")
    python = python_of(machine, f'PYTHONPATH={packages} exec {sys.executable} -S "$@"')
    with worker_pool(machine, machine.folder, env=python) as pool:
        process = machine.start(**external(pool))
        out, err = process.communicate(timeout=300)
    result = (process.returncode, out, err)
    assert_one_line_error(result, 1, "the workers cannot import '", "millrace explain runner")
    machine.assert_clean()


def test_workers_that_do_not_start_are_reported(
    machine: Machine, run_command: RunCommand, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_pools, "START_SECONDS", 1.0)
    with worker_pool(machine, machine.folder, env=python_of(machine, "exit 1")) as pool:
        flags = {"runner": "PrismRunner", "prism_location": machine.prism, **external(pool)}
        result = run_command(batch_local.COMMAND, machine.values | flags)
    assert_one_line_error(result, 1, "a worker of the pool at localhost:", "did not connect to")
    machine.assert_clean()
