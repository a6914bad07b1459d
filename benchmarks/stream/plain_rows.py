"""A stream with plain Python rows instead of record batches: what a second element type could save.

It does the least that a step from messages to the JSON of their scores must do. It has no dead
letters, no types but floats and no metrics, and it reads no columns besides those of the model.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import apache_beam as beam
import numpy as np
import orjson
from apache_beam.transforms.window import GlobalWindow
from apache_beam.utils.windowed_value import WindowedValue

from model_handlers.run_model import run_model
from model_handlers.torch_model import TorchModelHandler
from transforms.messages.message import parse_message
from transforms.provenance import Provenance, utc_now
from transforms.row_schemas import LINEAGE, SCORE


class PlainRows(beam.DoFn):
    """A DoFn that scores messages and returns JSON objects, without a record batch.

    Args:
        handler: The handler of a model with one input.
        provenance: The run and the model, for the lineage of a row.
        size: How many messages the model gets at once.
    """

    def __init__(self, handler: TorchModelHandler, provenance: Provenance, size: int) -> None:
        self._handler, self._size = handler, size
        self._lineage = {name: getattr(provenance, name) for name in LINEAGE[:-1]}
        self._waiting: list[bytes] = []

    def setup(self) -> None:
        """Load the model."""
        self._model = self._handler.load_model()

    def process(self, element: bytes) -> Iterable[bytes]:
        """Return the objects of the messages that wait, if there are enough."""
        self._waiting.append(element)
        return self._score() if len(self._waiting) >= self._size else ()

    def finish_bundle(self) -> Iterator[Any]:
        """Yield the objects of the last messages."""
        if self._waiting:
            for row in self._score():
                yield WindowedValue(row, 0, [GlobalWindow()])

    def _score(self) -> list[bytes]:
        messages, self._waiting = [parse_message(raw) for raw in self._waiting], []
        (spec,) = self._handler.manifest.inputs
        rows = [orjson.loads(message.data) for message in messages]
        matrix = np.array([[row[name] for name in spec.columns] for row in rows], spec.dtype)
        if not np.isfinite(matrix).all():
            raise ValueError("expected finite numbers")
        arrays = run_model(self._model, [matrix], len(rows)).arrays
        score = self._handler.manifest.score_output
        names = [SCORE if o.name == score else o.name for o in self._model.outputs]
        now = utc_now()
        return [
            orjson.dumps(
                {"row_id": message.message_id}
                | dict(zip(names, values, strict=True))
                | self._lineage
                | {"scored_at": now, "received_at": now, "message_id": message.message_id}
            )
            for message, values in zip(
                messages, zip(*(array.tolist() for array in arrays), strict=True), strict=True
            )
        ]
