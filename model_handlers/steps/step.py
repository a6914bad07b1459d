"""What a step is: a function from a column to a column that a manifest names.

A step is a dataclass whose fields are its parameters. It says what it takes and gives, so that a
manifest is checked before any row is read. Steps work on whole Arrow arrays, never on single rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any, ClassVar, NoReturn

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from common.cells import is_list, is_text
from common.errors import ManifestError, UnsafeModel


class Kind(StrEnum):
    """What the cells of a column are, as far as steps care."""

    NUMBER = "number"
    TEXT = "text"
    TIME = "time"
    BYTES = "bytes"
    LIST = "list"
    VECTOR = "vector"
    OTHER = "other"


def kind_of(type_: pa.DataType) -> Kind:
    """Return the kind of a type. A vector is a list of as many numbers in each row."""
    if pa.types.is_fixed_size_list(type_):
        return Kind.VECTOR if _is_number(type_.value_type) else Kind.OTHER
    if is_list(type_):
        return Kind.OTHER if is_list(type_.value_type) else Kind.LIST
    if _is_number(type_):
        return Kind.NUMBER
    if is_text(type_):
        return Kind.TEXT
    if pa.types.is_timestamp(type_) or pa.types.is_date(type_):
        return Kind.TIME
    return Kind.BYTES if pa.types.is_binary(type_) else Kind.OTHER


def _is_number(type_: pa.DataType) -> bool:
    types = pa.types
    return bool(types.is_floating(type_) or types.is_integer(type_) or types.is_boolean(type_))


@dataclass(frozen=True, eq=False)
class Refused:
    """Cells that cannot be used, all for the same reason.

    Attributes:
        rows: The numbers of their rows, in order.
        reason: The reason of their dead letters.
        message: What was expected and what came, without the value.
        column: The column of the source, once it is known.
    """

    rows: np.ndarray
    reason: str
    message: str
    column: str = ""

    def part(self, rows: slice) -> Refused:
        """Return the refusals of a range of the rows, counted from its start."""
        inside = (self.rows >= rows.start) & (self.rows < rows.stop)
        return replace(self, rows=self.rows[inside] - rows.start)


@dataclass(frozen=True, eq=False)
class Cells:
    """The cells of a column on their way through steps.

    Attributes:
        values: The values [rows]. A cell that was refused is null.
        refused: The cells that cannot be used. The first entry of a row counts.
    """

    values: pa.Array
    refused: tuple[Refused, ...] = ()

    def become(self, values: pa.Array) -> Cells:
        """Return the cells with other values."""
        return Cells(values, self.refused)

    def refuse(self, cells: np.ndarray | pa.BooleanArray, reason: str, message: str) -> Cells:
        """Return the cells without some of them, which are null from now on.

        Args:
            cells: Whether to refuse each cell, bool [rows]; null means no.
            reason: The reason of the dead letters.
            message: What was expected and what came, without the value.
        """
        mask = cells if isinstance(cells, np.ndarray) else as_mask(cells)
        rows = np.flatnonzero(mask)
        if not len(rows):
            return self
        values = pc.if_else(pa.array(mask), pa.scalar(None, self.values.type), self.values)
        return Cells(values, (*self.refused, Refused(rows, reason, message)))

    def of(self, column: str) -> Cells:
        """Return the cells with the column named in refusals that do not have one."""
        named = (r if r.column else replace(r, column=column) for r in self.refused)
        return Cells(self.values, tuple(named)) if self.refused else self


def as_mask(cells: pa.BooleanArray) -> np.ndarray:
    """Return an Arrow array of booleans as NumPy's, with False for null."""
    return np.asarray(cells.fill_null(False) if cells.null_count else cells)


def null_mask(values: pa.Array) -> np.ndarray | None:
    """Return which values are null, bool [rows], or None if there are none."""
    return as_mask(values.is_null()) if values.null_count else None


# A step that is ready to run: it takes the cells and those of its operands.
Apply = Callable[..., Cells]


def _no_function(name: str, _: str | None) -> Callable[..., Any]:
    raise UnsafeModel(f"function {name} is code: pass its module in --trusted_modules")


@dataclass(frozen=True)
class Context:
    """What steps need besides their members.

    Attributes:
        files: The content of the files of the package, by name.
        load: A function that imports the user's function with a name such as `module:function`.
            It also gets the digest that the source of its module should have, or None.
    """

    files: Mapping[str, bytes] = field(default_factory=dict)
    load: Callable[[str, str | None], Callable[..., Any]] = _no_function


