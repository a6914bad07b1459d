"""Processes that attempt the same run: concurrent, killed and paused, and what they leave."""

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from waiting import wait_for_staged

from transforms.results import open_result

ROWS = 2_000  # of the fixture `example`


def start(example: Path, root: Path, *flags: str, times: int = 1) -> subprocess.Popen[str]:
    """Start batch_local as run r on the example's rows, or slowly on several copies of them."""
    source = example / "transactions.parquet"
    if times > 1:
        source = root / "many.parquet"
        pq.write_table(
            pa.concat_tables([pq.read_table(example / "transactions.parquet")] * times), source
        )
        flags = (*flags, "--batch_rows", "16")
    command = [sys.executable, "-m", "pipelines.batch_local", "--input_files", str(source)]
    command += ["--model", str(example / "model"), "--output_files", str(root / "out")]
    command += ["--run_id", "r", *flags]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def check(root: Path) -> dict[str, Any]:
    """Check that there is a complete result and nothing else; return its report."""
    report: dict[str, Any] = json.loads((root / "out/r/report.json").read_text())
    scores, letters = (
        open_result(str(root / "out/r"), part) for part in ("scores", "dead_letters")
    )
    assert scores.count_rows() == report["rows_scored"]
    assert letters.count_rows() == report["rows_dead_lettered"]
    assert len(set(scores.to_table()["row_id"].to_pylist())) == report["rows_scored"]
    listed = {f["name"] for files in report["files"].values() for f in files}
    found = {p.relative_to(root / "out/r").as_posix() for p in (root / "out/r").rglob("part-*")}
    assert found == listed
    assert not (root / "out/.staging").exists()
    return report


def test_attempts_at_the_same_time_leave_the_result_of_one(example: Path, tmp_path: Path) -> None:
    processes = [start(example, tmp_path) for _ in range(4)]
    for process in processes:
        out, err = process.communicate(timeout=300)
        assert process.returncode == 0, out + err
    assert check(tmp_path)["rows_in"] == ROWS


@pytest.mark.parametrize("mode", ["multi_threading", "multi_processing"])
def test_after_a_kill_the_same_run_leaves_only_its_result(
    example: Path, tmp_path: Path, mode: str
) -> None:
    flags = ("--direct_running_mode", mode, "--direct_num_workers", "2")
    process = start(example, tmp_path, *flags, times=200)
    wait_for_staged(process, tmp_path / "out")
    process.kill()
    # The workers also hold these pipes, which close when the last worker ends with the launcher.
    process.communicate(timeout=300)
    assert list((tmp_path / "out/.staging").rglob("*.parquet"))
    again = start(example, tmp_path)
    out, err = again.communicate(timeout=300)
    assert again.returncode == 0, out + err
    assert check(tmp_path)["rows_in"] == ROWS


def test_a_paused_attempt_that_ends_after_another_does_no_harm(
    example: Path, tmp_path: Path
) -> None:
    late = start(example, tmp_path, times=20)
    wait_for_staged(late, tmp_path / "out")
    late.send_signal(signal.SIGSTOP)
    other = start(example, tmp_path)
    out, err = other.communicate(timeout=300)
    assert other.returncode == 0, out + err
    before = json.loads((tmp_path / "out/r/report.json").read_text())
    # The paused attempt is not dead, so its staged files still exist.
    assert list((tmp_path / "out/.staging").rglob("*.parquet"))
    for path in (tmp_path / "out/.staging").rglob("*.parquet"):
        path.unlink()
    late.send_signal(signal.SIGCONT)
    out, err = late.communicate(timeout=300)
    assert (late.returncode, out, err.count("\n")) == (1, "", 1)
    assert "was removed before the run was complete" in err
    assert check(tmp_path) == before


def test_under_nohup_a_closed_terminal_does_not_end_a_run(example: Path, tmp_path: Path) -> None:
    ignored = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        process = start(example, tmp_path, times=200)
    finally:
        signal.signal(signal.SIGHUP, ignored)
    wait_for_staged(process, tmp_path / "out")
    process.send_signal(signal.SIGHUP)
    process.send_signal(signal.SIGTERM)
    # If SIGHUP had ended the run, the exit code would be the one of SIGHUP.
    assert (process.communicate(timeout=300)[0], process.returncode) == ("", 128 + signal.SIGTERM)
