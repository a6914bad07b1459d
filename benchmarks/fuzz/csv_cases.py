"""Fuzzed CSV files in all dialects, and a slow second reader of their rows."""

from __future__ import annotations

import csv
import io
import random
from collections.abc import Sequence
from typing import Any

from benchmarks.fuzz.cases import NOTES, Case, Row, compressed, in_folder, mutated
from transforms.files.csv.dialect import Dialect

ENCODINGS = ("utf-8", "utf-8", "utf-8", "utf-8-sig", "cp1252", "cp1253", "latin-1")
WIDE = ("utf-16", "utf-16-le", "utf-16-be")
# Texts of which Arrow and Python have different opinions.
NUMBERS = ["+5", "5.", ".5", "1e5", "0x10", "1_0", " 5", "5 ", "nan", "inf", "-Infinity", "NaN"]
NUMBERS += ["1e400", "-0", "007", "1,5", "\uff11", "1e-400", "9" * 30, "1 2", "--1", "1d", "True"]
INNER = ['"', "'", ",", ";", "\t", "|", "\\", 'say "hi"', '"', "a,b", "\\\\", "'' ''"]
BREAKS = ["\n", "\r\n", "two\nlines", "\n7,8,old", "\n\n", "\r", 'x"\n1,2,"y']


def csv_case(rng: random.Random) -> Case:
    """Return a CSV file; a third of them is damaged."""
    delimiter = rng.choice([",", ",", ";", "\t", "|"])
    dialect = Dialect(
        delimiter=delimiter,
        quote=rng.choice(['"', '"', "'", None]),
        escape=rng.choice([None, None, "\\"]),
        encoding=rng.choice(ENCODINGS if rng.random() < 0.9 else WIDE),
        multiline=rng.random() < 0.5,
    )
    folder, keys = in_folder(rng) if rng.random() < 0.1 else ("", {})
    names = ["a", "b", "note", *rng.choice([[], ["extra"], ["x y", "é"]])]
    rng.shuffle(names)
    rows = [_row(rng, i, dialect) for i in range(rng.choice([0, 1, 2, 5, 20]))]
    end = rng.choice(["\n", "\n", "\r\n"])
    head = _written(rng, [names], dialect, end)
    separator = rng.random() < 0.1
    if separator:
        head = rng.choice(["sep=", "SEP="]) + delimiter + end + head
    lines = [_written(rng, [_cells(row, names)], dialect, end) for row in rows]
    blank = [end * rng.choice([0, 0, 0, 1]) for _ in lines]
    body = "".join(line + after for line, after in zip(lines, blank, strict=True))
    if body and rng.random() < 0.2:
        body = body.rstrip("\r\n") if rows[-1].note not in BREAKS else body
    known = Dialect(
        delimiter=None if delimiter == "," or (separator and rng.random() < 0.5) else delimiter,
        quote=dialect.quote,
        escape=dialect.escape,
        encoding=dialect.encoding.removesuffix("-sig"),
        multiline=dialect.multiline,
    )
    start, content = (part.encode(dialect.encoding, "replace") for part in (head, head + body))
    good = rng.random() < 0.67
    if not good:
        tokens = [t.encode(dialect.encoding) for t in [*'"\n\r,;\\\0', "\ufeff"[:0], "\n9,9,9\n"]]
        content = mutated(rng, content, [*tokens, b"\xff", b"\x81", b"\xd2\xaa"], len(start))
    case = Case(
        name=f"{folder}rows.csv",
        content=content,
        kind="csv" if good else "damaged csv",
        dialect=known,
        rows=rows if good else None,
        keys=keys,
        **_known(content, len(start), head, known, delimiter),
    )
    return compressed(rng, case) if rng.random() < 0.25 else case


def _known(content: bytes, start: int, head: str, dialect: Dialect, delimiter: str) -> Any:
    """Return the text of a file, and its spans and whether it is refused."""
    if dialect.encoding in WIDE:
        try:
            text = content.decode(dialect.encoding).encode()
        except UnicodeDecodeError:
            return {"refused": True}
        start = len(head.encode())
    else:
        text = content
    spans = spans_of(text, start, dialect, delimiter)
    return {"text": text, "spans": spans, "refused": spans is None}


