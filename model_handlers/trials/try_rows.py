"""Try a model on some rows, when it is packaged and when it is loaded.

A model must answer its known-good rows as its manifest says. Its answer to a row must not depend on
the other rows of the batch, because it is a matter of chance which rows form a batch.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from common.errors import ContractBroken
from model_handlers.batch_handler import to_arrow
from model_handlers.loaded_model import ROW_FAULTS, LoadedModel, count_of, describe_error
from model_handlers.manifests.manifest import GoldenRows, InputSpec, Manifest
from model_handlers.manifests.tolerance import Tolerance
from model_handlers.preparation import golden_tensors

# Batches in which each row has several other rows, and many other rows.
MADE_UP_ROWS = 5
CROWD_ROWS = 48
_FLAG = "--allow_batch_dependence"
_USUAL = "the usual cause is that .eval() was not called before the model was saved"

Arrays = Sequence[np.ndarray]
# The tolerance that would accept a difference, and the text that describes it.
_Difference = tuple[float, str]


def check_model(model: LoadedModel) -> Arrays:
    """Check that a model that was just loaded does what its manifest says.

    The model must answer its known-good rows as expected, all in one batch and one of them alone. A
    model without known-good rows is checked with rows of zeros and with random rows instead.

    Args:
        model: The loaded model.

    Returns:
        The rows, one array per input.

    Raises:
        ContractBroken: The model does not do what its manifest says.
    """
    golden = model.manifest.golden
    if golden is None:
        arrays, answers = _made_up(model)
    else:
        arrays, answers = check_golden_rows(model, golden)
    # The row with the smallest values: if rows influence each other, it changes the most.
    sizes = sum(np.abs(array.reshape(len(array), -1).astype(np.float64)).sum(1) for array in arrays)
    _refuse(model, _alone(model, arrays, answers, [int(np.argmin(sizes))]))
    return arrays


def check_golden_rows(model: LoadedModel, golden: GoldenRows) -> tuple[Arrays, Arrays]:
    """Run a model on rows with known answers.

    Args:
        model: The model.
        golden: The known-good rows and the expected answers.

    Returns:
        The rows, one array per input, and the model's answers, one array per output.

    Raises:
        ContractBroken: The model fails on the rows, or an answer differs from the expected one.
    """
    arrays = golden_tensors(model.manifest, golden, model.preparation)
    answers = _answer(model, arrays, "its known-good rows")
    for spec, answer in zip(model.outputs, answers, strict=True):
        if spec.name not in golden.outputs:
            continue
        expected = np.asarray(golden.outputs[spec.name], dtype=spec.dtype).reshape(answer.shape)
        close = model.tolerance.agree(answer, expected)
        if not close.all():
            at = tuple(int(i) for i in np.argwhere(~close)[0])
            raise ContractBroken(
                f"model {model.manifest.name} {model.manifest.version} does not reproduce the "
                f"answers recorded in its model.json: for known-good row {at[0]}, output "
                f"{spec.name} is {answer[at]}, expected {expected[at]}; this is not the model that "
                "was packaged, or it computes differently on this machine: package it again on a "
                "machine where its answers are right"
            )
    _check_fields(model, golden, answers)
    return arrays, answers


def _check_fields(model: LoadedModel, golden: GoldenRows, answers: Arrays) -> None:
    """Raise ContractBroken unless the fields of known-good rows are the recorded ones."""
    if not golden.fields or model.preparation is None:
        return
    together = derived_fields(model, answers)
    alone = together
    if any(spec.chain.functions for spec in model.manifest.fields):
        rows = range(len(golden.rows))
        each = [derived_fields(model, [a[row : row + 1] for a in answers]) for row in rows]
        alone = {name: pa.concat_arrays([one[name] for one in each]) for name in together}
    for name in together:
        found = zip(together[name].to_pylist(), alone[name].to_pylist(), strict=True)
        recorded = golden.fields.get(name, together[name].to_pylist())
        for row, (values, expected) in enumerate(zip(found, recorded, strict=True)):
            if not all(_same(value, expected, model.tolerance) for value in values):
                raise ContractBroken(
                    f"model {model.manifest.name} {model.manifest.version} does not reproduce the "
                    f"field {name} recorded in its model.json for known-good row {row}: package "
                    "it again"
                )


def derived_fields(model: LoadedModel, answers: Arrays) -> dict[str, pa.Array]:
    """Return the fields of some answers, by name.

    Args:
        model: The model, with its steps.
        answers: One array per output of the model.

    Raises:
        ContractBroken: A field cannot be computed.
    """
    if model.preparation is None:
        return {}
    arrays = {
        spec.name: to_arrow(answer, spec)
        for spec, answer in zip(model.outputs, answers, strict=True)
    }
    fields, refused = model.preparation.derive(arrays)
    for some in refused:
        raise ContractBroken(
            f"model {model.manifest.name}: field {some.column} of row {some.rows[0]} cannot be "
            f"computed: {some.message}"
        )
    return fields


def _same(got: Any, expected: Any, tolerance: Tolerance) -> bool:
    """Return whether two values of a field agree, numbers within the tolerance."""
    if isinstance(got, float | int) and isinstance(expected, float | int):
        return bool(tolerance.agree(got, expected))
    if isinstance(got, list) and isinstance(expected, list):
        pairs = zip(got, expected, strict=False)
        return len(got) == len(expected) and all(_same(a, b, tolerance) for a, b in pairs)
    if isinstance(got, dict) and isinstance(expected, dict):
        return got.keys() == expected.keys() and all(
            _same(value, expected[key], tolerance) for key, value in got.items()
        )
    return bool(got == expected)


def check_made_up_rows(model: LoadedModel) -> None:
    """Check a model that is packaged without a sample, on random rows.

    Args:
        model: The model.

    Raises:
        ContractBroken: The model fails, or its answers depend on the batch.
    """
    check_independence(model, *_made_up(model))


def check_independence(
    model: LoadedModel, arrays: Arrays, answers: Arrays, others: Arrays | None = None
) -> None:
    """Check that a model's answer to a row does not depend on the other rows of its batch.

    The rows are run again in one batch, one by one, and together with other rows.

    Args:
        model: The model.
        arrays: The rows, one array per input.
        answers: The model's answers to the rows in one batch, one array per output.
        others: More rows that the model can process, one array per input; None to use only random
            rows and the rows themselves.

    Raises:
        ContractBroken: An answer differs by more than the model's tolerance, or the model fails.
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
            # One of the other rows may be at fault, because the model need not accept them.
            continue
        behind = [array[count:] for array in among]
        found += _differences(
            model, answers, behind, range(rows), f"with {count_of(count)} before it"
        )
    _refuse(model, found)


