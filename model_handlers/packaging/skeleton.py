"""Inputs that are not described: take columns of the same names, or show how to describe them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NoReturn

import pyarrow as pa

from common.cells import is_list, is_number
from common.errors import UsageError
from model_handlers.packaging.builder import Tensor, tensor
from model_handlers.packaging.signature import Signature, TensorType

_INSTEAD = "describe them with --inputs FILE, which may start with the lines on standard output"


class NeedsInputs(UsageError):
    """The inputs of a model have to be described.

    Attributes:
        skeleton: The text of a file for `--inputs` to start from.
    """

    def __init__(self, message: str, skeleton: str) -> None:
        super().__init__(message)
        self.skeleton = skeleton


def by_name(signature: Signature, sample: pa.Table | None) -> dict[str, Tensor] | None:
    """Return an input for each column of the sample with its name, or None if one is missing.

    Args:
        signature: The inputs of the model.
        sample: The rows of the sample, or None.
    """
    if sample is None or not signature.names:
        return None
    if not all(_fits(spec, sample) for spec in signature.inputs):
        return None
    return {name: tensor(name) for name in signature.names}


def _fits(spec: TensorType, sample: pa.Table) -> bool:
    """Return whether a column of a sample has the name and the form of an input."""
    if spec.name not in sample.column_names:
        return False
    type_ = sample.schema.field(spec.name).type
    if spec.shape is not None and (len(spec.shape) > 1) != is_list(type_):
        return False
    return is_number(type_.value_type if is_list(type_) else type_)


def need_inputs(file: str, signature: Signature, sample: pa.Table | None) -> NoReturn:
    """Raise NeedsInputs with a file to start from.

    Args:
        file: The name of the model file.
        signature: The inputs of the model.
        sample: The rows of the sample, or None.
    """
    count = len(signature.inputs)
    takes = f"{count} input{'s' * (count != 1)} ({signature})"
    columns = (
        {} if sample is None else dict(zip(sample.schema.names, sample.schema.types, strict=True))
    )
    feature = " pass its columns in order with --feature_columns, or" if count == 1 else ""
    raise NeedsInputs(
        f"model {file} takes {takes}:{feature} {_INSTEAD}", skeleton(signature, columns)
    )


def skeleton(signature: Signature, columns: Mapping[str, pa.DataType]) -> str:
    """Return the text of a file that describes inputs, for the user to complete.

    Args:
        signature: The inputs of the model.
        columns: The types of the columns of the sample; empty without a sample.
    """
    lines = ["# Replace COLUMN by columns of the source, and add steps."]
    if columns:
        lines.append(f"# The sample has {', '.join(list(columns)[:40])}.")
    lines += ["", "[columns]", '# COLUMN = "float64"  # the sample shows the types']
    for spec in signature.inputs:
        lines += ["", "[[inputs]]", f'name = "{spec.name}"{_comment(spec)}']
        if spec.shape is None:
            lines.append('# dtype = "float32"')
            lines.append("# shape = [1]")
        name = spec.name if spec.name in columns else "COLUMN"
        lines.append(f'from = [[{{ column = "{name}" }}{_hint(spec, columns.get(spec.name))}]]')
    for spec in signature.outputs:
        if spec.shape is not None and len(spec.shape) == 2 and spec.shape[1] != 1:
            lines += [
                "",
                "# [[fields]]",
                '# name = "label"',
                f'# from = [{{ output = "{spec.name}" }}, {{ step = "argmax" }}]',
            ]
            break
    return "\n".join(lines) + "\n"


def _comment(spec: TensorType) -> str:
    if spec.shape is None:
        return ""
    sizes = list(spec.shape[1:])
    if not sizes:
        return f"  # {spec.dtype}, one number in a row"
    return f"  # {spec.dtype}, shape {sizes} in a row".replace("'", "")


def _hint(spec: TensorType, type_: pa.DataType | None) -> str:
    """Return a step that an input of this kind usually needs for a column of a type."""
    sizes = spec.shape[1:] if spec.shape else ()
    if any(isinstance(size, str) for size in sizes) or (type_ is not None and is_list(type_)):
        to = next((size for size in sizes if isinstance(size, int)), 50)
        return f', {{ step = "pad", to = {to}, keep = "last" }}'
    if type_ is not None and is_number(type_):
        return ""
    is_whole = spec.dtype is not None and not spec.dtype.startswith("float")
    return ', { step = "vocabulary", unknown = 0 }' if is_whole else ""
