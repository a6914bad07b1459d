"""Steps that give lists of different lengths the same length."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from model_handlers.steps.step import (
    NUMBERS_FROM,
    Cells,
    Kind,
    Step,
    as_mask,
    kind_of,
    null_mask,
    refuse_cells,
    vectors,
)

Keep = Literal["first", "last"]
Side = Literal["end", "start"]


@dataclass(frozen=True)
class _Lists(Step):
    """A step on lists that limits them to `to` items.

    `keep` says which items of a longer list stay: `first` or `last`; without it, its row is
    refused. `side` says where a shorter list is extended: at its `end` or its `start`.
    """

    TAKES: ClassVar = (Kind.LIST,)
    REASONS: ClassVar[tuple[str, ...]] = ("too_long",)

    to: int
    keep: Keep | None = field(default=None, kw_only=True)
    side: Side = field(default="end", kw_only=True)

    def __post_init__(self) -> None:
        if not 1 <= self.to <= 1 << 20:
            self.refuse("to", "1 to 1,048,576", self.to)

    def _lengths(self, cells: Cells) -> tuple[Cells, np.ndarray]:
        """Refuse lists that are too long; return the lengths [rows], 0 for null."""
        lengths = np.asarray(pc.fill_null(pc.list_value_length(cells.values), 0))
        too_long = lengths > self.to
        if self.keep is None and too_long.any():
            message = f"expected a list of at most {self.to} items, got a longer one"
            cells = cells.refuse(too_long, "too_long", message)
            lengths = np.where(too_long, 0, lengths)
        return cells, lengths

    def _placed(self, lengths: np.ndarray) -> np.ndarray:
        """Return which places [rows, to] hold items."""
        # Comparisons of small integers are faster.
        used = np.minimum(lengths, self.to).astype(np.int32)[:, None]
        places = np.arange(self.to, dtype=np.int32)[None, :]
        return places < used if self.side == "end" else places >= self.to - used


@dataclass(frozen=True)
class Pad(_Lists):
    """Extends lists of numbers with `value` to `to` items, and shortens longer lists.

    A list with an item that is null is refused. `keep` says which items of a longer list stay,
    `first` or `last`; without it, its row is refused. `side` says where a shorter list is extended,
    at its `end` or its `start`.
    """

    NAME: ClassVar = "pad"
    GIVES: ClassVar = "vector of `to` numbers"
    REASONS: ClassVar = ("too_long", "null")

    value: float = 0.0

    def gives(self, type_: pa.DataType, *operands: pa.DataType) -> pa.DataType:
        """Return `to` numbers."""
        item = type_.value_type
        if kind_of(item) is not Kind.NUMBER:
            refuse_cells(self, "a list of numbers", type_, NUMBERS_FROM.get(kind_of(item)))
        whole = self.value.is_integer() and abs(self.value) < 2**63
        if not (pa.types.is_floating(item) or whole):
            self.refuse("value", "a whole number, because the items are integers", self.value)
        return pa.list_(item, self.to)

    def apply(self, cells: Cells, *operands: Cells) -> Cells:
        """Return the lists, all of the same length."""
        cells = self._without_nulls(cells)
        cells, lengths = self._lengths(cells)
        placed = self._placed(lengths)
        items = self._kept(cells.values, lengths)
        made = np.full(placed.shape, self.value, dtype=items.dtype)
        # The items that stay have the order of the places that they go to.
        made[placed] = items
        return cells.become(vectors(made, cells.values))

    def _kept(self, lists: pa.Array, lengths: np.ndarray) -> np.ndarray:
        """Return the items that stay, one list after the other."""
        if lengths.max(initial=0) <= self.to:
            return lists.flatten().to_numpy(zero_copy_only=False)
        used = np.minimum(lengths, self.to)
        starts = lists.offsets.to_numpy()[:-1]
        if self.keep == "last":
            starts = starts + lengths - used
        views = pa.ListViewArray.from_arrays(
            pa.array(starts, pa.int32()), pa.array(used, pa.int32()), lists.values
        )
        # This is many times faster than to select the items with NumPy.
        items = pc.list_slice(views, 0, self.to).values
        # A null list may have items that are null, which are not used.
        return (items.fill_null(0) if items.null_count else items).to_numpy(zero_copy_only=False)

    def _without_nulls(self, cells: Cells) -> Cells:
        """Refuse lists that have an item that is null."""
        lists = cells.values
        if not lists.values.null_count:
            return cells
        offsets = lists.offsets.to_numpy()
        before = np.concatenate([[0], np.cumsum(as_mask(lists.values.is_null()))])
        # A null list has no items, whatever its memory holds.
        rows = (before[offsets[1:]] > before[offsets[:-1]]) & as_mask(lists.is_valid())
        return cells.refuse(rows, "null", "expected a list without null, got an item that is null")


@dataclass(frozen=True)
class Mask(_Lists):
    """Returns 1 for each place in which `pad` with the same members puts an item, 0 for others."""

    NAME: ClassVar = "mask"
    GIVES: ClassVar = "vector of `to` numbers"

    def gives(self, type_: pa.DataType, *operands: pa.DataType) -> pa.DataType:
        """Return `to` numbers."""
        return pa.list_(pa.float64(), self.to)

    def apply(self, cells: Cells, *operands: Cells) -> Cells:
        """Return the mask of each list."""
        cells, lengths = self._lengths(cells)
        return cells.become(vectors(self._placed(lengths).astype(np.float64), cells.values))


@dataclass(frozen=True)
class Length(_Lists):
    """Returns how many items of a list `pad` with the same members keeps."""

    NAME: ClassVar = "length"
    GIVES: ClassVar = "integer"

    def gives(self, type_: pa.DataType, *operands: pa.DataType) -> pa.DataType:
        """Return int64."""
        return pa.int64()

    def apply(self, cells: Cells, *operands: Cells) -> Cells:
        """Return the length of each list."""
        cells, lengths = self._lengths(cells)
        used = np.minimum(lengths, self.to).astype(np.int64)
        return cells.become(pa.array(used, mask=null_mask(cells.values)))


LIST_STEPS = (Pad, Mask, Length)