def _alone(
    model: LoadedModel, arrays: Arrays, answers: Arrays, rows: Sequence[int]
) -> list[_Difference]:
    """Run rows alone, and return how their answers differ from those in one batch.

    Raise ContractBroken if the model cannot process a batch of one row.
    """
    found: list[_Difference] = []
    for row in rows:
        try:
            alone = model.forward(arrays, slice(row, row + 1))
        except (*ROW_FAULTS, ContractBroken) as error:
            why = str(error) if isinstance(error, ContractBroken) else describe_error(error)
            raise ContractBroken(
                f"model {model.manifest.name} fails on a batch of one row, and any batch can have "
                f"one row: {why}; keep the batch dimension, for example with squeeze(-1) instead "
                "of squeeze(), and call .eval() before the model is saved"
            ) from error
        together = [array[row : row + 1] for array in answers]
        found += _differences(model, together, alone, [row], "alone")
    return found


def _differences(
    model: LoadedModel, answers: Arrays, others: Arrays, rows: Sequence[int], how: str
) -> list[_Difference]:
    """Return the largest difference between two answers to the same rows, for each output.

    `rows` has the numbers of the rows, and `how` describes how the rows of the second answer were
    run. Outputs that agree are left out.
    """
    kind = "random row" if model.manifest.golden is None else "known-good row"
    found = []
    for spec, first, other in zip(model.outputs, answers, others, strict=True):
        if model.tolerance.agree(other, first).all():
            continue
        needed = tolerance_of(other, first)
        at = tuple(int(i) for i in np.unravel_index(needed.argmax(), needed.shape))
        difference = (
            f"output {spec.name} of {kind} {rows[at[0]]} is {first[at]} in a batch of all rows, "
            f"but {other[at]} {how}"
        )
        found.append((float(needed[at]), difference))
    return found


