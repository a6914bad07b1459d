"""What fuzzed files have in common: their rows, their compression, and damage to them."""

from __future__ import annotations

import bz2
import gzip
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple
from urllib.parse import quote

import zstandard

from transforms.files.csv.dialect import PLAIN, Dialect

NOTES = [
    "",
    "x",
    "NA",
    "null",
    "é",
    "€ 5",
    "a b",
    " ",
    "0",
    "sep=;",
    "00123",
    "true",
    '{"a": 1}',
    "[1]",
]
MEMBERS = 4
_PACK: dict[str, Callable[..., bytes]] = {
    "gzip": gzip.compress,
    "bz2": bz2.compress,
    "zstd": zstandard.compress,
}
# A frame without text, as pzstd writes it.
_SKIPPED = b"\x50\x2a\x4d\x18\x04\0\0\0size"


class Row(NamedTuple):
    """A row that was written.

    Attributes:
        a: The feature: a number, None if the row must become a dead letter, or ... if it may.
        b: The number of the row, which is a feature too.
        note: The column that is passed through.
    """

    a: Any
    b: int
    note: Any


@dataclass(frozen=True, kw_only=True)
class Case:
    """A file, and what is known about its rows.

    Attributes:
        name: The path of the file below a folder.
        content: The bytes of the file.
        text: The text of the file without compression, in the bytes that its ids count.
        kind: What the file is, for the counts.
        dialect: How a CSV file is written.
        rows: The rows that were written, or None if the file was damaged.
        spans: Where each row starts and ends in the text, or None if it is not known.
        refused: Whether the file as a whole cannot be read; None if both is right.
        keys: The columns in the path of the file.
    """

    name: str
    content: bytes
    text: bytes = b""
    kind: str
    dialect: Dialect = PLAIN
    rows: Sequence[Row] | None = None
    spans: Sequence[tuple[int, int]] | None = None
    refused: bool | None = False
    keys: Mapping[str, str | None] = field(default_factory=dict)


def mutated(rng: random.Random, text: bytes, tokens: Sequence[bytes], start: int = 0) -> bytes:
    """Return a text that is changed at a few places from a byte on."""
    for _ in range(rng.randrange(1, 4)):
        at = rng.randrange(start, len(text) + 1)
        until = min(at + rng.choice([0, 0, 1, 2, 9]), len(text))
        between = rng.choice([b"", rng.choice(tokens), rng.choice(tokens), rng.randbytes(2)])
        text = text[:at] + between + text[until:]
    return text


def compressed(rng: random.Random, case: Case) -> Case:
    """Return a case with its file compressed, which may also be damaged."""
    kind = rng.choice(["gzip", "gzip", "gzip", "bz2", "zstd"])
    content = case.content
    cuts = sorted(rng.randrange(len(content) + 1) for _ in range(rng.randrange(MEMBERS)))
    bounds = list(zip([0, *cuts], [*cuts, len(content)], strict=True))
    packed = b"".join(
        _PACK[kind](content[start:stop], rng.randrange(1, 10)) for start, stop in bounds
    )
    if kind == "zstd" and rng.random() < 0.2:
        packed = _SKIPPED + packed
    suffix = {"gzip": ".gz", "bz2": ".bz2", "zstd": ".zst"}[kind]
    padding = rng.choice([0, 0, 1, 7, 600]) if kind == "gzip" else 0
    packed += b"\0" * padding
    # Without its suffix, a compression is found by the first bytes of the file.
    name = case.name + rng.choice([suffix, ""])
    done = replace(case, name=name, content=packed, kind=f"{case.kind}, {kind}")
    return _damaged(rng, done, content) if kind == "gzip" and rng.random() < 0.2 else done


def _damaged(rng: random.Random, case: Case, content: bytes) -> Case:
    packed = case.content
    cut = packed[: rng.randrange(2, len(packed))]
    packed = rng.choice([cut, mutated(rng, packed, [b"\x1f\x8b", b"\0"], 2), packed + b"x"])
    try:
        text = gzip.decompress(packed)
    except Exception:
        # Python reads these bytes in no way, so nobody knows all the rows.
        refused: bool | None = True
    else:
        if text == content:
            return replace(case, content=packed)
        refused = None
    return replace(
        case, content=packed, kind="damaged gzip", rows=None, spans=None, refused=refused
    )


def in_folder(rng: random.Random) -> tuple[str, dict[str, str | None]]:
    """Return the path of a folder and the keys in it."""
    day = rng.choice(["2026-11-20", "a/b =", "é", "5", "x%20y", None])
    value = "__HIVE_DEFAULT_PARTITION__" if day is None else quote(day, safe="")
    number = rng.choice(["3", "2.5", "-1"])
    return f"day={value}/c={number}/", {"day": day, "c": number}