@dataclass(frozen=True)
class Step:
    """The base class of steps.

    A subclass is a frozen dataclass. Its fields are the members of the step in a manifest, and its
    docstring is its entry in the reference.

    Attributes:
        NAME: The name of the step in a manifest.
        TAKES: The kinds of cells that the step takes.
        GIVES: What it gives, for people.
        REASONS: The reasons for which it refuses cells.
        EACH: Whether the step treats the items of a list like cells.
    """

    NAME: ClassVar[str] = ""
    TAKES: ClassVar[tuple[Kind, ...]] = ()
    GIVES: ClassVar[str] = ""
    REASONS: ClassVar[tuple[str, ...]] = ()
    EACH: ClassVar[bool] = False

    @property
    def operands(self) -> tuple[str, ...]:
        """The other columns, outputs or fields whose cells the step takes."""
        return ()

    @property
    def files(self) -> tuple[str, ...]:
        """The files of the package that the step reads."""
        return ()

    @property
    def functions(self) -> tuple[str, ...]:
        """The functions of the user that the step calls."""
        return ()

    def gives(self, type_: pa.DataType, *operands: pa.DataType) -> pa.DataType:
        """Return the type of the result for cells of a type. Raise ManifestError if none."""
        raise NotImplementedError

    def bind(self, context: Context) -> Apply:
        """Return a function that runs the step; whatever takes long is done here.

        Args:
            context: The files of the package, and the user's functions.

        Raises:
            ManifestError: A file does not have the content that the step needs.
            ModelError: A function of the user cannot be imported.
        """
        return self.apply

    def apply(self, cells: Cells, *operands: Cells) -> Cells:
        """Return the result for each cell. Null stays null."""
        raise NotImplementedError

    def refuse(self, member: str, expected: str, got: Any, hint: str | None = None) -> NoReturn:
        """Raise ManifestError for a member with a value that is not allowed."""
        more = f": {hint}" if hint else ""
        raise ManifestError(
            f"step {self.NAME}: {member}: expected {expected}, got {shorten(_as_typed(got))}{more}"
        )


def refuse_cells(
    step: Step, expected: str, type_: pa.DataType, hint: str | None = None
) -> NoReturn:
    """Raise ManifestError because a step does not take cells of a type."""
    more = f": {hint}" if hint else ""
    raise ManifestError(f"step {step.NAME}: expected {expected}, got {words_for(type_)}{more}")


def words_for(type_: pa.DataType) -> str:
    """Return what cells of a type are, for messages."""
    if pa.types.is_fixed_size_list(type_) and kind_of(type_) is Kind.VECTOR:
        return f"a vector of {type_.list_size} numbers"
    if is_list(type_):
        return f"a list of {_ITEMS.get(kind_of(type_.value_type), 'lists')}"
    if pa.types.is_timestamp(type_):
        return "a datetime" if type_.tz is None else "a timestamp"
    return "a date" if pa.types.is_date(type_) else WORDS[kind_of(type_)]


def shorten(text: str) -> str:
    """Return a text for a message, cut if it is long."""
    return text if len(text) <= 80 else f"{text[:80]}..."


def _as_typed(got: Any) -> str:
    """Return a value of a manifest as its author may have typed it."""
    if isinstance(got, bool):
        return str(got).lower()
    if isinstance(got, float) and got.is_integer():
        return repr(int(got)) if abs(got) < 1e15 else repr(got)
    if isinstance(got, list | tuple):
        return f"[{', '.join(map(_as_typed, got))}]"
    return "nothing" if got is None else repr(got)


# What cells are, and how they become numbers, for messages.
WORDS = {
    Kind.NUMBER: "a number",
    Kind.TEXT: "text",
    Kind.TIME: "a time",
    Kind.BYTES: "bytes",
    Kind.LIST: "a list",
    Kind.VECTOR: "a vector of numbers",
    Kind.OTHER: "lists within lists",
}
_ITEMS = {Kind.NUMBER: "numbers", Kind.TEXT: "texts", Kind.TIME: "times"}
NUMBERS_FROM = {
    Kind.TEXT: "vocabulary and hash turn text into numbers",
    Kind.TIME: "time_part and epoch turn times into numbers",
    Kind.LIST: "pad gives all lists the same length",
}


def flat(vectors: pa.Array) -> tuple[pa.Array, int]:
    """Return the items of vectors, one after the other, and how many each vector has.

    The items of a null vector are part of the result.
    """
    size = vectors.type.list_size
    return vectors.values.slice(vectors.offset * size, len(vectors) * size), size


def matrix(vectors: pa.Array) -> np.ndarray:
    """Return vectors of numbers as an array [rows, items], with NaN for null."""
    items, size = flat(vectors)
    values = items.to_numpy(zero_copy_only=False)
    return values.reshape(len(vectors), size)


def vectors(values: np.ndarray, valid: pa.Array | None = None) -> pa.Array:
    """Return an array [rows, items] as vectors.

    Args:
        values: The items of each row.
        valid: Cells that are null where the result has to be null, or None.
    """
    items = pa.array(np.ascontiguousarray(values).reshape(-1))
    missing = None if valid is None or not valid.null_count else valid.is_null()
    return pa.FixedSizeListArray.from_arrays(items, values.shape[1], mask=missing)
