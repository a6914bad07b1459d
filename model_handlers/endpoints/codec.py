"""Encode arrays as prediction requests in Vertex AI's JSON format, and decode the answers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any, Literal, get_args

import msgspec
import numpy as np
import orjson

from cloud.endpoint_responses import BadAnswer, error_text
from common.command_names import as_typed
from common.errors import UsageError
from model_handlers.endpoints.numpy_json import dump_objects, dump_rows, member_reader, read_array
from model_handlers.manifests.manifest import InputSpec, Manifest, OutputSpec
from model_handlers.manifests.unique_keys import doubled_key, doubled_text, load_marked

InstanceFormat = Literal["list", "named"]
# The name of the score in the answers of the reference's container.
SCORE_KEY = "anomaly_score"


class FewerOutputs(BadAnswer):
    """An answer with fewer outputs than are needed, from a server that may return them if asked."""


@dataclass(frozen=True)
class EndpointCodec:
    """The JSON format of the requests to an endpoint and of its answers.

    Attributes:
        manifest: The manifest of the model.
        outputs: The outputs to decode.
        instance_format: `list` to send each row as a list of its features in order, or `named` to
            send an object with the names of the columns as keys. An input that is read by steps has
            one key, its name.
        parameters: The `parameters` of every request, as the text of a JSON object; None for none.

    Raises:
        UsageError: A value is invalid, or the format cannot represent the model's inputs.
    """

    manifest: Manifest
    outputs: tuple[OutputSpec, ...]
    instance_format: InstanceFormat = "list"
    parameters: str | None = None

    def __post_init__(self) -> None:
        if self.instance_format not in get_args(InstanceFormat):
            raise UsageError(f"instance_format must be list or named, got {self.instance_format}")
        if self.instance_format == "list" and len(self.manifest.inputs) > 1:
            raise UsageError(
                f"model {self.manifest.name} has {len(self.manifest.inputs)} inputs: use "
                "--instance_format named"
            )
        if self.parameters is not None:
            try:
                is_object = isinstance(orjson.loads(self.parameters), dict)
            except orjson.JSONDecodeError:
                is_object = False
            if not is_object:
                raise UsageError("--endpoint_parameters must be a JSON object")
            if (key := doubled_key(load_marked(self.parameters))) is not None:
                raise UsageError(f"--endpoint_parameters: {doubled_text(key)}")

    def encode(self, arrays: Sequence[np.ndarray], rows: slice | np.ndarray) -> bytes:
        """Return the body of a request for some rows.

        Args:
            arrays: One array per input, `[rows, width]` or `[rows]`.
            rows: The rows of the arrays to send.
        """
        return self.body(self.instances(arrays, rows))

    def instances(self, arrays: Sequence[np.ndarray], rows: slice | np.ndarray) -> bytes:
        """Return the JSON list of some rows; see `encode`."""
        parts = [array[rows] for array in arrays]
        if self.instance_format == "list":
            return dump_rows(parts[0].reshape(-1, *self.manifest.inputs[0].shape))
        named = [
            pair
            for array, spec in zip(parts, self.manifest.inputs, strict=True)
            for pair in tensor_columns(array, spec)
        ]
        return dump_objects([name for name, _ in named], [column for _, column in named])

    def body(self, instances: bytes) -> bytes:
        """Return the body of a request for the rows in a JSON list."""
        if self.parameters is None:
            return b'{"instances":%b}' % instances
        return b'{"instances":%b,"parameters":%b}' % (instances, self.parameters.encode())

    def decode(self, body: bytes, rows: int) -> list[np.ndarray]:
        """Return the predictions in an answer.

        Args:
            body: The body of the answer.
            rows: The number of rows in the request.

        Returns:
            One array `[rows, *shape]` per output; null becomes NaN.

        Raises:
            BadAnswer: The answer does not contain one valid prediction per row.
        """
        arrays = self._decode_objects(body, rows)
        if arrays is not None:
            return arrays
        predictions = _predictions(body)
        if len(predictions) != rows:
            raise BadAnswer(f"expected {rows} predictions, got {len(predictions)}")
        return [self._read(spec, predictions) for spec in self.outputs]

    def _decode_objects(self, body: bytes, rows: int) -> list[np.ndarray] | None:
        """Decode predictions that are objects with all requested outputs; None for other answers.

        Reading 2 of 13 outputs takes a third of the time of reading all.
        """
        score = self.manifest.score_output
        # The manifest's name for the score takes precedence if it occurs anywhere in the answer.
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
        if array is None and not spec.shape:
            # Servers also wrap one number into two lists.
            wrapped = read_array(values, spec.dtype, (1, 1))
            array = None if wrapped is None else wrapped.reshape(-1)
        if array is None:
            expected = f"{spec.dtype} {list(spec.shape)}" if spec.shape else spec.dtype
            wrong = next(
                value for value in values if read_array([value], spec.dtype, spec.shape) is None
            )
            raise BadAnswer(f"output {spec.name!r}: expected {expected}, got {_shown(wrong)}")
        return array

    def _values(self, spec: OutputSpec, predictions: Sequence[Any]) -> Sequence[Any]:
        """Return an output's value in each prediction; the prediction may be the value itself."""
        if {*map(type, predictions)} != {dict}:
            if len(self.manifest.outputs) == 1:
                return predictions
            raise BadAnswer(
                f"expected each prediction to be an object with {self._wanted()}, got "
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
        fault = (
            f"expected each prediction to have {self._wanted()}, got one with "
            f"{', '.join(map(repr, odd))[:100] or 'nothing'}"
        )
        # Millrace's own server, and others of its kind, return only the score by default.
        if SCORE_KEY in odd:
            raise FewerOutputs(
                f"{fault}; {as_typed('serving')} returns all outputs if it runs with --outputs "
                """all, or with --endpoint_parameters '{"outputs":"all"}'"""
            )
        raise BadAnswer(fault)

    def _wanted(self) -> str:
        return ", ".join(repr(spec.name) for spec in self.outputs)


def _shown(value: Any) -> str:
    """Return the start of an unexpected value as JSON."""
    return json.dumps(value)[:60]


def tensor_columns(array: np.ndarray, spec: InputSpec) -> Sequence[tuple[str, np.ndarray]]:
    """Return the columns of an input's array, with their names.

    An input that is read by steps is one column with the name of the input.
    """
    if array.ndim == 1 or spec.is_list_column or spec.chains:
        return [(spec.columns[0] if spec.columns else spec.name, array)]
    return list(zip(spec.columns, array.T, strict=True))


def _predictions(body: bytes) -> list[Any]:
    """Return the predictions in the body of an answer. Raise BadAnswer if there are none."""
    try:
        answer = orjson.loads(body)
    except orjson.JSONDecodeError:
        try:
            # Servers in Python may write NaN, which is not valid JSON.
            answer = json.loads(body)
        except (ValueError, RecursionError):
            raise BadAnswer(f"expected JSON, got {error_text(body) or 'nothing'}") from None
    found = answer.get("predictions") if isinstance(answer, Mapping) else None
    if not isinstance(found, list):
        raise BadAnswer(f"expected predictions, got {error_text(body) or 'nothing'}")
    return found
