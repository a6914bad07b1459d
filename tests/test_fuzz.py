"""The fuzz of files accounts for each row, and fails for a reader that loses rows."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from benchmarks.fuzz import check
from benchmarks.fuzz.check import run_case
from benchmarks.fuzz.files import run_all
from benchmarks.fuzz.schemas import run_folder
from transforms.files.read_range import read_range
from transforms.json_rows.decode import Decoded


@pytest.mark.slow
def test_fuzzed_files_of_every_kind_are_accounted_for() -> None:
    kinds = run_all(run_case, 1, float("inf"), 150)
    assert kinds.total() == 150
    assert {name.split(",")[0].split(":")[0] for name in kinds} >= {
        "csv",
        "damaged csv",
        "json lines",
        "json array",
        "json pretty",
        "parquet",
        "damaged parquet",
    }
    folders = run_all(run_folder, 1, float("inf"), 20)
    assert folders.keys() == {"one schema: read", "one schema: refused"}


def test_a_lost_row_is_reported_with_its_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    def forgetful(*given: Any) -> Iterator[Decoded]:
        for decoded in read_range(*given):
            rows = None if decoded.batch is None else decoded.batch.slice(1)
            yield replace(decoded, batch=rows)

    monkeypatch.setattr(check, "read_range", forgetful)
    with pytest.raises(SystemExit, match=r"run_case, seed \d+: Violation: expected "):
        run_all(run_case, 1, float("inf"), 20)
