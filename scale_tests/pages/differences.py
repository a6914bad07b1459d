"""Differences between two results of one plan."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from common.html_pages.page import Tone


class Change(StrEnum):
    """What a second result says about a figure of the first one."""

    SLOWER = "slower"
    FASTER = "faster"
    LARGER = "larger"
    SMALLER = "smaller"
    SAME = "no difference shown"
    UNKNOWN = "insufficient data"
    LOST = "lost messages"
    WRONG = "wrong results"


TONES: Mapping[Change, Tone] = {
    Change.SLOWER: "bad",
    Change.LARGER: "bad",
    Change.LOST: "bad",
    Change.WRONG: "bad",
    Change.FASTER: "good",
    Change.SMALLER: "good",
    Change.SAME: "",
    Change.UNKNOWN: "odd",
}


@dataclass(frozen=True, kw_only=True)
class Difference:
    """A figure in both results.

    Attributes:
        name: What was measured.
        unit: Its unit.
        before: The figure of the first result; None if it is not known.
        after: That of the second result.
        change: What the difference says.
    """

    name: str
    unit: str
    before: float | None
    after: float | None
    change: Change

    @property
    def fails(self) -> bool:
        """Whether the second result is worse."""
        return TONES[self.change] == "bad"
