"""Names in --id_column and --output_fields that no row of a stream has had."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from threading import Lock

import pyarrow as pa
import pyarrow.compute as pc

from common.record_batch import MESSAGE, ROW_ID, SOURCE, struct_columns

logger = logging.getLogger("millrace")

# A step warns of names that none of so many rows had. A field may be absent in some rows.
FIRST_ROWS = 100

_lock = Lock()
_warned: set[str] = set()


def still_unseen(names: Mapping[str, str], batch: pa.RecordBatch) -> dict[str, str]:
    """Return those names that no row of a batch has.

    Args:
        names: The names, and the flag that names each.
        batch: The decoded rows of messages. Dead letters have no names.
    """
    if SOURCE not in batch.schema.names:
        return dict(names)
    return {
        name: flag
        for name, flag in names.items()
        if not (_has_own_ids(batch) if flag == "id_column" else _has(batch, name))
    }


def _has_own_ids(batch: pa.RecordBatch) -> bool:
    """Return whether any row has an id that is not derived from its message."""
    own, derived = batch.column(ROW_ID), struct_columns(batch, MESSAGE)["message_id"]
    # Several rows of one message are numbered.
    first = pc.replace_substring_regex(own, r"-\d+$", "")
    differ = pc.and_(pc.not_equal(own, derived), pc.not_equal(first, derived))
    return bool(pc.any(differ).as_py())


def _has(batch: pa.RecordBatch, name: str) -> bool:
    """Return whether any row has a value in a column of its source."""
    column = struct_columns(batch, SOURCE).get(name)
    return column is not None and column.null_count < len(column)


def unseen_texts(names: Mapping[str, str]) -> list[str]:
    """Return a warning for each name that a flag names and that no row has had.

    Args:
        names: The names, and the flag that names each.
    """
    fate = {"id_column": "rows get the ids of their messages", "output_fields": "it is null"}
    return [
        f"--{flag}: no row so far has a field {name!r}, so {fate[flag]}; check the name"
        for name, flag in names.items()
    ]


class FirstRows:
    """The first rows that one step of a worker reads, which should show the names in flags.

    Args:
        names: The names, and the flag that names each.
    """

    def __init__(self, names: Mapping[str, str]) -> None:
        self._names, self._rows = dict(names), 0

    def look_at(self, batch: pa.RecordBatch) -> None:
        """Log a warning, once per process, if the first rows lack a name.

        Args:
            batch: The next rows, or dead letters.
        """
        if not self._names or SOURCE not in batch.schema.names:
            return
        self._names = still_unseen(self._names, batch)
        self._rows += batch.num_rows
        if self._rows < FIRST_ROWS:
            return
        with _lock:
            new = [text for text in unseen_texts(self._names) if text not in _warned]
            _warned.update(new)
        self._names = {}
        for text in new:
            logger.warning("%s", text)
