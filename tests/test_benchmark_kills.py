"""Tests what the benchmark of kills counts, and that it kills its processes."""

import signal
from pathlib import Path

import pytest

from benchmarks.kills.prism import VICTIMS
from benchmarks.kills.process import Attempt
from benchmarks.kills.runs import METHOD, PRISM_SHARES, SHARES
from benchmarks.kills.tally import Tally, as_table


def test_a_missing_row_is_lost_and_a_repeated_or_unknown_row_is_doubled() -> None:
    tally = Tally()
    tally.count_rows(["a", "b", "c"], ["a", "c", "c", "x"])
    assert (tally.lost, tally.doubled, tally.faults) == (1, 2, 3)
    tally.count_rows(["a", "b"], ["b", "a"])
    assert tally.faults == 3


def test_a_repeated_delivery_of_a_stream_is_not_a_fault() -> None:
    assert Tally(kills=3, ended=1, committed=2, again=7).faults == 0
    assert Tally(gone=1).faults == 1


def test_the_table_has_a_line_for_each_scenario_and_their_sum() -> None:
    first, *_, last = as_table({"one": Tally(kills=2), "two": Tally(kills=1_000)}).splitlines()
    assert first.split()[:2] == ["scenario", "kills"]
    assert last.split()[:2] == ["all", "1,002"]
    assert set(METHOD) == set(first.split()[1:])
    assert sum(SHARES.values()) == 300
    assert sum(PRISM_SHARES.values()) == 110
    assert {name.rpartition(" ")[2] for name in PRISM_SHARES} == set(VICTIMS)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_an_attempt_prints_to_its_log_and_ends_with_the_exit_code_of_the_command(
    tmp_path: Path,
) -> None:
    attempt = Attempt("batch_local", ["--modle", "m"], tmp_path / "log")
    assert attempt.wait() == 2
    assert "--modle" in (tmp_path / "log").read_text()
    assert not attempt.kill()
    with pytest.raises(RuntimeError, match="ended with exit code 2: error: "):
        attempt.finish()


def test_a_stopped_attempt_is_killed(tmp_path: Path) -> None:
    attempt = Attempt("batch_local", ["--help"], tmp_path / "log")
    attempt.signal(signal.SIGSTOP)
    assert attempt.kill() or (tmp_path / "log").read_text()
