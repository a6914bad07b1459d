"""A cache of predictions, whose keys are the bytes of the rows' inputs."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence

import numpy as np

from model_handlers.manifests.manifest import OutputSpec


class PredictionCache:
    """A least-recently-used cache of the predictions of one model; safe to use from many threads.

    Args:
        outputs: The outputs of a prediction.
        rows: The maximum number of rows to keep.
    """

    def __init__(self, outputs: Sequence[OutputSpec], rows: int) -> None:
        # The outputs of a row are packed into one value, far smaller than an object per output.
        self._dtype = np.dtype([(f"f{i}", o.dtype, o.shape) for i, o in enumerate(outputs)])
        self._rows, self._lock = rows, threading.Lock()
        self._kept: OrderedDict[bytes, bytes] = OrderedDict()

    def find(self, keys: Sequence[bytes]) -> tuple[np.ndarray, list[np.ndarray]]:
        """Look up rows.

        Args:
            keys: The key of each row, from `row_keys`.

        Returns:
            The numbers of the rows that were found, and one array per output with their values.
        """
        rows, values = [], []
        with self._lock:
            for row, key in enumerate(keys):
                value = self._kept.get(key)
                if value is not None:
                    self._kept.move_to_end(key)
                    rows.append(row)
                    values.append(value)
        found = np.frombuffer(b"".join(values), self._dtype)
        columns = [np.ascontiguousarray(found[name]) for name in self._dtype.names or ()]
        return np.array(rows, np.intp), columns

    def keep(self, keys: Sequence[bytes], outputs: Sequence[np.ndarray]) -> None:
        """Add the predictions of rows, except rows in which an output is NaN.

        Args:
            keys: The key of each row, from `row_keys`.
            outputs: One array `[rows, *shape]` per output.
        """
        table = np.empty(len(keys), self._dtype)
        for name, array in zip(self._dtype.names or (), outputs, strict=True):
            table[name] = array
        values = _split(table.tobytes(), len(keys))
        for row in rows_with_gaps(outputs).tolist():
            values[row] = b""
        with self._lock:
            for key, value in zip(keys, values, strict=True):
                if value:
                    self._kept[key] = value
                    self._kept.move_to_end(key)
            while len(self._kept) > self._rows:
                self._kept.popitem(last=False)


def row_keys(arrays: Sequence[np.ndarray]) -> list[bytes]:
    """Return the key of each row: the bytes of its inputs.

    Args:
        arrays: One array `[rows, ...]` per input, always in the same order.
    """
    columns = [_split(array.tobytes(), len(array)) for array in arrays]
    if len(columns) == 1:
        return columns[0]
    return [b"".join(parts) for parts in zip(*columns, strict=True)]


def rows_with_gaps(outputs: Sequence[np.ndarray]) -> np.ndarray:
    """Return the numbers of the rows in which an output is NaN.

    Args:
        outputs: One array `[rows, ...]` per output.
    """
    missing: np.ndarray | None = None
    for array in outputs:
        if array.dtype.kind == "f" and (gaps := np.isnan(array)).any():
            by_row = gaps.reshape(len(array), -1).any(axis=1)
            missing = by_row if missing is None else missing | by_row
    return np.empty(0, np.intp) if missing is None else np.flatnonzero(missing)


def _split(data: bytes, rows: int) -> list[bytes]:
    """Split the bytes of rows of equal size into the bytes of each row."""
    size = len(data) // max(rows, 1)
    return [data[start : start + size] for start in range(0, len(data), size or 1)]
