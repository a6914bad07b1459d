"""Turn the instances of a request into arrays, with the checks that pipelines apply to rows.

An instance is an object with the features by name or, if the model has one input, a list of the
features in order. A request of plain numbers is checked as one array. Any other request is checked
row by row with the functions of the pipelines, which also say what is wrong.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import chain
from operator import itemgetter
from typing import Any

import numpy as np
import orjson
import pyarrow as pa

from common.errors import suggest
from common.record_batch import INPUTS, ROW_ID, source_batch, struct_columns
from model_handlers.manifests.manifest import InputSpec, Manifest
from model_handlers.manifests.unique_keys import Doubled, doubled_key, doubled_text, load_marked
from model_handlers.preparation import Preparation
from transforms.dead_letters import Fault
from transforms.json_rows.row_columns import read_rows
from transforms.json_rows.row_format import RowFormat
from transforms.json_rows.values import count_key_ends, json_type
from transforms.source_columns import VECTOR_COLUMN
from transforms.validate import validate

_NUMBERS = {float, int}


def unique_instances(request: dict[str, Any], body: bytes) -> list[Any]:
    """Return the instances of a request, with a Fault in place of each that repeats a key.

    Args:
        request: The decoded body of the request.
        body: The same body as JSON text, in which duplicate keys can still be found.

    Returns:
        The instances in order.

    Raises:
        ValueError: If a key is repeated outside the instances, or the JSON is nested too deeply.
    """
    instances: list[Any] = request["instances"]
    objects = [one for one in (request, request.get("parameters"), *instances) if type(one) is dict]
    keys = sum(map(len, objects))
    if count_key_ends([body], keys) <= keys:
        return instances
    try:
        marked = load_marked(body)
    except RecursionError as error:
        raise ValueError("the request is nested too deeply") from error
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
    """The rows of a request that the model cannot take.

    Attributes:
        faults: The fault of each of these rows, by the row's index in the request, in order.
    """

    faults: dict[int, Fault]


class RawInstances(list[Any]):
    """The instances of a request, before their preparation."""


def split_keys(
    instances: Sequence[Any], keys: Sequence[str], features: Collection[str]
) -> tuple[Sequence[Any], dict[str, list[bytes]]]:
    """Separate the fields that are copied to the predictions from the features of instances.

    Args:
        instances: The instances of a request.
        keys: The names of the fields to copy.
        features: The names of the features. A field that is a feature stays in its instance.

    Returns:
        The instances without the fields, or the Fault of an instance whose field cannot be copied
        exactly; and the JSON text of each row's value by field, null if the instance lacks it.
        Fields that no instance has are left out.
    """
    present = [k for k in keys if any(isinstance(one, dict) and k in one for one in instances)]
    if not present:
        return instances, {}
    own = [key for key in present if key not in features]
    texts: dict[str, list[bytes]] = {key: [] for key in present}
    rest = []
    for one in instances:
        values = one if isinstance(one, dict) else {}
        fault = next((f for key in own if (f := _key_fault(key, values.get(key)))), None)
        for key in present:
            texts[key].append(b"null" if fault else orjson.dumps(values.get(key)))
        kept = {name: value for name, value in values.items() if name not in own}
        rest.append(fault or (kept if isinstance(one, dict) else one))
    return rest, texts


def _key_fault(key: str, value: Any) -> Fault | None:
    """Return the Fault of a field that cannot be copied exactly: a float may be a large integer."""
    if value is None or isinstance(value, str | int):
        return None
    expected = "expected a string or an integer of 64 bits"
    return Fault("wrong_type", f"key {key}: {expected}, got {json_type(value)}", key)


class InstanceReader:
    """A reader of the instances for one model.

    It prepares everything that does not depend on a request.

    Args:
        manifest: The manifest of the model.
        preparation: The steps of the manifest, if it has any.

    Attributes:
        features: The names of the columns that the model needs.
    """

    def __init__(self, manifest: Manifest, preparation: Preparation | None = None) -> None:
        self._manifest, self._preparation = manifest, preparation
        self.features = manifest.features
        self._format = RowFormat(manifest)
        self._known = {*manifest.features, *([VECTOR_COLUMN] if self._format.vector else [])}
        first = manifest.inputs[0]
        numbers = first.dtype.startswith("float") and bool(first.shape)
        self._plain = first if self._format.vector and numbers else None
        # With a single name, itemgetter would not return a tuple.
        self._take = itemgetter(*first.columns) if len(first.columns) > 1 else None

    @property
    def prepares(self) -> bool:
        """Whether instances go through steps, which `read_each` runs for several requests."""
        return self._manifest.has_steps

    def read_each(self, requests: Sequence[Sequence[Any]]) -> list[list[np.ndarray] | BadInstances]:
        """Return the input arrays of each request, or its bad rows; all are read together."""
        arrays, good, faults = self._split([*chain.from_iterable(requests)])
        read: list[list[np.ndarray] | BadInstances] = []
        start = 0
        for request in requests:
            end = start + len(request)
            own = {i - start: fault for i, fault in faults.items() if start <= i < end}
            first, last = np.searchsorted(good, (start, end))
            read.append(BadInstances(own) if own else [array[first:last] for array in arrays])
            start = end
        return read

    def read(self, instances: Sequence[Any]) -> list[np.ndarray]:
        """Return the model's input arrays for one or more instances.

        Returns:
            One array per input, `[rows, width]` or `[rows]`, of the input's dtype.

        Raises:
            BadInstances: If any row is bad; it lists all of them.
        """
        if self._plain is not None:
            values = self._plain_values(instances, self._plain)
            if values is not None and (matrix := _matrix(values, self._plain)) is not None:
                return [matrix]
        return self._judge(instances)

    def _plain_values(self, instances: Sequence[Any], spec: InputSpec) -> list[Any] | None:
        """Return the values of instances that are all complete lists, or all complete objects.

        None for all other instances.
        """
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
        """Do the same as `read`, row by row."""
        arrays, _, faults = self._split(instances)
        if faults:
            raise BadInstances(faults)
        return arrays

    def _split(
        self, instances: Sequence[Any]
    ) -> tuple[list[np.ndarray], Sequence[int], dict[int, Fault]]:
        """Return the arrays of the good rows, their numbers, and the faults of the others.

        The functions of the pipelines judge the rows.
        """
        read = read_rows([self._read_one(instance) for instance in instances], self._format)
        if not read.good:
            return [], [], read.faults
        ids = pa.array([str(i) for i in read.good])
        source = source_batch(ids, pa.record_batch(read.columns))
        batch, bad, found = validate(source, self._manifest, preparation=self._preparation)
        faults = read.faults | dict(
            zip(map(int, bad.column(ROW_ID).to_pylist()), found, strict=True)
        )
        inputs = struct_columns(batch, INPUTS)
        arrays = [_array(inputs[spec.name], spec) for spec in self._manifest.inputs]
        return arrays, [i for i in read.good if i not in faults], dict(sorted(faults.items()))

    def _read_one(self, instance: Any) -> Any:
        """Return the features of one instance by name, or its Fault."""
        row = self._named(instance) if isinstance(instance, list) else instance
        if isinstance(row, dict) and (unknown := [name for name in row if name not in self._known]):
            text = f"unknown feature {unknown[0][:40]!r}{suggest(unknown[0], self._known)}"
            more = f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""
            return Fault("unknown_feature", f"{text}{more}", "")
        return row

    def _named(self, instance: list[Any]) -> dict[str, Any] | Fault:
        """Return the features of a list by name, or its Fault."""
        spec = self._manifest.inputs[0]
        if not self._format.vector:
            why = f"the model has {len(self._manifest.inputs)} inputs"
            if self._manifest.has_steps:
                why = "the model takes raw columns"
            message = f"expected an object with features by name, got a list: {why}"
            return Fault("not_an_object", message)
        if len(instance) != spec.width:
            return Fault("wrong_width", f"expected {spec.width} values, got {len(instance)}")
        if spec.is_list_column:
            return {spec.columns[0]: instance}
        return dict(zip(spec.columns, instance, strict=True))


def _matrix(values: list[Any], spec: InputSpec) -> np.ndarray | None:
    """Return the values as `[rows, width]`, or None unless each is a number that fits the dtype."""
    if not set(map(type, values)) <= _NUMBERS:
        return None
    try:
        # Via float64, so that the numbers are rounded as when a worker reads JSON.
        with np.errstate(over="ignore"):
            matrix = np.array(values, np.float64).astype(spec.dtype, copy=False)
    except OverflowError:
        return None
    return matrix.reshape(-1, spec.width) if np.isfinite(matrix).all() else None


def _array(column: pa.Array, spec: InputSpec) -> np.ndarray:
    """Return the values of a validated input column as an array."""
    flat = column.flatten() if spec.shape else column
    values = flat.to_numpy(zero_copy_only=False)
    return values.reshape(-1, spec.width) if spec.shape else values
