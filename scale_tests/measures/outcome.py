"""What a whole test showed."""

from __future__ import annotations

from dataclasses import dataclass

from scale_tests.measures.knee import Knee
from scale_tests.measures.level import Judgement, Level

# Why a test ended that somebody interrupted.
INTERRUPTED = "the test was interrupted"


@dataclass(frozen=True)
class Outcome:
    """What a test showed.

    Attributes:
        test_id: The id that its messages carry.
        levels: The levels in their order, each with its judgement.
        knees: The results of the searches.
        strays: How many results carry the id of the test, but no sequence number of a level.
        ended: Why the test ended before its plan; empty if it did not.
        interrupted: Whether it was interrupted.
    """

    test_id: str
    levels: tuple[tuple[Level, Judgement], ...]
    knees: tuple[Knee, ...]
    strays: int
    ended: str = ""
    interrupted: bool = False
