"""Chooses the precision in which a loaded model is fastest and still right."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from common.errors import ContractBroken
from model_handlers.devices.precision import (
    Precision,
    Trial,
    candidates,
    choose,
    describe,
    set_matmul_precision,
)
from model_handlers.loaded_model import ROW_FAULTS, LoadedModel
from model_handlers.manifests.manifest import GoldenRows
from model_handlers.preparation import golden_tensors
from model_handlers.trials.pace import rows_a_second
from model_handlers.trials.try_rows import check_golden_rows

AUTO = "auto"


def in_precision(model: LoadedModel, precision: Precision) -> LoadedModel:
    """Return a model in a precision; in TF32, every model of this process multiplies that way."""
    set_matmul_precision(precision)
    return replace(model, precision=precision)


def choose_precision(model: LoadedModel) -> tuple[LoadedModel, str]:
    """Return a model in the fastest precision that keeps its known-good rows, and why.

    Args:
        model: The loaded model. Without known-good rows it stays in float32, because nothing says
            whether another precision would be right.

    Returns:
        The model, and one line for people.

    Raises:
        DeviceError: The accelerator failed.
    """
    golden, name = model.manifest.golden, model.manifest.name
    if golden is None:
        return in_precision(model, "float32"), (
            f"precision float32 for model {name}: it has no known-good rows to try others with"
        )
    trials = [_try(in_precision(model, one), golden) for one in candidates(model.device.type)]
    chosen = choose(trials)
    return in_precision(model, chosen), f"precision {chosen} for model {name}: {describe(trials)}"


def _try(model: LoadedModel, golden: GoldenRows) -> Trial:
    """Return the pace of a model, and how far its answers are from those of its known-good rows."""
    failed = Trial(model.precision, 0.0, math.inf)
    try:
        arrays = golden_tensors(model.manifest, golden, model.preparation)
        answers = model.forward(arrays, slice(0, len(arrays[0])))
        shares = [
            model.tolerance.share(answer, np.reshape(golden.outputs[spec.name], answer.shape))
            for spec, answer in zip(model.outputs, answers, strict=True)
            if spec.name in golden.outputs
        ]
        share = max(shares, default=0.0)
        if share <= 1:
            check_golden_rows(model, golden)  # It also checks the fields.
        # The first passes of a size also fetch its memory.
        return Trial(model.precision, max(rows_a_second(model) for _ in range(2)), share)
    except (*ROW_FAULTS, ContractBroken):
        return failed
