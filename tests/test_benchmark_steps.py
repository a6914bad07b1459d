"""Tests that the benchmark of steps measures what a plain loop computes."""

import json
from pathlib import Path

import pytest

from benchmarks.steps import ROWS, cases, check, main

NAMES = list(cases())


@pytest.mark.parametrize("name", NAMES)
def test_each_chain_gives_what_a_plain_loop_gives_for_all_rows(name: str) -> None:
    case = cases()[name]
    check(case)
    assert len(case.run()) == ROWS


def test_the_figures_of_all_chains_are_written(tmp_path: Path) -> None:
    main(["--output", str(tmp_path), "--rounds", "1"])
    figures = json.loads((tmp_path / "steps.json").read_text())["microseconds_per_row"]
    assert list(figures) == NAMES
    assert all(figure["median"] > 0 for figure in figures.values())