def _refuse(model: LoadedModel, found: Sequence[_Difference]) -> None:
    """Raise ContractBroken with the largest of the differences, if there are any."""
    if not found:
        return
    needed, difference = max(found)
    value = f"{round_up(needed):g}" if needed < math.inf else "TOLERANCE"
    raise ContractBroken(
        f"model {model.manifest.name} returns different outputs for the same row in another "
        f"batch: {difference}, which exceeds the tolerance ({model.tolerance}); {_USUAL}; if this "
        f"is intended, package it with {_FLAG} {value}"
    )


def tolerance_of(got: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """Return the smallest t for each pair of values with which they agree in Tolerance(t, t).

    Args:
        got: The values.
        expected: The expected values, of the same shape.

    Returns:
        An array of the same shape. It is infinity for values that agree in no tolerance, such as
        NaN and a number.
    """
    a, b = (np.asarray(array, np.float64) for array in (got, expected))
    with np.errstate(invalid="ignore"):
        needed: np.ndarray = np.abs(a - b) / (1 + np.abs(b))
    needed[(a == b) | (np.isnan(a) & np.isnan(b))] = 0
    needed[~np.isfinite(needed)] = np.inf
    return needed


def round_up(value: float) -> float:
    """Round a number above 0 up to one significant digit, for example 0.0123 to 0.02."""
    unit = 10.0 ** math.floor(math.log10(value))
    # Going through text gives 3e-05 instead of 3.0000000000000004e-05.
    return float(f"{math.ceil(value / unit) * unit:.1g}")


def _answer(model: LoadedModel, arrays: Arrays, what: str) -> list[np.ndarray]:
    """Return the answers to rows, and raise ContractBroken if the model fails on them."""
    try:
        return model.forward(arrays, slice(0, len(arrays[0])))
    except ROW_FAULTS as error:
        raise ContractBroken(
            f"model {model.manifest.name} fails on {what}: {describe_error(error)}"
        ) from error


def _made_up(model: LoadedModel) -> tuple[Arrays, Arrays]:
    """Return rows that the model can process, and its answers to them.

    The model must be able to process rows of zeros, or ContractBroken is raised. Random rows are
    used if the model accepts them, and rows of zeros otherwise.
    """
    zeros = [np.zeros_like(array[:2]) for array in made_up_rows(model.manifest)]
    try:
        answers = model.forward(zeros, slice(0, 2))
    except ROW_FAULTS as error:
        raise ContractBroken(
            f"model {model.manifest.name} fails on two rows of zeros: "
            f"{describe_error(error)}; check the manifest's inputs, or package the model with "
            "known-good rows (--sample) if it cannot process zeros"
        ) from error
    rows = made_up_rows(model.manifest)
    try:
        return rows, model.forward(rows, slice(0, MADE_UP_ROWS))
    except ROW_FAULTS:
        # A model may reject random rows, because they have no meaning.
        return zeros, answers


def made_up_rows(manifest: Manifest, rows: int = MADE_UP_ROWS) -> list[np.ndarray]:
    """Create random rows for a model, which are always the same for the same manifest.

    The values have a normal distribution, with the mean and deviation of the training rows if the
    manifest has them, or else with mean 0 and deviation 1. For inputs of whole numbers, the
    absolute values are rounded.

    Args:
        manifest: The manifest of the model.
        rows: The number of rows.

    Returns:
        One array per input, `[rows, width]` or `[rows]`.
    """
    random = np.random.default_rng(0)
    return [_made_up_input(spec, manifest, rows, random) for spec in manifest.inputs]


def _made_up_input(spec: InputSpec, manifest: Manifest, rows: int, random: Any) -> np.ndarray:
    values = random.normal(size=(rows, spec.width))
    known = [manifest.statistics.get(column) for column in spec.columns]
    for i, found in enumerate(known if len(known) == spec.width else ()):
        if found is not None:
            # Statistics of a single row have deviation 0, and equal rows would show no difference.
            values[:, i] = found.mean + (found.std or 1.0) * values[:, i]
    if not spec.dtype.startswith("float"):
        values = np.abs(values).round()
    made: np.ndarray = values.astype(spec.dtype).reshape((rows, spec.width) if spec.shape else rows)
    return made


def _crowds(manifest: Manifest, arrays: Arrays, others: Arrays | None) -> Iterator[Arrays]:
    """Yield groups of rows to put before some rows in a batch."""
    if others is not None and len(others[0]):
        yield others
    yield made_up_rows(manifest, CROWD_ROWS)
    # The rows themselves, with a larger share of the first row than in a batch of all rows.
    yield [np.concatenate([array[:1]] * 3 + [array[::-1]]) for array in arrays]
