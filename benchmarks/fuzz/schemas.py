"""Fuzzed folders of Parquet files whose columns differ in type: a result has one schema."""

from __future__ import annotations

import io
import random
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.fuzz.cases import Case
from benchmarks.fuzz.check import Found, Violation, read
from benchmarks.fuzz.parquet_cases import KEPT
from common.arrow_values import to_values
from common.errors import InputError
from transforms.encode import conform
from transforms.files.one_schema import one_type, parquet_origins

NAME = "note"


def run_folder(seed: int, folder: Path) -> str:
    """Read the files of one folder in one type; return what became of it, or raise Violation."""
    rng = random.Random(seed)
    kinds = [rng.choice(list(KEPT)) for _ in range(rng.choice([2, 2, 3]))]
    if rng.random() < 0.3:
        kinds = [kinds[0], pa.null(), *kinds[:1]]
    paths, columns = [], []
    for i, kind in enumerate(kinds):
        count = rng.choice([0, 1, 3])
        note = pa.array([rng.choice([*KEPT[kind], None]) for _ in range(count)], kind)
        out = io.BytesIO()
        numbers = pa.array(range(count), pa.float64())
        pq.write_table(pa.table({"a": numbers, "b": numbers, NAME: note}), out)
        path = folder / f"{i}.parquet"
        path.write_bytes(out.getvalue())
        paths.append(path)
        columns.append(to_values(note))
    try:
        results = _read_as_one(paths)
    except InputError as error:
        if len(str(error).splitlines()) != 1:
            raise Violation(f"an error is not one line: {error}") from error
        return "one schema: refused"
    for column, result in zip(columns, results, strict=True):
        if repr(_comparable(column)) != repr(_comparable(result)):
            raise Violation(f"expected {column}, got {result}")
    return "one schema: read"


def _read_as_one(paths: list[Path]) -> list[list[Any]]:
    """Return the values of a column of files in the type that all files have together."""
    origins = parquet_origins([str(path) for path in paths], [NAME], {})[NAME]
    if not origins:
        return [[] for _ in paths]
    kind = one_type(NAME, origins)
    results = []
    for path in paths:
        case = Case(name=path.name, content=b"", kind="folder")
        found = read(path, case, 1_000)
        if not isinstance(found, Found):
            raise Violation(f"the file is refused: {found}")
        notes = [found.good[place].note for place in found.places]
        stored = pq.read_table(path, columns=[NAME]).column(NAME).combine_chunks()
        if repr(to_values(stored)) != repr(notes):
            raise Violation(f"expected {stored}, got {notes}")
        rows = conform(pa.record_batch({NAME: stored}), pa.schema([(NAME, kind)]))
        results.append(to_values(rows.column(NAME)))
    return results


def _comparable(value: Any) -> Any:
    """Return a value in a form in which equal values of different types are equal."""
    if isinstance(value, dict):
        return {name: _comparable(member) for name, member in value.items() if member is not None}
    if isinstance(value, (list, tuple)):
        return [_comparable(item) for item in value]
    if isinstance(value, bool) or not isinstance(value, (int, float, Decimal)):
        return value
    return Decimal(value).normalize() + 0
