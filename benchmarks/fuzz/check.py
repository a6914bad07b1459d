"""Reads a fuzzed file whole and in ranges, and compares its rows with what is known about them."""

from __future__ import annotations

import random
from codecs import BOM_UTF8
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import pyarrow as pa

from benchmarks.fuzz.cases import Case, Row
from benchmarks.fuzz.csv_cases import csv_case, fields_of
from benchmarks.fuzz.json_cases import json_case
from benchmarks.fuzz.parquet_cases import parquet_case
from common.arrow_values import to_values
from common.errors import MillraceError
from common.record_batch import PAYLOAD, ROW_ID, SOURCE
from model_handlers.manifests.manifest import InputSpec, Manifest, OutputSpec
from transforms.files import ranges, text_lines
from transforms.files.columns import Columns, id_prefix
from transforms.files.csv.header import read_header
from transforms.files.ranges import match_files, plan_file, split_file
from transforms.files.read_range import read_range
from transforms.json_rows.decode import Decoded
from transforms.validate import validate

MAKERS: dict[str, Callable[[random.Random], Case]] = {
    "csv": csv_case,
    "json": json_case,
    "parquet": parquet_case,
}
SHARES = (5, 3, 2)


class Violation(AssertionError):
    """A file was read in another way than it must be."""


class Good(NamedTuple):
    """A row that would be scored, with its columns, and its payload if it has one."""

    a: float
    b: float
    note: Any
    day: Any
    payload: bytes | None


@dataclass
class Found:
    """What reading a file resulted in, by the places of its rows.

    Attributes:
        good: The rows that would be scored.
        letters: The reason and, unless the model refuses the row, the payload of each other row.
    """

    good: dict[int, Good] = field(default_factory=dict)
    letters: dict[int, tuple[str, bytes | None]] = field(default_factory=dict)

    @property
    def places(self) -> list[int]:
        """The places of all rows, in order."""
        return sorted([*self.good, *self.letters])


def manifest_of(features: Sequence[str]) -> Manifest:
    """Return the manifest of a model with these features."""
    return Manifest(
        name="fuzz",
        version="1",
        format="torchscript",
        file="model.pt",
        sha256="0" * 64,
        inputs=(InputSpec("x", tuple(features), dtype="float64", shape=(len(features),)),),
        outputs=(OutputSpec("total"),),
        score_output="total",
    )


def columns_of(case: Case) -> Columns:
    """Return the columns to read from a file."""
    if not case.keys:
        return Columns(manifest_of("ab"), None, ("note",))
    return Columns(manifest_of("abc"), None, ("note", "day"))


@contextmanager
def sizes(range_bytes: int, range_rows: int, block_bytes: int) -> Iterator[None]:
    """Read files in ranges and blocks of these sizes."""
    with ExitStack() as stack:
        for module, name, value in (
            (ranges, "RANGE_BYTES", range_bytes),
            (ranges, "RANGE_ROWS", range_rows),
            (text_lines, "BLOCK_BYTES", block_bytes),
        ):
            stack.enter_context(mock.patch.object(module, name, value))
        yield


def read(path: Path, case: Case, batch_rows: int) -> Found | str:
    """Return the rows of a file, or the message of the error that refuses it."""
    found, columns, prefix = Found(), columns_of(case), id_prefix(str(path))
    try:
        (file,) = match_files([str(path)])
        for part in split_file(plan_file(file, None, case.dialect)):
            for decoded in read_range(part, columns, batch_rows):
                _add(found, decoded, columns.manifest, prefix)
    except MillraceError as error:
        text = str(error)
        if not text or len(text.splitlines()) != 1:
            raise Violation(f"an error is not one line: {text!r}") from error
        return text
    return found


def _add(found: Found, decoded: Decoded, manifest: Manifest, prefix: str) -> None:
    for row_id, payload, fault in zip(
        decoded.failed_ids, decoded.failed_payloads, decoded.faults, strict=True
    ):
        _put(found, found.letters, _place(row_id, prefix), (fault.reason, payload))
    if decoded.batch is None:
        return
    good, bad, faults = validate(decoded.batch, manifest)
    for row_id, fault in zip(bad.column(ROW_ID).to_pylist(), faults, strict=True):
        _put(found, found.letters, _place(row_id, prefix), (fault.reason, None))
    if good.num_rows + bad.num_rows != decoded.batch.num_rows:
        raise Violation("validation lost a row")
    inputs = good.column("inputs").field(0).to_pylist()
    source: pa.StructArray = good.column(SOURCE)
    notes = to_values(source.field("note"))
    days = to_values(source.field("day")) if "day" in source.type.names else [None] * len(notes)
    payloads = (
        good.column(PAYLOAD).to_pylist() if PAYLOAD in good.schema.names else [None] * len(notes)
    )
    rows = zip(good.column(ROW_ID).to_pylist(), inputs, notes, days, payloads, strict=True)
    for row_id, values, note, day, payload in rows:
        _put(
            found,
            found.good,
            _place(row_id, prefix),
            Good(values[0], values[1], note, day, payload),
        )


