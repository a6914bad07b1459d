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

    def __str__(self) -> str:
        return f"rtol {self.rtol:g}, atol {self.atol:g}"


# For a model whose manifest does not set a tolerance.
TOLERANCE = Tolerance()
