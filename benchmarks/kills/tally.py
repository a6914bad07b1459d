"""What kills did: counted by scenario, and printed as a table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields


@dataclass(kw_only=True)
class Tally:
    """Counts of a scenario.

    kills: runs that `kill -9` met while they ran. ended: attempts that were over before it.
    committed: kills after which the new result was in place. lost, doubled: rows, after the
    rerun. gone: looks at which neither the old nor the new result was whole. again: rows that a
    stream delivered more than once, with one id, as it promises.
    """

    kills: int = 0
    ended: int = 0
    committed: int = 0
    lost: int = 0
    doubled: int = 0
    gone: int = 0
    again: int = 0

    @property
    def faults(self) -> int:
        """How much of it must not be."""
        return self.lost + self.doubled + self.gone

    def count_rows(self, wanted: Iterable[str], got: Iterable[str]) -> None:
        """Ids that must be there once, and those that are -> counted as lost and doubled.

        An id that must not be there counts as doubled.
        """
        expected, found = set(wanted), Counter(got)
        self.lost += len(expected - set(found))
        self.doubled += found.total() - len(set(found) & expected)


def as_table(tallies: Mapping[str, Tally]) -> str:
    """Scenarios -> lines of text with a line for each, and their sum."""
    names = [field.name for field in fields(Tally)]
    rows: list[Sequence[str]] = [("scenario", *names)]
    total = Tally()
    for scenario, tally in tallies.items():
        rows.append((scenario, *(f"{value:,}" for value in asdict(tally).values())))
        for name, value in asdict(tally).items():
            setattr(total, name, getattr(total, name) + value)
    rows.append(("all", *(f"{value:,}" for value in asdict(total).values())))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            [
                row[0].ljust(widths[0]),
                *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True)),
            ]
        )
        for row in rows
    )
