"""Counts the effects of kills in each scenario, and formats them as a table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields


@dataclass(kw_only=True)
class Tally:
    """The counts of a scenario.

    Attributes:
        kills: Runs that `kill -9` hit while they were running.
        ended: Attempts that had ended before the kill.
        committed: Kills after which the new result was in place.
        lost: Rows that were missing after the rerun.
        doubled: Rows that existed twice, or should not exist, after the rerun.
        gone: Checks that found neither the old nor the new result complete.
        again: Rows that a stream delivered more than once with one id, which it may do.
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
        """The number of events that must not happen."""
        return self.lost + self.doubled + self.gone

    def count_rows(self, wanted: Iterable[str], got: Iterable[str]) -> None:
        """Count lost and doubled rows, given the ids that must exist once and the ids that exist.

        An id that must not exist counts as doubled.
        """
        expected, found = set(wanted), Counter(got)
        self.lost += len(expected - set(found))
        self.doubled += found.total() - len(set(found) & expected)


def as_table(tallies: Mapping[str, Tally]) -> str:
    """Return a table of text with a line for each scenario and one for their sum."""
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
