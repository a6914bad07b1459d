"""Steps on text and categories."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from common.errors import ManifestError
from common.texts import text_column
from model_handlers.steps.numeric import as_floats, only_finite, without_nan
from model_handlers.steps.step import (
    Apply,
    Cells,
    Context,
    Kind,
    Step,
    as_mask,
    null_mask,
    vectors,
)

# A list with more than this many values a row is looked up in a dict.
_FEW = 4
_MOST_WIDE = 1 << 16
_MOST_BUCKETS = 1 << 31


class _Text(Step):
    """A step from text to text."""

    TAKES: ClassVar = (Kind.TEXT,)
    GIVES: ClassVar = "text"
    EACH: ClassVar = True

    def gives(self, type_: pa.DataType, *operands: pa.DataType) -> pa.DataType:
        """Return string."""
        return pa.string()


@dataclass(frozen=True)
class Lower(_Text):
    """Writes text in lower case."""

    NAME: ClassVar = "lower"

    def apply(self, cells: Cells, *operands: Cells) -> Cells:
        """Return the text in lower case."""
        return cells.become(pc.utf8_lower(cells.values))


@dataclass(frozen=True)
class Strip(_Text):
    """Removes white space at both ends of text. Text of white space only becomes null."""

    NAME: ClassVar = "strip"

    def apply(self, cells: Cells, *operands: Cells) -> Cells:
        """Return the text without white space around it."""
        stripped = pc.utf8_trim_whitespace(cells.values)
        return cells.become(pc.if_else(pc.equal(stripped, ""), None, stripped))


@dataclass(frozen=True)
class Vocabulary(Step):
    """Returns the position of a value in a list, counted from 0.

    The list is in `file`, one value in each line, or in `values`. Numbers are looked up by their
    text. A value that is not in the list gets `unknown`, or one of `hash_unknown` positions after
    the end of the list. Without both, its row is refused.
    """

    NAME: ClassVar = "vocabulary"
    TAKES: ClassVar = (Kind.TEXT, Kind.NUMBER)
    GIVES: ClassVar = "integer"
    REASONS: ClassVar = ("unknown_value", "not_finite")
    EACH: ClassVar = True

    file: str | None = None
    values: tuple[str, ...] = ()
    unknown: int | None = field(default=None, kw_only=True)
    hash_unknown: int | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        check_source(self, self.file, self.values)
        if self.unknown is not None and self.hash_unknown is not None:
            self.refuse("hash_unknown", "nothing, because unknown is set", self.hash_unknown)
        if self.unknown is not None and not -(2**63) <= self.unknown < 2**63:
            self.refuse("unknown", "an integer of 64 bits", self.unknown)
        if self.hash_unknown is not None:
            _check_buckets(self, "hash_unknown", self.hash_unknown)

    @property
    def files(self) -> tuple[str, ...]:
        """The file of the list, if there is one."""
        return () if self.file is None else (self.file,)

    def gives(self, type_: pa.DataType, *operands: pa.DataType) -> pa.DataType:
        """Return int64."""
        return pa.int64()

    def bind(self, context: Context) -> Apply:
        """Return the look-up in the list."""
        known = self.values if self.file is None else read_list(self.file, context.files)
        positions, by_value = pa.array(known, pa.string()), dict(zip(known, count(), strict=False))
        place = "the values" if self.file is None else self.file

        def look_up(cells: Cells, *_: Cells) -> Cells:
            cells = _as_text(cells)
            texts = cells.values
            if len(texts) * _FEW < len(known):
                # Arrow prepares the whole list for each call, which takes longer than this.
                found = pa.array(map(by_value.get, texts.to_pylist()), pa.int64())
            else:
                found = pc.index_in(texts, value_set=positions).cast(pa.int64())
            if found.null_count == texts.null_count:
                return cells.become(found)
            unknown = as_mask(pc.and_(texts.is_valid(), found.is_null()))
            if self.unknown is not None:
                return cells.become(pc.if_else(pa.array(unknown), self.unknown, found))
            if self.hash_unknown is not None:
                hashed = hash_texts(texts.filter(pa.array(unknown)), self.hash_unknown)
                others = pa.array(hashed + len(known))
                return cells.become(pc.replace_with_mask(found, pa.array(unknown), others))
            message = f"expected one of {len(known):,} values in {place}, got another"
            return cells.become(found).refuse(unknown, "unknown_value", message)

        return look_up


def _as_text(cells: Cells) -> Cells:
    """Return the texts of numbers. NaN and infinities, which are no categories, are refused."""
    if pa.types.is_floating(cells.values.type):
        cells = only_finite(cells)
    return cells.become(text_column(cells.values))


def check_source(step: Step, file: str | None, values: Sequence[str]) -> None:
    """Raise ManifestError unless a step has a list: either a file, or values without doubles."""
    if file is not None and values:
        step.refuse("values", "file or values, not both", list(values))
    if file is None and not values:
        step.refuse("file", "the name of a file, or values instead", None)
    check_distinct(values, f"step {step.NAME}: values")


def _check_buckets(step: Step, member: str, buckets: int) -> None:
    if not 1 <= buckets <= _MOST_BUCKETS:
        step.refuse(member, f"1 to {_MOST_BUCKETS:,}", buckets)


def read_list(file: str, files: Mapping[str, bytes]) -> list[str]:
    """Return the lines of a file of the package, which must differ from each other.

    Raises:
        ManifestError: The file is not UTF-8, has an empty or no line, or two equal lines.
    """
    try:
        # Some editors write a byte order mark, which is no part of the first value.
        text = files[file].decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ManifestError(
            f"file {file}: expected UTF-8, got other bytes at {error.start:,}: save it as UTF-8, "
            "and package the model again"
        ) from error
    if not text:
        raise ManifestError(f"file {file}: expected a value in each line, got an empty file")
    # splitlines() would also split at other characters that a value may contain.
    lines = [line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")]
    for number, line in enumerate(lines, 1):
        if not line:
            raise ManifestError(
                f"file {file}: expected a value in each line, got none in line {number}"
            )
    check_distinct(lines, f"file {file}")
    return lines


def check_distinct(values: Sequence[str], where: str) -> None:
    """Raise ManifestError if a value occurs twice."""
    if len(set(values)) == len(values):
        return
    first: dict[str, int] = {}
    for number, value in enumerate(values, 1):
        if value in first:
            raise ManifestError(
                f"{where}: expected each value once, got {value[:80]!r} as value {first[value]} "
                f"and as value {number}: remove one"
            )
        first[value] = number


def hash_texts(texts: pa.Array, buckets: int) -> np.ndarray:
    """Return the bucket of each text, int64 [rows]; the same on every machine.

    It is the number in the first 8 bytes of its BLAKE2b digest, little-endian, modulo `buckets`.
    Null gets bucket 0.
    """
    encoded = texts.dictionary_encode()
    of_each = [
        int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") % buckets
        for text in encoded.dictionary.to_pylist()
    ]
    indices = encoded.indices.fill_null(0).to_numpy()
    return np.array(of_each or [0], np.int64)[indices]


@dataclass(frozen=True)
class Hash(Step):
    """Returns one of `buckets` integers from 0, the same for the same text or number.

    It is the number in the first 8 bytes of the BLAKE2b digest of the text, little-endian, modulo
    `buckets`.
    """

    NAME: ClassVar = "hash"
    TAKES: ClassVar = (Kind.TEXT, Kind.NUMBER)
    GIVES: ClassVar = "integer"
    REASONS: ClassVar = ("not_finite",)
    EACH: ClassVar = True

    buckets: int

    def __post_init__(self) -> None:
        _check_buckets(self, "buckets", self.buckets)

    def gives(self, type_: pa.DataType, *operands: pa.DataType) -> pa.DataType:
        """Return int64."""
        return pa.int64()

    def apply(self, cells: Cells, *operands: Cells) -> Cells:
        """Return the bucket of each value."""
        cells = _as_text(cells)
        hashed = hash_texts(cells.values, self.buckets)
        return cells.become(pa.array(hashed, mask=null_mask(cells.values)))


@dataclass(frozen=True)
class OneHot(Step):
    """Returns `size` numbers, all 0 but the one at the position that the integer names, 1."""

    NAME: ClassVar = "one_hot"
    TAKES: ClassVar = (Kind.NUMBER,)
    GIVES: ClassVar = "vector of `size` numbers"
    REASONS: ClassVar = ("out_of_range", "not_finite")

    size: int

    def __post_init__(self) -> None:
        if not 1 <= self.size <= _MOST_WIDE:
            self.refuse("size", f"1 to {_MOST_WIDE:,}", self.size)

    def gives(self, type_: pa.DataType, *operands: pa.DataType) -> pa.DataType:
        """Return `size` numbers."""
        return pa.list_(pa.uint8(), self.size)

    def apply(self, cells: Cells, *operands: Cells) -> Cells:
        """Return the vector of each integer."""
        cells = without_nan(cells.become(as_floats(cells.values)))
        numbers = cells.values.fill_null(0).to_numpy()
        wrong = (numbers < 0) | (numbers >= self.size) | (numbers != np.trunc(numbers))
        message = f"expected an integer from 0 to {self.size - 1}, got another number"
        cells = cells.refuse(wrong, "out_of_range", message)
        # A byte each, because there may be thousands.
        made = np.zeros((len(numbers), self.size), np.uint8)
        rows = np.flatnonzero(~wrong)
        made[rows, numbers[rows].astype(np.int64)] = 1
        return cells.become(vectors(made, cells.values))


CATEGORY_STEPS = (Lower, Strip, Vocabulary, Hash, OneHot)
