"""Predictions of rows that were asked for before, by the bytes of the rows' inputs."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence

import numpy as np

from model_handlers.manifest import OutputSpec


class PredictionCache:
    """The predictions of as many rows at most; those that were wanted longest ago go first.

    Of one model: whoever has another makes another. May be used by several threads.
    """

    def __init__(self, outputs: Sequence[OutputSpec], rows: int) -> None:
        # A row's outputs as one value of fixed size: far smaller than an object each.
        self._dtype = np.dtype([(f"f{i}", o.dtype, o.shape) for i, o in enumerate(outputs)])
        self._rows, self._lock = rows, threading.Lock()
        self._kept: OrderedDict[bytes, bytes] = OrderedDict()

    def find(self, keys: Sequence[bytes]) -> tuple[np.ndarray, list[np.ndarray]]:
        """A key a row -> the numbers of the rows that are here, and an array an output of them."""
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
        """A key a row, and an array an output -> they are kept, but for rows with gaps."""
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
    """An array [rows, ...] an input, the same inputs always -> the bytes of each row."""
    columns = [_split(array.tobytes(), len(array)) for array in arrays]
    if len(columns) == 1:
        return columns[0]
    return [b"".join(parts) for parts in zip(*columns, strict=True)]


def rows_with_gaps(outputs: Sequence[np.ndarray]) -> np.ndarray:
    """An array [rows, ...] an output -> the numbers of the rows in which any is NaN."""
    missing: np.ndarray | None = None
    for array in outputs:
        if array.dtype.kind == "f" and (gaps := np.isnan(array)).any():
            by_row = gaps.reshape(len(array), -1).any(axis=1)
            missing = by_row if missing is None else missing | by_row
    return np.empty(0, np.intp) if missing is None else np.flatnonzero(missing)


def _split(data: bytes, rows: int) -> list[bytes]:
    """The bytes of rows of one size -> each one's."""
    size = len(data) // max(rows, 1)
    return [data[start : start + size] for start in range(0, len(data), size or 1)]