def _row(rng: random.Random, number: int, dialect: Dialect) -> Row:
    a = rng.choice([0.5, -1.25, 3.0, 1e300, None, ..., ...])
    note = rng.choice(NOTES)
    if dialect.encoding == "cp1253":
        note = note.replace("é", "\u03b1")
    if dialect.encoding == "latin-1":
        note = note.replace("€", "é")
    if (dialect.quote or dialect.escape) and rng.random() < 0.5:
        note += rng.choice(INNER) + rng.choice(["", "x"])
        if dialect.multiline and dialect.quote and rng.random() < 0.5:
            note += rng.choice(BREAKS)
    elif dialect.quote is None and dialect.escape is None:
        note = note.replace('"', "").replace(";", "")
    return Row(a, number, note)


def _cells(row: Row, names: Sequence[str]) -> list[Any]:
    # The number decides the text, so that it needs no other state.
    texts = {None: "x" if row.b % 2 else "", ...: NUMBERS[row.b % len(NUMBERS)]}
    a = texts.get(row.a, row.a)
    return [{"a": a, "b": row.b, "note": row.note}.get(name, "z") for name in names]


def _written(rng: random.Random, rows: list[list[Any]], dialect: Dialect, end: str) -> str:
    out = io.StringIO()
    quoting: Any = rng.choice([csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC])
    cells = rows
    if any("\r" in str(cell) for row in rows for cell in row):
        # Otherwise Python writes a CR without quotes.
        quoting = csv.QUOTE_ALL
    if dialect.quote is None and dialect.escape is None:
        cells = [[str(cell).replace(dialect.field_end, "") for cell in row] for row in rows]
    csv.writer(
        out,
        delimiter=dialect.field_end,
        quotechar=dialect.quote,
        escapechar=dialect.escape,
        doublequote=dialect.escape is None or rng.random() < 0.5,
        quoting=quoting if dialect.quote else csv.QUOTE_NONE,
        lineterminator=end,
    ).writerows(cells)
    return out.getvalue()


def spans_of(
    text: bytes, start: int, dialect: Dialect, delimiter: str
) -> list[tuple[int, int]] | None:
    """Return where rows start and end, without line ends; None if a quote does not close.

    The text is read byte by byte.
    """
    quote = dialect.quote.encode()[0] if dialect.quote else None
    escape = dialect.escape.encode()[0] if dialect.escape else None
    ends = (delimiter.encode()[0], b"\n"[0])
    found, first, at, state = [], start, start, "start"
    while at < len(text):
        byte, at = text[at], at + 1
        if byte == escape and (dialect.multiline or text[at : at + 1] not in (b"\r", b"\n", b"")):
            at += 1
            state = "value" if state == "value" else "field"
        elif byte == b"\n"[0] and (state != "value" or not dialect.multiline):
            if state == "value":
                return None
            found.append((first, at))
            first, state = at, "start"
        elif state == "value":
            state = "closed" if byte == quote else "value"
        elif byte in ends:
            state = "start"
        else:
            state = "value" if byte == quote and state in ("start", "closed") else "field"
    if state == "value":
        return None
    found.append((first, len(text)))
    lines = [(begin, text[begin:stop].removesuffix(b"\n")) for begin, stop in found]
    for _ in range(2):
        lines = [(begin, line.removesuffix(b"\r")) for begin, line in lines]
    return [(begin, begin + len(line)) for begin, line in lines if line]


def fields_of(record: bytes, case: Case, delimiter: str) -> list[str] | None:
    """Return the fields of a record as Python reads them; None if it does not."""
    dialect = case.dialect
    try:
        text = record.decode("utf-8" if dialect.is_utf8 else dialect.encoding)
        return next(
            csv.reader(
                io.StringIO(text, newline=""),
                delimiter=delimiter,
                quotechar=dialect.quote,
                escapechar=dialect.escape,
                quoting=csv.QUOTE_MINIMAL if dialect.quote else csv.QUOTE_NONE,
            )
        )
    except (csv.Error, UnicodeDecodeError, StopIteration):
        return None
