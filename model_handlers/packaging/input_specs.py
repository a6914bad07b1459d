"""Turn the inputs that a user describes into those of a manifest."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from common.cells import is_list
from common.errors import ContractBroken, ManifestError, UsageError, suggest
from model_handlers.manifests.manifest import DType, InputSpec, RawType
from model_handlers.packaging.builder import Tensor
from model_handlers.packaging.fit import FittedInputs
from model_handlers.packaging.probe import is_dtype
from model_handlers.packaging.raw_types import sample_column
from model_handlers.packaging.signature import Signature, TensorType
from model_handlers.steps.raw import RAW_TYPES
from model_handlers.steps.step import NUMBERS_FROM, Kind, kind_of, words_for


def in_order(tensors: Mapping[str, Tensor], signature: Signature) -> dict[str, Tensor]:
    """Return the inputs in the order in which the model takes them.

    A model with one input takes it under any name.

    Raises:
        UsageError: The names are not those of the model's inputs.
    """
    names = signature.names
    if not names or len(names) == len(tensors) == 1:
        return dict(tensors)
    for name in tensors:
        if name not in names:
            raise UsageError(
                f"inputs: the model has no input {name!r}{suggest(name, names)}; it takes "
                f"{signature}"
            )
    missing = [name for name in names if name not in tensors]
    if missing:
        raise UsageError(
            f"inputs: expected columns for each of {', '.join(names)}, got none for "
            f"{', '.join(missing)}"
        )
    return {name: tensors[name] for name in names}


def whole_inputs(tensors: Mapping[str, Tensor], signature: Signature) -> frozenset[str]:
    """Return the names of the inputs that are integers by what the model's file says.

    Args:
        tensors: The inputs in the order in which the model takes them.
        signature: What the model's file says about them; it may say nothing.
    """
    return frozenset(
        name
        for name, found in zip(tensors, signature.inputs, strict=False)
        if found.dtype is not None and "float" not in found.dtype
    )


def input_specs(
    fitted: FittedInputs, signature: Signature, sample: pa.Table | None
) -> tuple[InputSpec, ...]:
    """Return the inputs of a manifest.

    Args:
        fitted: The inputs in the order in which the model takes them.
        signature: What the model's file says about them; it may say nothing.
        sample: The rows of the sample, or None.

    Raises:
        ManifestError: A chain is not valid.
        ContractBroken: The columns do not give as many numbers as the model takes.
    """
    found: dict[str, TensorType] = dict(zip(fitted.tensors, signature.inputs, strict=False))
    return tuple(
        _plain_spec(name, tensor, found.get(name), sample)
        if name in fitted.plain
        else _prepared_spec(name, tensor, fitted.columns, found.get(name))
        for name, tensor in fitted.tensors.items()
    )


def _prepared_spec(
    name: str, tensor: Tensor, columns: Mapping[str, RawType], found: TensorType | None
) -> InputSpec:
    """Return an input that is read through steps."""
    types = {column: RAW_TYPES[raw] for column, raw in columns.items()}
    ends = [chain.gives(types) for chain in tensor.chains]
    for chain, end in zip(tensor.chains, ends, strict=True):
        if kind_of(end) is Kind.LIST:
            raise ManifestError(
                f"inputs.{name}, column {chain.start!r}: expected a chain that ends in numbers, "
                f"got {words_for(end)}: {NUMBERS_FROM[Kind.LIST]}"
            )
    width = sum(end.list_size if kind_of(end) is Kind.VECTOR else 1 for end in ends)
    items = [end.value_type if kind_of(end) is Kind.VECTOR else end for end in ends]
    whole = all(pa.types.is_integer(item) for item in items)
    return InputSpec(
        name,
        dtype=_dtype(name, tensor, found, "int64" if whole else "float32"),
        shape=_shape(name, tensor, width, found, is_vector=kind_of(ends[0]) is Kind.VECTOR),
        chains=tensor.chains,
    )


def _plain_spec(
    name: str, tensor: Tensor, found: TensorType | None, sample: pa.Table | None
) -> InputSpec:
    """Return an input that reads columns of numbers as they are."""
    columns = tuple(steps.name for steps in tensor.columns)
    types = [] if sample is None else [sample_column(sample, column).type for column in columns]
    is_vector = len(columns) == 1 and sample is not None and is_list(types[0])
    width = len(columns)
    if is_vector and sample is not None:
        width = _usual_length(sample_column(sample, columns[0]))
    elif sample is None and len(columns) == 1 and found is not None and found.shape:
        width = math.prod(size for size in found.shape[1:] if isinstance(size, int))
        is_vector = width > 1
    whole = bool(types) and all(
        pa.types.is_integer(type_.value_type if is_list(type_) else type_) for type_ in types
    )
    default: DType = "int64" if whole and not tensor.is_list else "float32"
    return InputSpec(
        name,
        columns,
        dtype=_dtype(name, tensor, found, default),
        shape=_shape(name, tensor, width, found, is_vector=is_vector),
    )


def _usual_length(lists: pa.Array) -> int:
    lengths = np.asarray(pc.fill_null(pc.list_value_length(lists), 0))
    return max(1, int(np.bincount(lengths).argmax())) if len(lengths) else 1


def _dtype(name: str, tensor: Tensor, found: TensorType | None, default: DType) -> DType:
    if tensor.dtype is not None:
        return tensor.dtype
    if found is None or found.dtype is None:
        return default
    if not is_dtype(found.dtype):
        raise ContractBroken(
            f"input {name} takes {found.dtype}, expected one of {', '.join(get_args(DType))}: "
            f"convert the input in its forward method, for example with x.to(torch.{found.dtype})"
        )
    return found.dtype


def _shape(
    name: str, tensor: Tensor, width: int, found: TensorType | None, *, is_vector: bool
) -> tuple[int, ...]:
    """Return the shape of a row that has `width` numbers."""
    if tensor.shape is not None:
        return tensor.shape
    sizes: Sequence[int | str] | None = None if found is None else found.shape
    if sizes is None:
        is_single = len(tensor.columns) == 1 and not tensor.is_list and not is_vector
        return () if is_single else (width,)
    known = math.prod(size for size in sizes[1:] if isinstance(size, int))
    free = [size for size in sizes[1:] if isinstance(size, str)]
    fits = width == known if not free else len(free) == 1 and width % known == 0
    if not fits:
        raise ContractBroken(
            f"input {name}: the model takes {found}, but its columns give {width} "
            f"number{'s' * (width != 1)} in a row: check the columns and their steps"
        )
    return tuple(size if isinstance(size, int) else width // known for size in sizes[1:])
