"""What a whole test showed."""

from __future__ import annotations

from dataclasses import dataclass

from scale_tests.measures.knee import Knee
from scale_tests.measures.level import Judgement, Level


@dataclass(frozen=True)
class Outcome:
    """What a test showed.

    Attributes:
        test_id: The id that its messages carry.
        levels: The levels in their order, each with its judgement.
        knees: The results of the searches.
        strays: How many results carry the id of the test, but no sequence number of a level.
        interrupted: Whether the test ended before its plan.
    """

    test_id: str
    levels: tuple[tuple[Level, Judgement], ...]
    knees: tuple[Knee, ...]
    strays: int
    interrupted: bool
