"""How far two answers of one model to one row may lie apart: defined here, once.

torch adds in another order for other numbers of rows, on other CPUs and with other numbers
of threads, so the last digits of an answer differ though the model is the same.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

# Of float32, which holds 7 digits. Measured with the example in batches of 1 to 200 rows: an
# output of about 100 differs by 5e-4 (3.5e-6 of itself); one near zero by 1e-3 of itself, but
# by less than 1e-6. Rows that depend on each other differ by 1e-2 and more.
RTOL = 1e-4
ATOL = 1e-5


@dataclass(frozen=True)
class Tolerance:
    """Two values agree when abs(got - expected) <= atol + rtol * abs(expected)."""

    rtol: float = RTOL
    atol: float = ATOL

    def at_least(self, slack: float) -> Tolerance:
        """This tolerance, with both parts raised to `slack` where they are smaller."""
        return Tolerance(max(self.rtol, slack), max(self.atol, slack))

    def agree(self, got: npt.ArrayLike, expected: npt.ArrayLike) -> npt.NDArray[np.bool_]:
        """Two arrays of one shape -> a bool for each value. NaN agrees with NaN, inf with inf."""
        return np.isclose(got, expected, self.rtol, self.atol, equal_nan=True)

    def __str__(self) -> str:
        return f"rtol {self.rtol:g}, atol {self.atol:g}"


# Of a model whose manifest says nothing else.
TOLERANCE = Tolerance()
