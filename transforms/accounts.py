"""Accounts: what a source was found to hold, against what was read of it.

Whoever finds something to read promises it: a file, the bytes of a text file, the rows of
a Parquet file, the streams of a table. Whoever reads says which part of it was read. Both
travel as elements, on paths of their own, and meet here: a part that got lost on its way
to a worker was promised and never read. They are elements like the counts of
transforms/run_report.py, since Beam's metrics count a repeated bundle twice.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal, NamedTuple

import apache_beam as beam

from common.errors import BalanceError

Count = tuple[tuple[str, ...], int]
Span = tuple[int, int]
# Who counted the rows of a table, or of the one that a query left.
TABLE_ROWS = "row count of the table"
QUERY_ROWS = "row count of the query's result"


class Part(NamedTuple):
    """What one step says of a place.

    expected, read: what is there from start to stop, in units of `what`. counted: `stop` of
    them were read, nobody knows where they lie. The others say of `stop` rows who expects
    them, that they came, or why nobody knew of them before.
    """

    said: Literal["expected", "read", "counted", "rows_expected", "rows_read", "rows_unknown"]
    what: str
    start: int
    stop: int


Entry = tuple[str, Part]


def promise(place: str, unit: str, size: int) -> Entry:
    """A place, a unit and how many of them it holds -> the entry that says so."""
    return place, Part("expected", unit, 0, size)


def taken(place: str, unit: str, start: int, stop: int) -> Entry:
    """A place, a unit and what was read of it -> the entry that says so."""
    return place, Part("read", unit, start, stop)


def counted(place: str, unit: str, count: int) -> Entry:
    """A place, a unit without an order and how many were read -> the entry that says so.

    Without a promise for the place it says nothing.
    """
    return place, Part("counted", unit, 0, count)


def expect_rows(place: str, rows: int, counted_by: str) -> Entry:
    """A place, how many rows it gives and who says so -> the entry."""
    return place, Part("rows_expected", counted_by, 0, rows)


def unknown_rows(place: str, why: str) -> Entry:
    """A place whose rows only reading counts, and why -> the entry."""
    return place, Part("rows_unknown", why, 0, 1)


def rows_read(place: str, rows: int) -> Entry:
    """A place and how many rows a reader made of a part of it -> the entry."""
    return place, Part("rows_read", "", 0, rows)


def expect(unit: str, count: int) -> Count:
    """A unit without an order -> the count of what was found, and later has to be there."""
    return ("source", unit, "expected"), count


def found(unit: str, count: int) -> Count:
    """A unit without an order -> the count of what was there."""
    return ("source", unit, "read"), count


class Settle(beam.PTransform):
    """Entries -> counts: what was promised and read by unit, and each place that differs."""

    def expand(self, entries: beam.PCollection[Entry]) -> beam.PCollection[Count]:
        """by place -> compare."""
        return entries | "ByPlace" >> beam.GroupByKey() | "Compare" >> beam.FlatMapTuple(settle)


def settle(place: str, parts: Iterable[Part]) -> Iterator[Count]:
    """A place and all that was said of it -> counts by unit, and one for each difference.

    Nothing differs if the parts that were read cover what was promised, each of it once.
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
    # What has no order is read from its begin, as far as it goes.
    for unit in counts.keys() & promised.keys():
        spans[unit].append((0, counts[unit]))
    for unit in sorted(promised.keys() | spans.keys()):
        yield expect(unit, promised[unit])
        yield found(unit, sum(stop - start for start, stop in spans[unit]))
        wrong = difference(promised[unit], spans[unit])
        if wrong is not None:
            yield ("differs", f"{unit} {wrong} of {place}"), 1


def difference(size: int, spans: Iterable[Span]) -> str | None:
    """A size, and spans that have to cover it once -> the first fault in words, None without."""
    at = 0
    for start, stop in sorted(span for span in spans if span[0] < span[1]):
        if start > at:
            return f"{at:,} to {start:,} were not read"
        if start < at:
            return f"{start:,} to {min(at, stop):,} were read twice"
        at = stop
    if at < size:
        return f"{at:,} to {size:,} were not read"
    return f"{size:,} to {at:,} were read and not expected" if at > size else None


def joined(spans: Iterable[Span]) -> list[Span]:
    """Spans in order -> the same, those that touch made one."""
    result: list[Span] = []
    for start, stop in spans:
        if result and result[-1][1] == start:
            result[-1] = result[-1][0], stop
        else:
            result.append((start, stop))
    return result


def check_source(counts: Mapping[tuple[str, ...], int], rows_in: int) -> dict[str, Any]:
    """Sums of counts, and the rows that came -> what the report says of the source.

    rows_expected is None where only reading counts the rows; rows_expected_from says who
    counted them, each of them all, or why nobody did. Of each unit, as `files` or `bytes`,
    how much was expected and read. Raises BalanceError where something differs.
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
        f"{summary[f'{unit}_expected']:,} {unit} were expected, and "
        f"{summary[f'{unit}_read']:,} read"
        for unit in units
        if summary[f"{unit}_expected"] != summary[f"{unit}_read"]
    ]
    wrong += [
        f"{rows:,} rows were expected by the {by} and {rows_in:,} came"
        for by, rows in sorted(counted.items())
        if rows != rows_in and not unknown
    ]
    made = counts.get(("rows_read", ""), rows_in)
    if made != rows_in:
        wrong.append(f"{made:,} rows were read and {rows_in:,} came")
    if wrong:
        raise BalanceError(_wrong(wrong, TABLE_ROWS in counted))
    return {
        "rows_expected": rows_in if counted and not unknown else None,
        "rows_expected_from": "; ".join(unknown or sorted(counted)) or None,
        # Of rows, a part of the source may have been counted before.
        **{name: count for name, count in summary.items() if not name.startswith("rows_")},
    }


def _wrong(differences: list[str], of_table: bool) -> str:
    others = len(differences) - 1
    advice = "run again, and report this if it happens again"
    if of_table:
        advice += " (a table with row-level access policies is read with --input_query)"
    return (
        "rows of the source are missing or doubled, so nothing was written: "
        f"{differences[0]}{f' ({others:,} more differences)' if others else ''}; {advice}"
    )
