"""Count the decisions of a run: how many rows have each value of a field such as `decision`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import apache_beam as beam
import pyarrow as pa
import pyarrow.compute as pc

from transforms.accounts import Count

SHOWN_VALUES = 20
_DECIDED = "decided"


def count_decisions(rows: pa.RecordBatch, names: Sequence[str]) -> Iterator[Count]:
    """Yield the count `(("decided", field, value), rows)` of each value, and of null as one of two.

    Args:
        rows: Output rows.
        names: The columns whose values are counted, which hold text.
    """
    for name in names:
        for entry in pc.value_counts(rows.column(name)):
            value = entry["values"].as_py()
            key = (_DECIDED, name) if value is None else (_DECIDED, name, value)
            yield key, entry["counts"].as_py()


def report_decisions(counts: Mapping[tuple[str, ...], int], names: Sequence[str]) -> dict[str, Any]:
    """Return the counts as the report shows them, by field.

    Args:
        counts: The sums of all counts of a run, those of `count_decisions` among them.
        names: The fields that are counted.

    Returns:
        For each field the `rows` of its most frequent values, and `others`: the rows with another
        value, or with none.
    """
    report = {}
    for name in names:
        found = {key[2:]: n for key, n in counts.items() if key[:2] == (_DECIDED, name)}
        ranked = sorted(((v[0], n) for v, n in found.items() if v), key=lambda vn: (-vn[1], vn[0]))
        shown = dict(ranked[:SHOWN_VALUES])
        report[name] = {"rows": shown, "others": sum(found.values()) - sum(shown.values())}
    return report


@dataclass
class CountDecisions(beam.PTransform):
    """A transform from batches of output rows to the counts of their decisions.

    Attributes:
        names: The columns whose values are counted.
    """

    names: tuple[str, ...]

    def _count(self, rows: pa.RecordBatch) -> list[Count]:
        return list(count_decisions(rows, self.names))

    def expand(self, rows: beam.PCollection[pa.RecordBatch]) -> beam.PCollection[Count]:
        """Apply one FlatMap."""
        return rows | "Count" >> beam.FlatMap(self._count)
