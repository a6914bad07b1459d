"""Find out which outputs a model returns, by running it on a few rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeGuard, get_args

import numpy as np
import torch

from common.errors import ContractBroken
from common.memory import MORE_MEMORY, check_memory
from model_handlers.loaded_model import (
    ROW_FAULTS,
    check_device_works,
    describe_error,
    guard_advice,
)
from model_handlers.manifests.manifest import MANIFEST_NAME, DType, InputSpec, OutputSpec
from model_handlers.packaging.signature import output_names, read_signature

# The largest number of rows that is tried.
PROBE_ROWS = 3
# What models take most often if not float32.
_OTHER_DTYPES = ("float64", "float16", "bfloat16", "int64")

Rows = Sequence[np.ndarray]


def zeros(inputs: Sequence[InputSpec]) -> list[np.ndarray]:
    """Return PROBE_ROWS rows of zeros, one array [rows, *shape] for each input."""
    return [np.zeros((PROBE_ROWS, *spec.shape), spec.dtype) for spec in inputs]


def probe(
    module: torch.nn.Module,
    file: str,
    inputs: Sequence[InputSpec],
    *,
    rows: Rows | None = None,
    names: Sequence[str] = (),
) -> tuple[OutputSpec, ...]:
    """Return the outputs of a module, from its answers to 2 and to 3 rows of zeros.

    Args:
        module: The loaded module.
        file: The name of the model file, for messages.
        inputs: The inputs in the order of the forward method.
        rows: Rows of a sample, one array [3, *shape] for each input, which are used if the module
            fails on zeros; or None.
        names: Names for the outputs, if the module does not return a dict. Named tuples have names,
            others get `output`, or `output_0`, `output_1`, ...

    Raises:
        ContractBroken: The module fails, or the outputs do not have one row for each row.
    """
    two, three = _answers(module, file, inputs, rows)
    if list(two) != list(three):
        raise ContractBroken(
            f"model {file}: expected the same outputs for any number of rows, got "
            f"{list(two)} for 2 and {list(three)} for 3"
        )
    for name, tensor in two.items():
        shape = list(tensor.shape)
        if shape[:1] != [2] or list(three[name].shape) != [3, *shape[1:]]:
            raise ContractBroken(
                f"model {file}: output {name!r} has shape {shape} for 2 rows and "
                f"{list(three[name].shape)} for 3: expected the number of rows as the first "
                "dimension; keep the batch dimension in the forward method, and export a .pt2 with "
                "a dynamic batch dimension"
            )
    return tuple(
        OutputSpec(name, _dtype(file, name, tensor), tuple(tensor.shape[1:]))
        for name, tensor in _renamed(two, file, names).items()
    )


def _answers(
    module: torch.nn.Module, file: str, inputs: Sequence[InputSpec], rows: Rows | None
) -> list[dict[str, torch.Tensor]]:
    """Return the answers to 2 and to 3 rows, of zeros or else of the sample."""
    zero = zeros(inputs)
    try:
        return [_answer(module, file, zero, count) for count in (2, 3)]
    except ROW_FAULTS as error:
        check_memory(error, f"model {file}", MORE_MEMORY)
        check_device_works(error)
        failed = error
    if rows is None:
        raise ContractBroken(
            f"model {file} fails on {_count(failed, inputs)}: {describe_error(failed)}; "
            f"{_advice(module, inputs, failed)}"
        ) from failed
    try:
        return [_answer(module, file, rows, count) for count in (2, 3)]
    except ROW_FAULTS as error:
        raise ContractBroken(
            f"model {file} fails on the first rows of the sample, {_shapes(inputs)}: "
            f"{describe_error(error)}; {_advice(module, inputs, error)}"
        ) from error


def _count(error: Exception, inputs: Sequence[InputSpec]) -> str:
    """Return a description of the rows of zeros on which a module failed."""
    # Only the guard for the batch dimension refuses 3 rows after 2.
    count = 3 if "size()[0] == 2" in str(error) else 2
    if len(inputs) == 1:
        return f"{count} rows of {inputs[0].width} zeros"
    return f"{count} rows of zeros, {_shapes(inputs)}"


def _shapes(inputs: Sequence[InputSpec]) -> str:
    return ", ".join(f"{spec.name} {spec.dtype} {['rows', *spec.shape]}" for spec in inputs)


def _answer(module: torch.nn.Module, file: str, rows: Rows, count: int) -> dict[str, torch.Tensor]:
    """Return the tensors of a module's answer to some rows, by name."""
    with torch.inference_mode():
        answer = module(*(torch.from_numpy(array[:count].copy()) for array in rows))
    named: Mapping[Any, Any]
    if isinstance(answer, Mapping):
        named = answer
    else:
        is_single = not isinstance(answer, tuple | list)
        parts = [answer] if is_single else list(answer)
        fields = getattr(answer, "_fields", None)
        names = fields or output_names(len(parts), is_single=is_single)
        named = dict(zip(names, parts, strict=True))
    for name, tensor in named.items():
        if not isinstance(name, str) or not isinstance(tensor, torch.Tensor):
            raise ContractBroken(
                f"model {file}: expected a tensor, a tuple of tensors or a dict of named "
                f"tensors, got {type(tensor).__name__} as output {name!r}"
            )
    return dict(named)