def _place(row_id: str, prefix: str) -> int:
    start, _, place = row_id.rpartition("-")
    if start != prefix:
        raise Violation(f"expected an id that starts with {prefix}, got {row_id}")
    return int(place)


def _put(found: Found, rows: dict[int, Any], place: int, row: Any) -> None:
    if place in found.good or place in found.letters:
        raise Violation(f"two rows have the place {place}")
    rows[place] = row


def check(case: Case, found: Found | str, path: Path) -> None:
    """Compare the rows that were read with what is known about a file; raise Violation."""
    if isinstance(found, str):
        if case.refused is False:
            raise Violation(f"the file is refused: {found}")
        return
    if case.refused is True:
        raise Violation("the file is read, expected an error")
    if case.spans is not None:
        _check_spans(case, found, path)
    elif case.text and not case.keys and case.kind != "damaged gzip":
        # gzip that was cut between two members is a valid file with fewer rows.
        _check_rest(case, found)
    if case.rows is not None:
        _check_rows(case, found)


def _check_spans(case: Case, found: Found, path: Path) -> None:
    starts = [start for start, _ in case.spans or ()]
    if found.places != starts:
        raise Violation(f"expected rows at {starts}, got {found.places}")
    is_csv = ".csv" in case.name
    header = read_header(str(path), case.dialect) if is_csv else None
    for start, stop in case.spans or ():
        record = case.text[start:stop]
        if start in found.letters:
            payload, exact = found.letters[start][1], _payload(record, start, is_csv)
            if payload is not None and payload != exact and not case.keys:
                raise Violation(f"expected the payload {exact!r}, got {payload!r}")
        elif header and (fields := fields_of(record, case, header.delimiter)):
            note = dict(zip(header.names, fields, strict=False)).get("note")
            if len(fields) != len(header.names) or (found.good[start].note or "") != note:
                raise Violation(f"expected the fields {fields}, got {found.good[start]}")


def _payload(record: bytes, start: int, is_csv: bool) -> bytes:
    """Return a row as a dead letter holds it."""
    if is_csv:
        return record.rstrip(b"\r\n")
    return (record.removeprefix(BOM_UTF8) if start == 0 else record).strip(b" \t\r\n")


def _check_rest(case: Case, found: Found) -> None:
    """Check that a JSON document has nothing but white space and commas between its rows."""
    at = 0
    for place in found.places:
        payload = found.letters[place][1] if place in found.letters else found.good[place].payload
        if payload is None:
            return
        if case.text[at:place].strip(b"\xef\xbb\xbf \t\r\n,[]"):
            raise Violation(f"the bytes {at} to {place} are in no row")
        # White space before the row, or a byte order mark, is no part of it.
        at = case.text.index(payload, place) + len(payload)
    if case.text[at:].strip(b"\xef\xbb\xbf \t\r\n,[]\x00"):
        raise Violation(f"the bytes from {at} on are in no row")


def _check_rows(case: Case, found: Found) -> None:
    places = found.places
    if len(places) != len(case.rows or ()):
        raise Violation(f"expected {len(case.rows or ())} rows, got {len(places)}")
    for place, row in zip(places, case.rows or (), strict=True):
        good = found.good.get(place)
        if good is None:
            if row.a not in (None, ...):
                raise Violation(f"expected {row}, got the dead letter {found.letters[place]}")
        elif not _is_same(row, good, case):
            raise Violation(f"expected {row}, got {good}")


def _is_same(row: Row, good: Good, case: Case) -> bool:
    note: Any = row.note
    if ".parquet" not in case.name and ".pq" not in case.name:
        note, good = str(note), good._replace(note=good.note or "")
    return (
        row.a in (..., good.a)
        and row.b == good.b
        and note == good.note
        and case.keys.get("day") == good.day
    )


def run_case(seed: int, folder: Path) -> str:
    """Read one file in two ways; return its kind and what became of it, or raise Violation."""
    rng = random.Random(seed)
    case = MAKERS[rng.choices(list(MAKERS), SHARES)[0]](rng)
    path = folder / case.name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(case.content)
    try:
        whole = read(path, case, 1_000)
        check(case, whole, path)
        step = max(1, len(case.content) // rng.choice([1, 2, 5, 20]))
        with sizes(step, rng.choice([1, 5, 30]), rng.choice([1, 7, 64])):
            parts = read(path, case, rng.choice([1, 3, 1_000]))
    finally:
        path.unlink()
    if isinstance(whole, str) != isinstance(parts, str):
        raise Violation(f"read whole: {whole}; read in ranges: {parts}")
    if repr(whole) != repr(parts) and not isinstance(whole, str):
        _check_parts(whole, parts)
    return f"{case.kind}: {'refused' if isinstance(whole, str) else 'read'}"


def _check_parts(whole: Found, parts: Any) -> None:
    """Compare rows without their order."""
    for one, other in ((whole.good, parts.good), (whole.letters, parts.letters)):
        for place in sorted({*one, *other}):
            if repr(one.get(place)) != repr(other.get(place)):  # type: ignore[attr-defined]
                raise Violation(
                    f"row {place}: read whole {one.get(place)}, "  # type: ignore[attr-defined]
                    f"in ranges {other.get(place)}"
                )
