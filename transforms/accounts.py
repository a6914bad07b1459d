"""Compare what a source was found to hold with what was read from it.

A step that finds something to read promises it: a file, the bytes of a text file, the rows of
a Parquet file, or the streams of a table. A step that reads records which part it has read.
Promises and records travel through the pipeline as elements, on separate paths, and are compared
here. A part that was lost on its way to a worker was promised but never read. Like the counts of
transforms/run_report.py they are elements, because Beam's metrics count a retried bundle twice.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal, NamedTuple

import apache_beam as beam

from common.errors import BalanceError

Count = tuple[tuple[str, ...], int]
Span = tuple[int, int]
# What counted the rows of a table, or of the table that a query wrote.
TABLE_ROWS = "row count of the table"
QUERY_ROWS = "row count of the query's result"


class Part(NamedTuple):
    """What one step recorded about a place: a file, a table or a pattern.

    Attributes:
        said: What the record means.
            `expected` and `read`: the span from `start` to `stop`.
            `counted`: `stop` units were read, in no known order.
            `rows_expected`: `stop` rows are expected, counted by `what`.
            `rows_read`: `stop` rows were read.
            `rows_unknown`: the number of rows was not known before reading, for the reason in
            `what`.
        what: The unit of the span, such as `files`, `bytes` or `rows`, unless stated otherwise
            above.
        start: The first unit of the span.
        stop: The unit after the last one of the span, or a number of rows.
    """

    said: Literal["expected", "read", "counted", "rows_expected", "rows_read", "rows_unknown"]
    what: str
    start: int
    stop: int


Entry = tuple[str, Part]


def promise(place: str, unit: str, size: int) -> Entry:
    """Return the entry that promises units to be read.

    Args:
        place: The path of a file, or the name of a table.
        unit: What is counted, such as `files` or `bytes`.
        size: How many units the place holds.
    """
    return place, Part("expected", unit, 0, size)


def taken(place: str, unit: str, start: int, stop: int) -> Entry:
    """Return the entry that records a span as read.

    Args:
        place: The path of a file, or the name of a table.
        unit: What is counted, as in the promise.
        start: The first unit that was read.
        stop: The unit after the last one that was read.
    """
    return place, Part("read", unit, start, stop)


def counted(place: str, unit: str, count: int) -> Entry:
    """Return the entry that records how many units without an order were read.

    It has no effect if nothing was promised for the place.

    Args:
        place: The name of a table.
        unit: What is counted, as in the promise.
        count: How many units were read.
    """
    return place, Part("counted", unit, 0, count)


def expect_rows(place: str, rows: int, counted_by: str) -> Entry:
    """Return the entry that records how many rows are expected from a place.

    Args:
        place: The path of a file, or the name of a table.
        rows: How many rows are expected.
        counted_by: What counted them, as the report names it.
    """
    return place, Part("rows_expected", counted_by, 0, rows)


def unknown_rows(place: str, why: str) -> Entry:
    """Return the entry for a place whose number of rows is not known before reading.

    Args:
        place: The path of a file, or the name of a table.
        why: The reason, as the report states it.
    """
    return place, Part("rows_unknown", why, 0, 1)


def rows_read(place: str, rows: int) -> Entry:
    """Return the entry that records how many rows a reader produced from a part of a place.

    Args:
        place: The path of a file, or the name of a table.
        rows: How many rows it produced.
    """
    return place, Part("rows_read", "", 0, rows)


def expect(unit: str, count: int) -> Count:
    """Return the count of units that were found and have to be read later.

    Args:
        unit: What is counted, such as `files` or `messages`.
        count: How many units were found.
    """
    return ("source", unit, "expected"), count


def found(unit: str, count: int) -> Count:
    """Return the count of units that were read, to be compared with the count of `expect`.

    Args:
        unit: What is counted, as for `expect`.
        count: How many units were read.
    """
    return ("source", unit, "read"), count


class Settle(beam.PTransform):
    """A transform from entries to counts: the units promised and read, and each difference."""

    def expand(self, entries: beam.PCollection[Entry]) -> beam.PCollection[Count]:
        """Group the entries by place, then compare those of each place."""
        return entries | "ByPlace" >> beam.GroupByKey() | "Compare" >> beam.FlatMapTuple(settle)


def settle(place: str, parts: Iterable[Part]) -> Iterator[Count]:
    """Compare everything that was recorded about one place.

    The records agree if the spans that were read cover the promised span exactly once.

    Args:
        place: The path of a file, or the name of a table.
        parts: All records about the place.

    Returns:
        The units expected and read, by unit, and a count of 1 with the key
        `("differs", description)` for each unit that differs.
    """
    promised: dict[str, int] = defaultdict(int)
    spans: dict[str, list[Span]] = defaultdict(list)
    counts: dict[str, int] = defaultdict(int)
    for part in parts:
        if part.said == "expected":
            promised[part.what] += part.stop
        elif part.said == "read":
            spans[part.what].append((part.start, part.stop))
        elif part.said == "counted":
            counts[part.what] += part.stop
        else:
            yield (part.said, part.what), part.stop
    # Units without an order are treated as if they were read from the start.
    for unit in counts.keys() & promised.keys():
        spans[unit].append((0, counts[unit]))
    for unit in sorted(promised.keys() | spans.keys()):
        yield expect(unit, promised[unit])
        yield found(unit, sum(stop - start for start, stop in spans[unit]))
        wrong = difference(promised[unit], spans[unit])
        if wrong is not None:
            yield ("differs", f"{place}: {unit} {wrong}"), 1


def difference(size: int, spans: Iterable[Span]) -> str | None:
    """Describe the first place where spans do not cover a size exactly once; None if they do."""
    at = 0
    for start, stop in sorted(span for span in spans if span[0] < span[1]):
        if start > at:
            return f"{at:,} to {start:,} were not read"
        if start < at:
            return f"{start:,} to {min(at, stop):,} were read twice"
        at = stop
    if at < size:
        return f"{at:,} to {size:,} were not read"
    return f"{size:,} to {at:,} were read but not expected" if at > size else None


def joined(spans: Iterable[Span]) -> list[Span]:
    """Return spans with adjacent ones merged.

    Args:
        spans: Spans that do not overlap, sorted by their start.
    """
    result: list[Span] = []
    for start, stop in spans:
        if result and result[-1][1] == start:
            result[-1] = result[-1][0], stop
        else:
            result.append((start, stop))
    return result


def check_source(counts: Mapping[tuple[str, ...], int], rows_in: int) -> dict[str, Any]:
    """Return the report's facts about the source, once they are found to agree.

    Args:
        counts: The sums of all counts of the run.
        rows_in: How many rows entered the pipeline.

    Returns:
        `rows_expected`, which is None if the number of rows was not known before reading;
        `rows_expected_from`, which names everything that counted the rows, or says why nothing
        did; and `UNIT_expected` and `UNIT_read` for each unit, such as `files` or `bytes`.

    Raises:
        BalanceError: What was read differs from what was expected.
    """
    units = sorted({key[1] for key in counts if key[0] == "source" and key[2] == "expected"})
    summary = {
        f"{unit}_{said}": counts.get(("source", unit, said), 0)
        for unit in units
        for said in ("expected", "read")
    }
    unknown = sorted(key[1] for key in counts if key[0] == "rows_unknown")
    counted = {key[1]: rows for key, rows in counts.items() if key[0] == "rows_expected"}
    wrong = sorted(key[1] for key in counts if key[0] == "differs") + [
        f"{summary[f'{unit}_expected']:,} {unit} were expected, but "
        f"{summary[f'{unit}_read']:,} were read"
        for unit in units
        if summary[f"{unit}_expected"] != summary[f"{unit}_read"]
    ]
    wrong += [
        f"{rows:,} rows were expected (from: {by}), but {rows_in:,} arrived"
        for by, rows in sorted(counted.items())
        if rows != rows_in and not unknown
    ]
    made = counts.get(("rows_read", ""), rows_in)
    if made != rows_in:
        wrong.append(f"{made:,} rows were read, but {rows_in:,} arrived")
    if wrong:
        raise BalanceError(_wrong(wrong, TABLE_ROWS in counted))
    return {
        "rows_expected": rows_in if counted and not unknown else None,
        "rows_expected_from": "; ".join(unknown or sorted(counted)) or None,
        # Counts of rows are left out: they may cover only a part of the source.
        **{name: count for name, count in summary.items() if not name.startswith("rows_")},
    }


def _wrong(differences: list[str], of_table: bool) -> str:
    others = len(differences) - 1
    advice = "run again, and report this if it happens again"
    if of_table:
        advice += " (if the table has row-level access policies, read it with --input_query)"
    return (
        "rows of the source are missing or duplicated, so nothing was written: "
        f"{differences[0]}{f' ({others:,} more differences)' if others else ''}; {advice}"
    )
