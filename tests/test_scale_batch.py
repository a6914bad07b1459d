"""A scale test of a batch, from the plan to the result: its files, its faults and its errors."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from command_line import assert_one_line_error
from libraries import need_library
from waiting import wait_until

from pipelines.launch import command as launch
from pipelines.options.batch import SinkOptions, SourceOptions
from pipelines.options.flag import parse_flags
from pipelines.options.launch import LaunchOptions
from scale_tests import __main__ as scale_command
from scale_tests.batches import batch, files
from scale_tests.batches.command import RUN, Watched, _interrupt, command_of
from scale_tests.load.batch_plan import Batch
from transforms.files.store import create_file

FAULTY = Path(__file__).parent / "faulty_batch.py"
PLAN = """\
target = "batch"
send_to = "{folder}/data, of a test"
seed = 3

[batch]
flags = ["--model", "{model}", "--direct_num_workers", "1"]
format = "{format}"

[rows]
faulty = 0.05

[[phases]]
kind = "offline"
rows = [500, 2_000]
"""
Test = Callable[..., dict[str, Any]]


@pytest.fixture(autouse=True)
def _libraries() -> None:
    for library in ("hdrh", "psutil", "scipy", "vl_convert"):
        need_library(library)


class Stand:
    """The folder of a test, its plan, and what it printed."""

    def __init__(self, folder: Path, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder, self.model, self.capsys = folder, model, capsys
        self.plan = folder / "plan.toml"
        self.out = folder / "out"
        self.data = folder / "data, of a test"

    def run(self, *changes: tuple[str, str], form: str = "parquet") -> tuple[int, str, str]:
        """Run a plan in which some texts are replaced; return the exit code and the output."""
        text = PLAN.format(folder=self.folder, model=self.model, format=form)
        for old, new in changes:
            assert old in text
            text = text.replace(old, new)
        self.plan.write_text(text)
        code = scale_command.main(["batch", "--plan", str(self.plan), "--output", str(self.out)])
        return (code, *self.capsys.readouterr())

    @property
    def result(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.out / "result.json").read_text())
        return found

    @property
    def level(self) -> dict[str, Any]:
        (found,) = self.result["levels"]
        assert isinstance(found, dict)
        return found


@pytest.fixture
def stand(tmp_path: Path, example: Path, capsys: pytest.CaptureFixture[str]) -> Stand:
    return Stand(tmp_path, example / "model", capsys)


@pytest.fixture
def faulty(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], tuple[int, str, str]]:
    """A function that runs a test with one run of 1,000 rows of a batch that has a fault."""

    def run(fault: str) -> tuple[int, str, str]:
        def command(_: Batch, flags: Any) -> list[str]:
            return [sys.executable, str(FAULTY), fault, *flags]

        monkeypatch.setattr(batch, "command_of", command)
        return stand.run(("rows = [500, 2_000]", "rows = 1_000"))

    return run


@pytest.mark.parametrize("form", ["parquet", "jsonl", "csv"])
def test_every_row_of_a_batch_is_accounted_for(stand: Stand, form: str) -> None:
    stand.data.mkdir()
    (stand.data / "other").write_text("of the user")
    code, out, err = stand.run(form=form)
    assert (code, err) == (0, "")
    result = stand.result
    assert [level["name"] for level in result["levels"]] == [
        "1 offline, 500 rows",
        "1 offline, 2,000 rows",
    ]
    for level in result["levels"]:
        assert level["verdict"] == "passed", level["reasons"]
        accounts = level["accounts"]
        assert accounts["planned"] == level["rows"]
        assert accounts["planned"] == accounts["scored"] + accounts["dead_lettered"]
        assert accounts["dead_lettered"] > 0
        for one in level["runs"]:
            assert one["complete"]
            assert 0 < one["start_seconds"] < one["seconds"]
            assert 0 < one["finish_seconds"] < one["seconds"] - one["start_seconds"] + 1e-3
            assert one["cpu_seconds"] > 0
            assert one["peak_bytes"] > 1e8
            assert one["written_bytes"] > 0
    assert not result["interrupted"]
    assert not result["ended"]
    # The test removes what it wrote, and nothing else.
    assert [path.name for path in stand.data.iterdir()] == ["other"]
    assert pq.read_table(stand.out / "samples.parquet").num_rows == 2
    assert len([*stand.out.glob("phase_*.log")]) == 2
    assert out.splitlines()[-1] == f"done; see {stand.out / 'report.html'}"
    assert len(out.splitlines()) == 3


@pytest.mark.parametrize(
    ("fault", "counts", "reason"),
    [
        ("none", {}, None),
        ("lose", {"lost": 10}, "lost: rows "),
        ("double", {"duplicates": 10}, "duplicated: rows "),
        ("swap", {"wrong": 2}, "scored with a fault: row "),
        ("foreign", {"strays": 2}, "2 results belong to no row of the run"),
        ("lie", {}, "the report says 9"),
        ("silent", {}, "the command printed no report"),
        ("fail", {"lost": 1_000}, "the disk is full"),
        ("kill", {"lost": 1_000}, "the command was killed by SIGKILL"),
    ],
)
def test_a_batch_that_does_not_keep_its_promises_is_caught(
    stand: Stand,
    faulty: Callable[[str], tuple[int, str, str]],
    fault: str,
    counts: dict[str, int],
    reason: str | None,
) -> None:
    code, _, err = faulty(fault)
    assert (code, err) == (0, "")
    level = stand.level
    assert level["verdict"] == ("passed" if reason is None else "failed")
    accounts = level["accounts"]
    names = ("lost", "pending", "duplicates", "wrong", "strays")
    assert {name: accounts[name] for name in names if accounts[name]} == counts
    assert any(reason is None or one.startswith(reason) for one in level["reasons"] or [""])
    assert accounts["scored"] + accounts["dead_lettered"] + accounts["lost"] == 1_000
    # A run with a fault has no figures.
    assert (level["seconds"] is None) == (reason is not None)
    assert not [*stand.data.iterdir()]
    assert (reason or "passed") in (stand.out / "report.html").read_text().partition("<script")[0]


def test_a_killed_batch_names_the_files_that_it_left(
    stand: Stand, faulty: Callable[[str], tuple[int, str, str]]
) -> None:
    faulty("kill")
    assert any("1 unfinished files are left in" in one for one in stand.level["reasons"])


def test_a_batch_that_refuses_to_start_ends_the_test_in_one_line(
    stand: Stand, faulty: Callable[[str], tuple[int, str, str]]
) -> None:
    assert_one_line_error(faulty("refuse"), 2, "batch_local refuses to start: --model is missing")
    assert not [*stand.data.iterdir()]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupted_test_ends_the_command_and_has_a_partial_page(
    stand: Stand, faulty: Callable[[str], tuple[int, str, str]], number: int
) -> None:
    def interrupt() -> None:
        log = stand.out / "phase_1_rows_1000-run-1.log"
        wait_until(lambda: log.exists() and "running" in log.read_text())
        os.kill(os.getpid(), number)

    thread = threading.Thread(target=interrupt)
    thread.start()
    code, out, _ = faulty("hang")
    thread.join()
    assert code == 130
    assert "interrupted: the result is partial" in out
    assert stand.result["interrupted"]
    assert stand.level["verdict"] == "incomplete"
    assert stand.level["accounts"]["pending"] == 1_000
    assert "This page is partial" in (stand.out / "report.html").read_text()
    assert not [*stand.data.iterdir()]
    assert not [
        one
        for one in psutil.process_iter(["cmdline"])
        # Another worker of pytest may run the same command for another test.
        if any(str(stand.folder) in word for word in one.info["cmdline"] or [])
    ]


@pytest.mark.parametrize(
    ("old", "new", "code", "reason"),
    [
        ("{model}", "/no/such/package", 1, "/no/such/package"),
        ('"--direct_num_workers", "1"', '"--batch_rows", "none"', 2, "--batch_rows must be"),
        ('"--direct_num_workers", "1"', '"--direct_num_wrkers", "1"', 2, "--direct_num_wrkers"),
    ],
)
def test_a_wrong_flag_or_package_is_one_line_before_anything_is_measured(
    stand: Stand, old: str, new: str, code: int, reason: str
) -> None:
    result = stand.run((old.replace("{model}", str(stand.model)), new))
    assert_one_line_error(result, code, "batch_local refuses to start: ", reason)
    # So the next test can have the same folder.
    assert not stand.out.exists()
    assert not [*stand.data.iterdir()]


def test_a_folder_that_cannot_be_written_is_one_line(stand: Stand) -> None:
    stand.data.write_text("a file")
    assert_one_line_error(stand.run(), 1, f"{stand.data}/millrace-scale-", "cannot be created")


def test_a_folder_may_have_any_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    place = files.Files('-a, "b"/ü', "test", "parquet")
    written = place.write("rows", [pa.record_batch({"a": [1]})])
    chosen, rest = launch.choose_command(["batch_local", *written.flags, *place.flags("run")])
    assert chosen is not None
    parsed = parse_flags(chosen.name, chosen.about, chosen.options, rest)
    assert parsed.get(SourceOptions).input_files == (f"{tmp_path}/{place.root}/rows",)
    assert parsed.get(SinkOptions).output_files == f"{tmp_path}/{place.root}/out"


def test_a_full_disk_is_one_line(
    stand: Stand, faulty: Callable[[str], tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    full = Path("/dev/full")
    monkeypatch.setattr(
        files,
        "create_file",
        lambda path: create_file(path) if "/check/" in path else full.open("wb"),
    )
    assert_one_line_error(faulty("none"), 1, "rows cannot be written to ", "No space left")


def test_a_bucket_without_credentials_is_one_line(
    stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in ("STORAGE_EMULATOR_HOST", "GOOGLE_APPLICATION_CREDENTIALS"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("CLOUDSDK_CONFIG", str(stand.folder))
    monkeypatch.setenv("NO_GCE_CHECK", "true")
    result = stand.run((str(stand.data), "gs://no-such-bucket/folder"))
    assert_one_line_error(result, 1, "no usable Google Cloud credentials")


def test_a_file_of_rows_is_sent_in_turn(stand: Stand, example: Path) -> None:
    source = f'source = "file"\npath = "{example / "transactions.parquet"}"\n'
    table = pq.read_table(example / "transactions.parquet").slice(0, 300)
    pq.write_table(table, stand.folder / "rows.parquet")
    source = f'source = "file"\npath = "{stand.folder / "rows.parquet"}"\nfaulty = 0.05'
    code, _, _ = stand.run(("faulty = 0.05", source), ("[500, 2_000]", "1_000"))
    assert code == 0
    assert stand.level["accounts"]["scored"] > 900


def test_the_processes_below_a_command_count() -> None:
    child = "x = bytearray(50_000_000); input()"
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE) as process:
        watched = Watched(process.pid)

        def seen() -> bool:
            watched.look()
            return watched.peak_bytes > 60e6

        wait_until(seen)
        assert watched.cpu_seconds > 0
        process.communicate(b"\n")


def test_a_command_that_ignores_ctrl_c_is_ended_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scale_tests.batches.command.PATIENCE_SECONDS", 5.0)
    code = "print('running', flush=True); import time; time.sleep(600)"
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with subprocess.Popen(
            [sys.executable, "-c", code], stdout=subprocess.PIPE, process_group=0
        ) as process:
            assert process.stdout is not None
            process.stdout.readline()
            found, _ = _interrupt(process)
    finally:
        signal.signal(signal.SIGINT, before)
    assert found == -signal.SIGTERM


def test_a_job_is_started_and_followed_by_the_launcher() -> None:
    given = Batch(flags=("--model", "m", "--runner=DataflowRunner", "--region", "r"))
    command = command_of(given, ["--run_id", "x"])[len(RUN) :]
    expected = ["pipelines.launch", "batch_local", "--model", "m", "--region", "r"]
    assert command == [*expected, "--run_id", "x", "--wait"]
    assert command_of(given, ["--dry_run"])[-1] == "--dry_run"
    # The launcher knows these flags.
    chosen, rest = launch.choose_command([*command[1:], "--json_summary"])
    assert chosen is not None
    assert parse_flags(chosen.name, chosen.about, chosen.options, rest).get(LaunchOptions).wait
    here = Batch(pipeline="batch_vertex", flags=("--endpoint", "1"))
    assert command_of(here, []) == [*RUN, "pipelines.batch_vertex", "--endpoint", "1"]


def test_modules_of_the_working_directory_come_last(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text("import sys; print(sys.path, sys.argv[1:], __name__)")
    done = subprocess.run([*RUN, "own", "--x"], cwd=tmp_path, capture_output=True, check=True)
    path, rest = done.stdout.decode().strip().split("] ", 1)
    assert rest == "['--x'] __main__"
    assert path.endswith(", ''")
    assert path.count("''") == 1
    assert str(tmp_path) not in path
