"""Compares predictions within the product's tolerance: scores vary slightly with the batch."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from model_handlers.manifests.tolerance import TOLERANCE, Tolerance


def assert_scores(
    got: npt.ArrayLike, expected: npt.ArrayLike, name: str = "", tolerance: Tolerance = TOLERANCE
) -> None:
    """Check that two arrays of predictions have the same shape and agree."""
    mine, theirs = np.asarray(got), np.asarray(expected)
    assert mine.shape == theirs.shape, name
    bad = np.argwhere(~tolerance.agree(mine, theirs))
    shown = [(tuple(at), mine[tuple(at)], theirs[tuple(at)]) for at in bad[:5]]
    assert not shown, f"{name}: {len(bad)} of {mine.size} differ beyond {tolerance}: {shown}"


def assert_predictions(got: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """Check that predictions of one row or several have the same names and agree."""
    assert list(got) == list(expected)
    for name, values in expected.items():
        assert_scores(got[name], values, name)


def assert_same_rows(
    got: Sequence[Mapping[str, Any]],
    expected: Sequence[Mapping[str, Any]],
    predicted: Collection[str] = ("score", "encoded"),
) -> None:
    """Check that rows are equal, except for their predictions, which only have to agree."""

    def others(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        return [{k: v for k, v in row.items() if k not in predicted} for row in rows]

    assert [list(row) for row in got] == [list(row) for row in expected]
    assert others(got) == others(expected)
    for name in predicted:
        mine, theirs = ([row[name] for row in rows if name in row] for rows in (got, expected))
        assert_scores(mine, theirs, name)
