"""Cells as plain Python values, to compare steps with a reference that treats one row at a time."""

from typing import Any

from model_handlers.steps.step import Cells


def seen(cells: Cells) -> list[Any]:
    """Return the value of each cell, or a tuple of the reason for which it was refused.

    A refused cell must be null, and named once.
    """
    found: list[Any] = cells.values.to_pylist()
    for refused in cells.refused:
        for row in refused.rows.tolist():
            assert found[row] is None, "a refused cell is null, and named once"
            found[row] = (refused.reason,)
    return found


def shown(cells: Cells) -> list[str]:
    """Return `seen` as texts: -0.0 differs from 0.0, and NaN is equal to itself."""
    return [repr(value) for value in seen(cells)]
