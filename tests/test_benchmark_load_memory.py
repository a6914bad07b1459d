"""Tests that the benchmark of models in memory measures a run and reads its estimate."""

import sys
from pathlib import Path

import pytest

from benchmarks.load_memory import GB, run


def test_the_peak_and_the_estimate_of_a_command_are_measured(tmp_path: Path) -> None:
    code = "import time; held = b'x' * (300 << 20); print('memory: about 1.5 GB'); time.sleep(0.5)"
    peak, estimate = run([sys.executable, "-c", code])
    assert 300 << 20 < peak * GB < 600 << 20
    assert estimate == 1.5


def test_a_command_that_fails_is_reported_with_its_output() -> None:
    with pytest.raises(RuntimeError, match="a run failed: no such model"):
        run([sys.executable, "-c", "import sys; sys.exit('no such model')"])
