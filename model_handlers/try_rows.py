"""What a model does with rows, tried when it is packaged and when it is loaded.

It has to answer its golden rows as its manifest says, and each row the same whatever rows
stand beside it: a batch is only what happened to come together.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from common.errors import ContractBroken
from model_handlers.loaded_model import ROW_FAULTS, LoadedModel, count_of, describe_error
from model_handlers.manifest import GoldenRows, InputSpec, Manifest

# Enough that each row has several others beside it; and many others.
MADE_UP_ROWS = 5
CROWD_ROWS = 48
_FLAG = "--allow_batch_dependence"
_USUAL = "usually .eval() was not called before the model was saved"

Arrays = Sequence[np.ndarray]
# The tolerance that would accept it, and what differs.
_Difference = tuple[float, str]


def check_model(model: LoadedModel) -> None:
    """A model just loaded -> nothing, or ContractBroken if it is not what its manifest says.

    It must answer its golden rows as expected, together and one of them alone. One that has
    none must answer rows of zeros, and rows that are made up in the same way.
    """
    golden = model.manifest.golden
    if golden is None:
        arrays, answers = _made_up(model)
    else:
        arrays, answers = check_golden_rows(model, golden)
    # The row that the others would change most: what they share is scaled by the largest.
    sizes = sum(np.abs(array.reshape(len(array), -1).astype(np.float64)).sum(1) for array in arrays)
    _refuse(model, _alone(model, arrays, answers, [int(np.argmin(sizes))]))


def check_golden_rows(model: LoadedModel, golden: GoldenRows) -> tuple[Arrays, Arrays]:
    """A model and rows with known answers -> these rows, an array an input, and its answers.

    Raises ContractBroken unless it answers as expected.
    """
    arrays = [
        np.asarray(golden.inputs[spec.name], dtype=spec.dtype) for spec in model.manifest.inputs
    ]
    answers = _answer(model, arrays, "its golden rows")
    for spec, answer in zip(model.outputs, answers, strict=True):
        if spec.name not in golden.outputs:
            continue
        expected = np.asarray(golden.outputs[spec.name], dtype=spec.dtype)
        close = model.tolerance.agree(answer, expected)
        if not close.all():
            at = tuple(int(i) for i in np.argwhere(~close)[0])
            raise ContractBroken(
                f"model {model.manifest.name} {model.manifest.version}: golden row {at[0]}, output "
                f"{spec.name}: expected {expected[at]}, got {answer[at]}: this is not the model "
                "that was packaged, or it runs differently here; package it again where it is right"
            )
    return arrays, answers


def check_made_up_rows(model: LoadedModel) -> None:
    """A model to be packaged without a sample -> nothing, or ContractBroken.

    Its answers to made-up rows must not depend on the batch, see check_independence.
    """
    check_independence(model, *_made_up(model))


def check_independence(
    model: LoadedModel, arrays: Arrays, answers: Arrays, others: Arrays | None = None
) -> None:
    """A model, rows and its answers to them together -> nothing, or ContractBroken.

    The same rows are run again, one by one, and among others: further rows that the model
    can take, made up where there are none. arrays, others: one an input; answers: one an
    output, which must come back within the model's tolerance.
    """
    rows = len(arrays[0])
    again = _answer(model, arrays, "the same rows again")
    found = _differences(model, answers, again, range(rows), "when run again")
    found += _alone(model, arrays, answers, range(rows))
    for beside in _crowds(model.manifest, arrays, others):
        crowd = [np.concatenate([b, a]) for a, b in zip(arrays, beside, strict=True)]
        count = len(beside[0])
        try:
            among = model.forward(crowd, slice(0, count + rows))
        except ROW_FAULTS:
            # The fault may be one of the other rows', which nobody vouches for.
            continue
        behind = [array[count:] for array in among]
        found += _differences(
            model, answers, behind, range(rows), f"with {count_of(count)} before it"
        )
    _refuse(model, found)


def _alone(
    model: LoadedModel, arrays: Arrays, answers: Arrays, rows: Sequence[int]
) -> list[_Difference]:
    """Answers to all rows together -> where some of them alone get another.

    Raises ContractBroken if the model cannot take one row.
    """
    found: list[_Difference] = []
    for row in rows:
        try:
            alone = model.forward(arrays, slice(row, row + 1))
        except (*ROW_FAULTS, ContractBroken) as error:
            why = str(error) if isinstance(error, ContractBroken) else describe_error(error)
            raise ContractBroken(
                f"model {model.manifest.name} fails on a batch of one row, which any batch may be: "
                f"{why}; keep the batch dimension, for instance by squeeze(-1) instead "
                f"of squeeze(); or {_USUAL}"
            ) from error
        together = [array[row : row + 1] for array in answers]
        found += _differences(model, together, alone, [row], "alone")
    return found


def _differences(
    model: LoadedModel, answers: Arrays, others: Arrays, rows: Sequence[int], how: str
) -> list[_Difference]:
    """Two answers to the same rows -> the largest difference of each output that has one.

    rows: their numbers. how: the second answer came about.
    """
    kind = "made-up row" if model.manifest.golden is None else "golden row"
    found = []
    for spec, first, other in zip(model.outputs, answers, others, strict=True):
        if model.tolerance.agree(other, first).all():
            continue
        needed = tolerance_of(other, first)
        at = tuple(int(i) for i in np.unravel_index(needed.argmax(), needed.shape))
        difference = (
            f"output {spec.name} of {kind} {rows[at[0]]} is {first[at]} in a batch of all, and "
            f"{other[at]} {how}"
        )
        found.append((float(needed[at]), difference))
    return found


def _refuse(model: LoadedModel, found: Sequence[_Difference]) -> None:
    """What differs -> nothing if nothing does, or ContractBroken with the largest difference."""
    if not found:
        return
    needed, difference = max(found)
    value = f"{round_up(needed):g}" if needed < math.inf else "TOLERANCE"
    raise ContractBroken(
        f"model {model.manifest.name} answers a row differently in another batch: {difference}, "
        f"beyond {model.tolerance}; {_USUAL}; if it is meant, package it with {_FLAG} {value}"
    )


def tolerance_of(got: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """Two arrays of one shape -> for each value, the Tolerance(t, t) within which they agree.

    Infinity where there is none: one is NaN or infinite, and the other another.
    """
    a, b = (np.asarray(array, np.float64) for array in (got, expected))
    with np.errstate(invalid="ignore"):
        needed: np.ndarray = np.abs(a - b) / (1 + np.abs(b))
    needed[(a == b) | (np.isnan(a) & np.isnan(b))] = 0
    needed[~np.isfinite(needed)] = np.inf
    return needed


def round_up(value: float) -> float:
    """A number above 0 -> the next one of a single digit, as 0.02 for 0.0123."""
    unit = 10.0 ** math.floor(math.log10(value))
    # As text has it: 3e-05, not 3.0000000000000004e-05.
    return float(f"{math.ceil(value / unit) * unit:.1g}")


def _answer(model: LoadedModel, arrays: Arrays, what: str) -> list[np.ndarray]:
    """Rows that the model must be able to take -> its answers. Raises ContractBroken."""
    try:
        return model.forward(arrays, slice(0, len(arrays[0])))
    except ROW_FAULTS as error:
        raise ContractBroken(
            f"model {model.manifest.name} fails on {what}: {describe_error(error)}"
        ) from error


def _made_up(model: LoadedModel) -> tuple[Arrays, Arrays]:
    """A model -> rows that it takes, of which nothing is known, and its answers to them.

    It must take zeros, and is only then asked for others. Raises ContractBroken.
    """
    zeros = [np.zeros_like(array[:2]) for array in made_up_rows(model.manifest)]
    try:
        answers = model.forward(zeros, slice(0, 2))
    except ROW_FAULTS as error:
        raise ContractBroken(
            f"model {model.manifest.name} fails on two rows of zeros: "
            f"{describe_error(error)}; check the manifest's inputs, or give "
            "it golden rows if it cannot take zeros"
        ) from error
    rows = made_up_rows(model.manifest)
    try:
        return rows, model.forward(rows, slice(0, MADE_UP_ROWS))
    except ROW_FAULTS:
        # A model may well refuse rows that mean nothing.
        return zeros, answers


def made_up_rows(manifest: Manifest, rows: int = MADE_UP_ROWS) -> list[np.ndarray]:
    """A manifest -> an array of values an input, [rows, width] or [rows], the same each time.

    Normally distributed about the training mean where it is known, else about 0; where whole
    numbers are asked for, their sizes rounded.
    """
    random = np.random.default_rng(0)
    return [_made_up_input(spec, manifest, rows, random) for spec in manifest.inputs]


def _made_up_input(spec: InputSpec, manifest: Manifest, rows: int, random: Any) -> np.ndarray:
    values = random.normal(size=(rows, spec.width))
    known = [manifest.statistics.get(column) for column in spec.columns]
    for i, found in enumerate(known if len(known) == spec.width else ()):
        if found is not None:
            # Of a single row there is no deviation, and equal rows would show nothing.
            values[:, i] = found.mean + (found.std or 1.0) * values[:, i]
    if not spec.dtype.startswith("float"):
        values = np.abs(values).round()
    made: np.ndarray = values.astype(spec.dtype).reshape((rows, spec.width) if spec.shape else rows)
    return made


def _crowds(manifest: Manifest, arrays: Arrays, others: Arrays | None) -> Iterator[Arrays]:
    """Rows -> several groups of rows to stand before them."""
    if others is not None and len(others[0]):
        yield others
    yield made_up_rows(manifest, CROWD_ROWS)
    # Its own rows again, of which the first weighs more than in a batch of all.
    yield [np.concatenate([array[:1]] * 3 + [array[::-1]]) for array in arrays]
