"""The largest difference between two answers of one model to the same row.

The order in which torch adds numbers depends on the number of rows, the CPU and the number of
threads. The last digits of an answer can therefore differ, although the model is the same.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

# The defaults suit float32, which has 7 digits. Measured with the example in batches of 1 to 200
# rows: an output of about 100 differs by 5e-4 (relative 3.5e-6), and an output near zero by less
# than 1e-6 (relative 1e-3). If rows depend on each other, their outputs differ by 1e-2 or more.
RTOL = 1e-4
ATOL = 1e-5


@dataclass(frozen=True)
class Tolerance:
    """The condition for two values to agree: abs(got - expected) <= atol + rtol * abs(expected)."""

    rtol: float = RTOL
    atol: float = ATOL

    def at_least(self, slack: float) -> Tolerance:
        """Return this tolerance with `rtol` and `atol` raised to at least `slack`."""
        return Tolerance(max(self.rtol, slack), max(self.atol, slack))

    def agree(self, got: npt.ArrayLike, expected: npt.ArrayLike) -> npt.NDArray[np.bool_]:
        """Return whether each pair of values agrees; NaN agrees with NaN, and inf with inf."""
        return np.isclose(got, expected, self.rtol, self.atol, equal_nan=True)

    def share(self, got: npt.ArrayLike, expected: npt.ArrayLike) -> float:
        """Return the largest difference as a share of what is allowed: at most 1 if all agree.

        It is infinity if values agree in no tolerance, such as NaN and a number.
        """
        a, b = (np.asarray(values, np.float64) for values in (got, expected))
        with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
            found = np.abs(a - b) / (self.atol + self.rtol * np.abs(b))
        found[(a == b) | (np.isnan(a) & np.isnan(b))] = 0
        return float(np.nan_to_num(found, nan=np.inf, posinf=np.inf).max(initial=0))

    def __str__(self) -> str:
        return f"rtol {self.rtol:g}, atol {self.atol:g}"


# For a model whose manifest does not set a tolerance.
TOLERANCE = Tolerance()
