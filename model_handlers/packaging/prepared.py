"""Rows that are ready for a model: a tensor for each input, and the rows that cannot be used."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from common.cells import FINE, decoded, is_list, is_number, is_text, read_cells
from common.errors import InputError
from model_handlers.manifests.manifest import InputSpec, Manifest
from model_handlers.packaging.raw_types import read_column, sample_column
from model_handlers.preparation import Preparation
from model_handlers.steps.step import Cells, Refused

if TYPE_CHECKING:
    import torch

Source: TypeAlias = pa.Table | Sequence[Mapping[str, Any]]


class Prepared(dict[str, np.ndarray]):
    """The tensors of the rows that can be used, by the name of the input.

    Each is an array [rows, *shape] with the dtype of the input.

    Attributes:
        rows: The numbers of these rows among those that were passed.
        refused: The rows that cannot be used, with column and reason.
        cells: The cells of each declared column, in all rows.
    """

    def __init__(
        self,
        tensors: Mapping[str, np.ndarray],
        rows: np.ndarray,
        refused: Sequence[Refused] = (),
        cells: Mapping[str, Cells] | None = None,
    ) -> None:
        super().__init__(tensors)
        self.rows, self.refused, self.cells = rows, tuple(refused), cells or {}

    def torch(self) -> dict[str, torch.Tensor]:
        """Return the tensors as those of PyTorch."""
        import torch

        return {name: torch.from_numpy(array) for name, array in self.items()}


def prepare_source(manifest: Manifest, preparation: Preparation, source: Source) -> Prepared:
    """Return the tensors of rows.

    Args:
        manifest: The manifest with the inputs.
        preparation: Its steps.
        source: A table, or rows as JSON has them.

    Raises:
        InputError: A column is missing, or its type cannot be used.
    """
    if isinstance(source, pa.Table):
        cells = {name: read_column(source, name, raw) for name, raw in manifest.columns.items()}
        count = source.num_rows
    else:
        cells, count = preparation.read_rows(source), len(source)
    refused: list[Refused] = []
    tensors: dict[str, np.ndarray] = {}
    for spec in manifest.inputs:
        if spec.chains:
            array, found = preparation.tensor(spec, cells)
        else:
            array, found = _plain_tensor(spec, {n: _column(source, n) for n in spec.columns})
        tensors[spec.name] = array.reshape(count, *spec.shape)
        refused += found
    good = np.ones(count, bool)
    for some in refused:
        good[some.rows] = False
    rows = np.flatnonzero(good)
    kept = tensors if good.all() else {name: array[rows] for name, array in tensors.items()}
    return Prepared(kept, rows, refused, cells)


def first_fault(prepared: Prepared) -> str:
    """Return why rows cannot be used, for a message; empty if all can."""
    if not prepared.refused:
        return ""
    worst = worst_of(prepared.refused)
    return f"column {worst.column}: {worst.message} in {len(worst.rows):,} rows"


def worst_of(refused: Sequence[Refused]) -> Refused:
    """Return the refusal of the most rows, among one or more."""
    return max(refused, key=lambda some: len(some.rows))


def _column(source: Source, name: str) -> pa.Array:
    if isinstance(source, pa.Table):
        return decoded(sample_column(source, name))
    try:
        return pa.array([row.get(name) for row in source])
    except (pa.ArrowException, OverflowError) as error:
        raise InputError(
            f"column {name!r}: expected numbers in all rows, got values of several types"
        ) from error


def _plain_tensor(
    spec: InputSpec, columns: Mapping[str, pa.Array]
) -> tuple[np.ndarray, list[Refused]]:
    """Return the tensor [rows, width] of columns of numbers, and the rows that have others."""
    refused = []
    parts = []
    for name, column in columns.items():
        is_vector = is_list(column.type)
        value = column.type.value_type if is_vector else column.type
        usable = is_number(value) or is_text(value)
        if not usable or is_vector != spec.is_list_column:
            wanted = "lists of numbers" if spec.is_list_column else "numbers"
            raise InputError(f"sample: expected {wanted} in column {name!r}, got {column.type}")
        fits = np.ones(len(column), bool)
        if is_vector:
            fits = np.asarray(pc.fill_null(pc.list_value_length(column), -1)) == spec.width
            refused.append(_of(name, ~fits, "wrong_width", f"expected {spec.width} values"))
        items = column.filter(pa.array(fits)).flatten() if is_vector else column
        numbers, state = read_cells(items, spec.dtype)
        width = spec.width if is_vector else 1
        part = np.zeros((len(fits), width), spec.dtype)
        part[fits] = numbers.reshape(-1, width)
        parts.append(part)
        if state is not None:
            wrong = np.zeros(len(fits), bool)
            wrong[fits] = (state.reshape(-1, width) != FINE).any(axis=1)
            message = f"expected {spec.dtype}, got null or another {column.type}"
            refused.append(_of(name, wrong, "wrong_type", message))
    return np.concatenate(parts, axis=1), [some for some in refused if len(some.rows)]


def _of(column: str, mask: np.ndarray, reason: str, message: str) -> Refused:
    return Refused(np.flatnonzero(mask), reason, message, column)
