"""Fuzzed JSON files: one row per line, one array, or pretty-printed objects."""

from __future__ import annotations

import json
import random
from typing import Any

from benchmarks.fuzz.cases import NOTES, Case, Row, compressed, in_folder, mutated

# Features as JSON, and as numbers: None if the text is not a number, ... if it may be one.
NUMBERS: dict[str, Any] = {
    "1.5": 1.5,
    "-2e3": -2000.0,
    "7": 7.0,
    '"0.25"': 0.25,
    "null": None,
    "NaN": None,
    "-Infinity": None,
    "Infinity": None,
    '"x"': None,
    "{}": None,
    "[1]": ...,
    "[1, 2]": None,
    '"1e5"': ...,
    '" 5"': ...,
    "1e999": ...,
    "true": ...,
    "12345678901234567890123": ...,
}
# Elements and lines that are not rows which can be scored.
OTHERS = ["5", '"x"', "null", "[]", "[1, 2]", "true", '{"b": 1, "b": 2}', "{}"]
# Columns that nobody reads.
EXTRA: list[Any] = [[], {}, {"x": [{"y": "}\n{"}, {}]}, [{"a": 1}, [2]], "\U0001f600", "] , [", 0.5]
NOTES_TOO: list[Any] = [*NOTES, "a\nb", '"', "\\", "},{", "}\r{", "[", "NaN", "\u2028"]
NOTES_TOO += [123456789012345678901, 2**63, -5, 10**40]
TOKENS = [b"{", b"}", b"[", b"]", b",", b'"', b"\n", b"\r", b"\\", b"NaN", b"\xff", b"\0", b":"]
TOKENS += [b'{"b": 9}', b"}\n{", b"\xef\xbb\xbf"]


def json_case(rng: random.Random) -> Case:
    """Return a JSON file; a third of them is damaged."""
    folder, keys = in_folder(rng) if rng.random() < 0.1 else ("", {})
    rows = [_row(rng, i) for i in range(rng.choice([0, 1, 2, 5, 20]))]
    layout = rng.choice(["lines", "lines", "array", "pretty"]) if rows else "lines"
    indent = rng.choice([None, 1, 2, "\t"]) if layout == "array" else None
    indent = 2 if layout == "pretty" else indent
    texts = [_text(rng, row, indent) for row in rows]
    if layout != "pretty":
        for i in range(1, len(rows)):
            if rng.random() < 0.05:
                texts[i], rows[i] = rng.choice(OTHERS), Row(None, i, None)
    end = rng.choice(["\n", "\n", "\r\n"])
    if layout == "array":
        comma = rng.choice([",", ", ", ",\n", " ,\n  "])
        text = f"[{rng.choice(['', end, ' '])}{comma.join(texts)}{rng.choice(['', end, ' '])}]"
    else:
        blank = rng.choice(["", "", end, " " + end])
        text = "".join(f"{text}{end}{blank}" for text in texts)
    text = rng.choice(["", "", "", "\ufeff"]) + text.replace("\n", end if indent else "\n")
    content = text.encode()
    if layout != "array" and rng.random() < 0.2:
        content = content.rstrip()
    suffix = rng.choice(["json", "json", "jsonl", "ndjson"]) if layout == "lines" else "json"
    good = rng.random() < 0.67
    if not good:
        content = mutated(rng, content, TOKENS, min(len(content), 1))
    by_line = layout == "lines" and (good or suffix != "json")
    case = Case(
        name=f"{folder}rows.{suffix}",
        content=content,
        text=content,
        kind=f"json {layout}" if good else f"damaged json {layout}",
        rows=rows if good else None,
        spans=_lines(content) if by_line else None,
        # An array must be one value, and the first lines must look like JSON.
        refused=None if not good else False,
        keys=keys,
    )
    return compressed(rng, case) if content and rng.random() < 0.25 else case


def _row(rng: random.Random, number: int) -> Row:
    return Row(NUMBERS[list(NUMBERS)[number * 7 % len(NUMBERS)]], number, rng.choice(NOTES_TOO))


def _text(rng: random.Random, row: Row, indent: Any) -> str:
    a = list(NUMBERS)[row.b * 7 % len(NUMBERS)]
    members: dict[str, Any] = {"a": "@", "b": row.b, "note": row.note}
    if rng.random() < 0.3:
        members["extra"] = rng.choice(EXTRA)
    order = list(members)
    rng.shuffle(order)
    separators = None if indent else rng.choice([(",", ":"), (", ", ": "), (" , ", " : ")])
    text = json.dumps(
        {name: members[name] for name in order},
        indent=indent,
        separators=separators,
        ensure_ascii=rng.random() < 0.5,
    )
    return text.replace('"@"', a)


def _lines(content: bytes) -> list[tuple[int, int]]:
    """Return where the lines start and end that are not blank, without white space."""
    found, at = [], 0
    for line in content.split(b"\n"):
        text = line.removeprefix(b"\xef\xbb\xbf") if at == 0 else line
        if text := text.strip(b" \t\r"):
            found.append((at, at + line.rindex(text) + len(text)))
        at += len(line) + 1
    return found
