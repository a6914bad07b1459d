"""Run the steps of a manifest: from columns of the source to tensors, from outputs to fields."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa

from common.cells import INFINITE, NAN, NULL, WRONG, is_text, limits, read_cells
from common.errors import ContractBroken
from model_handlers.manifests.checks import check_counts
from model_handlers.manifests.manifest import GoldenRows, InputSpec, Manifest
from model_handlers.steps.chain import Chain
from model_handlers.steps.step import Cells, Context, Kind, Refused, as_mask, flat, kind_of
from model_handlers.steps.values import from_values, read_column

# The bytes of the numbers of rows that are prepared at once; a batch takes a few times as many.
_BYTES_AT_ONCE = 64 << 20


def rows_at_once(manifest: Manifest) -> int:
    """Return how many rows are prepared at once, so that wide ones do not fill the memory.

    A row of raw columns may be small and its tensors large, for example behind `one_hot`.
    """
    # Steps compute with numbers of up to 8 bytes.
    row_bytes = 8 * sum(spec.width for spec in manifest.inputs)
    return max(1, _BYTES_AT_ONCE // row_bytes)


class Preparation:
    """The steps of a manifest, ready to run; one per process.

    Args:
        manifest: The manifest.
        context: The files of the package, and the user's functions.

    Raises:
        ManifestError: A file of the package does not have the content that a step needs.
        ModelError: A function of the user cannot be imported.
    """

    def __init__(self, manifest: Manifest, context: Context) -> None:
        self.manifest, self.context = manifest, context
        check_counts(manifest.fields, manifest.results, context.files)
        self._inputs = {
            spec.name: [chain.bind(context) for chain in spec.chains] for spec in manifest.inputs
        }
        self._fields = [(spec.name, spec.chain.bind(context)) for spec in manifest.fields]

    def read_columns(self, source: Mapping[str, pa.Array]) -> dict[str, Cells]:
        """Return columns of a source as cells of the types that the manifest declares.

        Text stays a dictionary if the dictionary has fewer values than rows, which is fast.

        Args:
            source: The columns of the source by name, with types that `can_become` accepts.
        """
        declared = self.manifest.columns
        return {name: _read(source[name], raw).of(name) for name, raw in declared.items()}

    def read_rows(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Cells]:
        """Return rows of JSON as cells of the types that the manifest declares.

        A column that a row lacks is null.
        """
        declared = self.manifest.columns
        return {
            name: from_values([row.get(name) for row in rows], raw).of(name)
            for name, raw in declared.items()
        }

    def tensor(
        self, spec: InputSpec, columns: Mapping[str, Cells]
    ) -> tuple[np.ndarray, list[Refused]]:
        """Return the tensor of an input that has chains, and the cells that cannot be used.

        Args:
            spec: The input.
            columns: The cells of the columns that its chains read.

        Returns:
            An array [rows, width], whose values in refused rows are undefined, and the refusals.
            The first one of a row counts.
        """
        parts: list[np.ndarray] = []
        refused: list[Refused] = []
        for chain in self._inputs[spec.name]:
            numbers, found = _numbers(chain.run(columns), spec.dtype)
            parts.append(numbers)
            for one in found:
                if one.reason == "null" and not one.column:
                    refused += _blamed(one, chain.chain, columns)
                else:
                    refused.append(replace(one, column=one.column or chain.chain.start))
        return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1), refused

    def tensors(self, rows: Sequence[Mapping[str, Any]]) -> tuple[list[np.ndarray], list[Refused]]:
        """Return the tensors of raw rows, one for each input, and the cells that cannot be used.

        Args:
            rows: JSON objects with the columns of the source.
        """
        columns = self.read_rows(rows)
        tensors, refused = [], []
        for spec in self.manifest.inputs:
            if spec.chains:
                tensor, some = self.tensor(spec, columns)
                refused += some
            else:
                cells = [[row[name] for name in spec.columns] for row in rows]
                tensor = np.array(cells, spec.dtype)
            tensors.append(tensor.reshape((len(rows), spec.width) if spec.shape else len(rows)))
        return tensors, refused

    def derive(
        self, outputs: Mapping[str, pa.Array], names: Collection[str] | None = None
    ) -> tuple[dict[str, pa.Array], list[Refused]]:
        """Return the fields that can be computed from some outputs, and what cannot be used.

        Args:
            outputs: The columns of outputs by name. Fields that need other outputs are left out.
            names: The fields to compute, with those that they need; None for all. See
                `Manifest.fields_for`.

        Returns:
            The columns of fields by name, and the refusals, in which the column is the field. A
            field that steps made NaN or infinite is refused with `not_finite`; one that is so
            because an output is stays, as the output does.
        """
        known = {name: Cells(column) for name, column in outputs.items()}
        fields: dict[str, pa.Array] = {}
        refused: list[Refused] = []
        for name, chain in self._fields:
            wanted = names is None or name in names
            if not wanted or not known.keys() >= set(chain.chain.names):
                continue
            cells = self._finite(name, chain.run(known), outputs)
            known[name], fields[name] = cells, cells.values
            refused += [replace(some, column=name) for some in cells.refused]
        return fields, refused

    def _finite(self, name: str, cells: Cells, outputs: Mapping[str, pa.Array]) -> Cells:
        """Refuse the cells of a field that are not finite, though its outputs are."""
        wrong = _not_finite(cells.values)
        if wrong is None:
            return cells
        for output in self.manifest.outputs_for([name]):
            meant = _not_finite(outputs[output])
            wrong = wrong if meant is None else wrong & ~meant
        message = "NaN or infinite, which steps computed from finite numbers"
        return cells.refuse(wrong, "not_finite", message)


def _not_finite(values: pa.Array) -> np.ndarray | None:
    """Return which rows have a number that is NaN or infinite, bool [rows]; None if none has."""
    items = values
    while pa.types.is_fixed_size_list(items.type):
        items, _ = flat(items)
    if not pa.types.is_floating(items.type) or not len(values):
        return None
    finite = np.isfinite(items.to_numpy(zero_copy_only=False))
    if np.count_nonzero(finite) == finite.size:
        return None
    return ~finite.reshape(len(values), -1).all(axis=1) & as_mask(values.is_valid())


def _read(values: pa.Array, raw: str) -> Cells:
    """Return the cells of a column; text stays a dictionary if it has fewer values than rows."""
    if raw == "string" and pa.types.is_dictionary(values.type):
        known = values.dictionary
        if is_text(known.type) and len(known) < len(values):
            return Cells(pa.DictionaryArray.from_arrays(values.indices, known.cast(pa.string())))
    return read_column(values, raw)


def _blamed(refused: Refused, chain: Chain, columns: Mapping[str, Cells]) -> Iterator[Refused]:
    """Yield the refusal of null for each column that a chain reads, where that column is null."""
    rows = refused.rows
    for name in chain.names:
        missing = as_mask(columns[name].values.is_null())[rows]
        if missing.any():
            yield replace(refused, rows=rows[missing], column=name)
        rows = rows[~missing]
    if len(rows):
        yield replace(refused, rows=rows, column=chain.start)


def golden_tensors(
    manifest: Manifest, golden: GoldenRows, preparation: Preparation | None
) -> list[np.ndarray]:
    """Return the tensors of known-good rows, one array per input.

    Args:
        manifest: The manifest of the model.
        golden: The known-good rows.
        preparation: The steps of the manifest, which raw rows need.

    Raises:
        ContractBroken: A raw row cannot be prepared.
    """
    if not golden.rows or preparation is None:
        return [np.asarray(golden.inputs[spec.name], dtype=spec.dtype) for spec in manifest.inputs]
    tensors, refused = preparation.tensors(golden.rows)
    for some in refused:
        raise ContractBroken(
            f"model {manifest.name}: known-good row {some.rows[0]} cannot be prepared: column "
            f"{some.column}: {some.message}; package the model again"
        )
    if manifest.functions:
        _check_alone(manifest, golden.rows, tensors, preparation)
    return tensors


def _check_alone(
    manifest: Manifest,
    rows: Sequence[Mapping[str, Any]],
    together: Sequence[np.ndarray],
    preparation: Preparation,
) -> None:
    """Raise ContractBroken if a user's function gives a row another value when it is alone."""
    for number in range(len(rows)):
        tensors, refused = preparation.tensors(rows[number : number + 1])
        for spec, alone, whole in zip(manifest.inputs, tensors, together, strict=True):
            if refused or not manifest.tolerance.agree(alone[0], whole[number]).all():
                raise ContractBroken(
                    f"model {manifest.name}: input {spec.name} of known-good row {number} has "
                    "other values in a batch of its own: the value that a function returns for a "
                    "row must not depend on other rows; the functions are "
                    f"{', '.join(manifest.functions)}"
                )


def _numbers(cells: Cells, dtype: str) -> tuple[np.ndarray, list[Refused]]:
    """Return the numbers of cells [rows, items], with all refusals of the cells."""
    array, size, refused = cells.values, 1, list(cells.refused)
    is_vector = kind_of(array.type) is Kind.VECTOR
    if is_vector:
        if array.null_count:
            rows = np.flatnonzero(np.asarray(array.is_null()))
            refused.append(Refused(rows, "null", "null"))
        array, size = flat(array)
    numbers, state = read_cells(array, dtype)
    if state is None:
        return numbers.reshape(-1, size), refused
    of_row = state.reshape(-1, size)
    expected = "a number"
    if not dtype.startswith("float"):
        low, high = limits(dtype)
        expected = f"{dtype}, an integer from {low} to {high}"
    for found, reason, message in (
        (NULL, "null", "null"),
        (NAN, "not_finite", "NaN"),
        (INFINITE, "not_finite", f"infinite, or outside the range of {dtype}"),
        (WRONG, "wrong_type", f"expected {expected}, got another number"),
    ):
        rows = np.flatnonzero((of_row == found).any(axis=1))
        if len(rows):
            refused.append(Refused(rows, reason, message))
    return numbers.reshape(-1, size), refused