def _renamed(
    answer: Mapping[str, torch.Tensor], file: str, names: Sequence[str]
) -> Mapping[str, torch.Tensor]:
    if not names:
        return answer
    numbered = all(name == "output" or name.startswith("output_") for name in answer)
    if not numbered and list(names) != list(answer):
        raise ContractBroken(
            f"model {file} names its outputs itself: expected {', '.join(answer)}, got "
            f"{', '.join(names)}: leave out the names"
        )
    if len(names) != len(answer):
        raise ContractBroken(
            f"model {file} returns {len(answer)} outputs, got the names {', '.join(names)}"
        )
    return dict(zip(names, answer.values(), strict=True))


def _advice(module: torch.nn.Module, inputs: Sequence[InputSpec], error: Exception) -> str:
    """Return advice for a module that fails on zeros."""
    found = read_signature(module)
    if len(found.inputs) != len(inputs):
        return (
            f"it takes {len(found.inputs)} inputs ({', '.join(found.names)}), and "
            f"{len(inputs)} {'is' if len(inputs) == 1 else 'are'} described: describe all of them "
            "with --inputs"
        )
    if len(inputs) == 1 and (dtype := other_dtype(module, inputs[0])):
        describe = f"set its dtype with --inputs or in {MANIFEST_NAME}, or "
        return (
            f"it takes {dtype} instead of {inputs[0].dtype}: "
            f"{describe if is_dtype(dtype) else ''}convert the input in its forward "
            f"method, for example with x.to(torch.{dtype})"
        )
    guard = str(error).startswith("Guard failed: ")
    what = "--feature_columns" if len(inputs) == 1 else "the dtype and shape of each input"
    return (
        f"check {what}{f', and {guard_advice(error)}' * guard}; or pass --sample if the model "
        "cannot process zeros"
    )


def other_dtype(module: torch.nn.Module, spec: InputSpec) -> str | None:
    """Return a dtype other than that of its input with which a module accepts zeros, or None."""
    return next((dtype for dtype in _OTHER_DTYPES if accepts(module, spec, dtype)), None)


def accepts(module: torch.nn.Module, spec: InputSpec, dtype: str | None = None) -> bool:
    """Return whether a module with one input accepts zeros.

    Args:
        module: The module.
        spec: The input.
        dtype: The dtype of the zeros; that of the input by default.
    """
    try:
        with torch.inference_mode():
            module(torch.zeros(2, *spec.shape, dtype=getattr(torch, dtype or spec.dtype)))
    except ROW_FAULTS:
        return False
    return True


def _dtype(file: str, name: str, tensor: torch.Tensor) -> DType:
    dtype = str(tensor.dtype).removeprefix("torch.")
    if not is_dtype(dtype):
        raise ContractBroken(
            f"model {file}: output {name!r} has dtype {dtype}, expected one of "
            f"{', '.join(get_args(DType))}"
        )
    return dtype


def is_dtype(dtype: str | None) -> TypeGuard[DType]:
    """Return whether a dtype is one that a manifest can have."""
    return dtype in get_args(DType)


def score_of(outputs: Sequence[OutputSpec]) -> str | None:
    """Return the output that is the score, or None if the user has to choose one."""
    # An integer is more often a class or a count than a score.
    scalars = [s.name for s in outputs if s.shape == () and s.dtype.startswith("float")]
    return scalars[0] if len(scalars) == 1 else None
