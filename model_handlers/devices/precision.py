"""The numeric precisions in which a model can run, and the choice of the fastest one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

Precision = Literal["float32", "tf32", "bf16", "fp16"]
PRECISIONS: tuple[Precision, ...] = ("float32", "tf32", "bf16", "fp16")
AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}
# How far known-good rows may deviate in a precision that a user has chosen: bf16 keeps 8 bits,
# fp16 and tf32 11.
SLACK = {"tf32": 5e-3, "bf16": 5e-2, "fp16": 5e-2}
# Another precision than float32 has to be faster by more than the error of the measurement.
_FASTER = 1.1


def set_matmul_precision(precision: str) -> None:
    """Let this process multiply float32 matrices on GPUs in TF32, or exactly.

    Convolutions follow torch's own default.
    """
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")


def candidates(device_type: str) -> tuple[Precision, ...]:
    """Return the precisions between which a device has the choice, float32 first."""
    return PRECISIONS if device_type == "cuda" else ("float32", "bf16")


@dataclass(frozen=True)
class Trial:
    """What a precision does with the known-good rows.

    Attributes:
        pace: How many rows a second the model scores.
        share: The largest difference from an expected value, as a share of what the tolerance
            allows; infinity if the model fails.
    """

    precision: Precision
    pace: float
    share: float


def choose(trials: Sequence[Trial]) -> Precision:
    """Return the fastest precision whose answers are within the tolerance.

    Args:
        trials: What each precision does, float32 first. Float32 is taken if no other one is
            clearly faster.
    """
    plain, *others = trials
    fitting = [trial for trial in others if trial.share <= 1]
    best = max(fitting, key=lambda trial: trial.pace, default=plain)
    return best.precision if best.pace > _FASTER * plain.pace else plain.precision


def describe(trials: Sequence[Trial]) -> str:
    """Return the pace and the difference of each precision in one line."""
    return "; ".join(
        f"{trial.precision} {trial.pace:,.0f} rows/s, {trial.share:.2g} of the tolerance"
        if trial.share < math.inf
        else f"{trial.precision} fails"
        for trial in trials
    )
