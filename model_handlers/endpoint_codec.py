"""Requests and answers of a prediction endpoint: JSON of Vertex AI's form, from and to arrays."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any, Literal, get_args

import msgspec
import numpy as np
import orjson

from cloud.endpoint_answers import BadAnswer, error_text
from common.command_names import as_typed
from common.errors import UsageError
from model_handlers.manifest import InputSpec, Manifest, OutputSpec
from model_handlers.numpy_json import dump_objects, dump_rows, member_reader, read_array
from model_handlers.unique_keys import doubled_key, doubled_text, load_marked

InstanceFormat = Literal["list", "named"]
# What the reference's container calls the score.
SCORE_KEY = "anomaly_score"


@dataclass(frozen=True)
class EndpointCodec:
    """How rows become a request, and an answer the model's outputs.

    outputs: the ones to bring back. instance_format: `list`, the features in order, or
    `named`, an object by column. parameters: of every request, JSON of an object.
    """

    manifest: Manifest
    outputs: tuple[OutputSpec, ...]
    instance_format: InstanceFormat = "list"
    parameters: str | None = None

    def __post_init__(self) -> None:
        if self.instance_format not in get_args(InstanceFormat):
            raise UsageError(f"instance_format: expected list or named, got {self.instance_format}")
        if self.instance_format == "list" and len(self.manifest.inputs) > 1:
            raise UsageError(
                f"model {self.manifest.name} has {len(self.manifest.inputs)} inputs: choose "
                "--instance_format named"
            )
        if self.parameters is not None:
            try:
                is_object = isinstance(orjson.loads(self.parameters), dict)
            except orjson.JSONDecodeError:
                is_object = False
            if not is_object:
                raise UsageError("--endpoint_parameters: expected an object of JSON")
            if (key := doubled_key(load_marked(self.parameters))) is not None:
                raise UsageError(f"--endpoint_parameters: {doubled_text(key)}")

    def encode(self, arrays: Sequence[np.ndarray], rows: slice | np.ndarray) -> bytes:
        """An array an input, [rows, width] or [rows], and which rows -> the request's body."""
        parts = [array[rows] for array in arrays]
        if self.instance_format == "list":
            instances = dump_rows(parts[0].reshape(-1, *self.manifest.inputs[0].shape))
        else:
            named = [
                pair
                for array, spec in zip(parts, self.manifest.inputs, strict=True)
                for pair in _columns(array, spec)
            ]
            instances = dump_objects([name for name, _ in named], [column for _, column in named])
        if self.parameters is None:
            return b'{"instances":%b}' % instances
        return b'{"instances":%b,"parameters":%b}' % (instances, self.parameters.encode())

    def decode(self, body: bytes, rows: int) -> list[np.ndarray]:
        """An answer and how many rows were asked for -> an array [rows, *shape] an output.

        Null and NaN are NaN. Raises BadAnswer for whatever is not one prediction a row.
        """
        arrays = self._decode_objects(body, rows)
        if arrays is not None:
            return arrays
        predictions = _predictions(body)
        if len(predictions) != rows:
            raise BadAnswer(f"expected {rows} predictions, got {len(predictions)}")
        return [self._read(spec, predictions) for spec in self.outputs]

    def _decode_objects(self, body: bytes, rows: int) -> list[np.ndarray] | None:
        """As decode, for objects of all outputs; None for any other answer.

        Of 13 outputs two take a third of the time of reading all.
        """
        score = self.manifest.score_output
        # The name goes before, whatever it names.
        key = score if score is None or f'"{score}"'.encode() in body else SCORE_KEY
        members = [
            (key if spec.name == score else spec.name, spec.dtype, len(spec.shape))
            for spec in self.outputs
        ]
        read = member_reader("predictions", tuple(members))
        try:
            columns = read(body) if read is not None else []
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return None
        arrays = [
            array
            for values, spec in zip(columns, self.outputs, strict=False)
            if len(values) == rows
            and (array := read_array(values, spec.dtype, spec.shape)) is not None
        ]
        return arrays if len(arrays) == len(members) else None

    def _read(self, spec: OutputSpec, predictions: Sequence[Any]) -> np.ndarray:
        values = self._values(spec, predictions)
        array = read_array(values, spec.dtype, spec.shape)
        if array is None:
            expected = f"{spec.dtype} {list(spec.shape)}" if spec.shape else spec.dtype
            wrong = next(
                value for value in values if read_array([value], spec.dtype, spec.shape) is None
            )
            raise BadAnswer(f"output {spec.name!r}: expected {expected}, got {_shown(wrong)}")
        return array

    def _values(self, spec: OutputSpec, predictions: Sequence[Any]) -> Sequence[Any]:
        """An output -> its value in each prediction: by name, or the prediction as it is."""
        if {*map(type, predictions)} != {dict}:
            if len(self.manifest.outputs) == 1:
                return predictions
            raise BadAnswer(
                f"expected predictions that are objects with {self._wanted()}, got "
                f"{_shown(next(one for one in predictions if not isinstance(one, dict)))}"
            )
        keys = [spec.name]
        if spec.name == self.manifest.score_output:
            keys.append(SCORE_KEY)
        for key in keys:
            try:
                return list(map(itemgetter(key), predictions))
            except KeyError:
                continue
        odd = next(one for one in predictions if spec.name not in one)
        # As our own server answers, and others of its kind, unless they are asked for more.
        advice = (
            f"; {as_typed('serving')} answers all outputs with --outputs all, or to "
            """--endpoint_parameters '{"outputs":"all"}'"""
        ) * (SCORE_KEY in odd)
        raise BadAnswer(
            f"expected predictions with {self._wanted()}, got one with "
            f"{', '.join(map(repr, odd))[:100] or 'nothing'}{advice}"
        )

    def _wanted(self) -> str:
        return ", ".join(repr(spec.name) for spec in self.outputs)


def _shown(value: Any) -> str:
    """What came in place of a prediction -> its beginning."""
    return json.dumps(value)[:60]


def _columns(array: np.ndarray, spec: InputSpec) -> Sequence[tuple[str, np.ndarray]]:
    """An input's array -> its columns by name."""
    if array.ndim == 1 or spec.is_list_column:
        return [(spec.columns[0], array)]
    return list(zip(spec.columns, array.T, strict=True))


def _predictions(body: bytes) -> list[Any]:
    """An answer's body -> its predictions. Raises BadAnswer."""
    try:
        answer = orjson.loads(body)
    except orjson.JSONDecodeError:
        try:
            # Python's servers write NaN, which is no JSON.
            answer = json.loads(body)
        except (ValueError, RecursionError):
            raise BadAnswer(f"expected JSON, got {error_text(body) or 'nothing'}") from None
    found = answer.get("predictions") if isinstance(answer, Mapping) else None
    if not isinstance(found, list):
        raise BadAnswer(f"expected predictions, got {error_text(body) or 'nothing'}")
    return found
