"""Instances of a request to the model's arrays, judged by the same rules as a worker's rows.

An instance is a list of the features in order (for a model of one input) or an object by
name. Requests of plain numbers are judged all at once; others row by row, by the functions
of the pipelines, which also say what is wrong.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from operator import itemgetter
from typing import Any

import numpy as np
import pyarrow as pa

from common.errors import suggest
from common.record_batch import INPUTS, ROW_ID, source_batch, struct_columns
from model_handlers.manifest import InputSpec, Manifest
from model_handlers.unique_keys import Doubled, doubled_key, doubled_text, load_marked
from transforms.dead_letters import Fault
from transforms.json_rows.row_format import RowFormat, build_columns, read_row
from transforms.json_rows.values import count_key_ends
from transforms.validate import VECTOR_COLUMN, validate

_NUMBERS = {float, int}


def unique_instances(request: dict[str, Any], body: bytes) -> list[Any]:
    """A request and its JSON -> its instances, with a Fault for each that has a key twice.

    Raises ValueError for a key twice outside the instances.
    """
    instances: list[Any] = request["instances"]
    objects = [one for one in (request, request.get("parameters"), *instances) if type(one) is dict]
    keys = sum(map(len, objects))
    if count_key_ends([body], keys) <= keys:
        return instances
    try:
        marked = load_marked(body)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    twins = [] if isinstance(marked, Doubled) else marked.pop("instances")
    if (key := doubled_key(marked)) is not None:
        raise ValueError(doubled_text(key))
    doubled = map(doubled_key, twins)
    return [
        one if key is None else Fault("duplicate_key", doubled_text(key))
        for one, key in zip(instances, doubled, strict=True)
    ]


@dataclass
class BadInstances(Exception):
    """Rows of a request that the model cannot take: index -> what is wrong, in order."""

    faults: dict[int, Fault]


class InstanceReader:
    """Reads the instances of a model: what can be known before the first request is known."""

    def __init__(self, manifest: Manifest) -> None:
        self._manifest = manifest
        self._format = RowFormat(manifest)
        self._known = {*manifest.features, *([VECTOR_COLUMN] if self._format.vector else [])}
        first = manifest.inputs[0]
        numbers = first.dtype.startswith("float") and bool(first.shape)
        self._plain = first if self._format.vector and numbers else None
        # Of one name, itemgetter gives no tuple.
        self._take = itemgetter(*first.columns) if len(first.columns) > 1 else None

    def read(self, instances: Sequence[Any]) -> list[np.ndarray]:
        """One or more instances -> an array an input, [rows, width] or [rows], of its dtype.

        Raises BadInstances with every row at fault.
        """
        if self._plain is not None:
            values = self._plain_values(instances, self._plain)
            if values is not None and (matrix := _matrix(values, self._plain)) is not None:
                return [matrix]
        return self._judge(instances)

    def _plain_values(self, instances: Sequence[Any], spec: InputSpec) -> list[Any] | None:
        """Instances that are all lists, or all objects, of the right names -> their values."""
        kinds, lengths = set(map(type, instances)), set[int]()
        if kinds in ({list}, {dict}):
            lengths = set(map(len, instances))
        if kinds == {list} and lengths == {spec.width}:
            return list(chain.from_iterable(instances))
        if kinds == {dict} and lengths == {len(spec.columns)} and self._take is not None:
            try:
                return list(chain.from_iterable(map(self._take, instances)))
            except KeyError:
                return None
        return None

    def _judge(self, instances: Sequence[Any]) -> list[np.ndarray]:
        """The same, row by row."""
        read = [self._read_one(instance) for instance in instances]
        faults = {i: row for i, row in enumerate(read) if isinstance(row, Fault)}
        good = [i for i in range(len(read)) if i not in faults]
        if not good:
            raise BadInstances(faults)
        columns = build_columns([read[i] for i in good], [{}] * len(good), self._format)
        ids = pa.array([str(i) for i in good])
        batch, bad, found = validate(source_batch(ids, pa.record_batch(columns)), self._manifest)
        faults |= dict(zip(map(int, bad.column(ROW_ID).to_pylist()), found, strict=True))
        if faults:
            raise BadInstances(dict(sorted(faults.items())))
        inputs = struct_columns(batch, INPUTS)
        return [_array(inputs[spec.name], spec) for spec in self._manifest.inputs]

    def _read_one(self, instance: Any) -> Any:
        """One instance -> its features, or the Fault that it has."""
        row = self._named(instance) if isinstance(instance, list) else instance
        if isinstance(row, dict) and (unknown := [name for name in row if name not in self._known]):
            text = f"unknown feature {unknown[0][:40]!r}{suggest(unknown[0], self._known)}"
            more = f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""
            return Fault("unknown_feature", f"{text}{more}", "")
        return read_row(row, self._format)

    def _named(self, instance: list[Any]) -> dict[str, Any] | Fault:
        """The features in order -> the same by name, or the Fault that it has."""
        spec = self._manifest.inputs[0]
        if not self._format.vector:
            inputs = len(self._manifest.inputs)
            message = f"expected an object by name, since the model has {inputs} inputs; got a list"
            return Fault("not_an_object", message)
        if len(instance) != spec.width:
            return Fault("wrong_width", f"expected {spec.width} values, got {len(instance)}")
        if spec.is_list_column:
            return {spec.columns[0]: instance}
        return dict(zip(spec.columns, instance, strict=True))


def _matrix(values: list[Any], spec: InputSpec) -> np.ndarray | None:
    """Values of all rows -> [rows, width]; None unless each is a number that fits."""
    if not set(map(type, values)) <= _NUMBERS:
        return None
    try:
        # By way of float64, as a worker reads JSON.
        with np.errstate(over="ignore"):
            matrix = np.array(values, np.float64).astype(spec.dtype, copy=False)
    except OverflowError:
        return None
    return matrix.reshape(-1, spec.width) if np.isfinite(matrix).all() else None


def _array(column: pa.Array, spec: InputSpec) -> np.ndarray:
    """A validated input column -> its values."""
    flat = column.flatten() if spec.shape else column
    values = flat.to_numpy(zero_copy_only=False)
    return values.reshape(-1, spec.width) if spec.shape else values
