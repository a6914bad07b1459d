"""How many cases a test tries: fewer in the fast tiers than in the whole suite."""

from collections.abc import Sequence
from typing import TypeVar

from hypothesis import settings

WHOLE = 100
T = TypeVar("T")


def register_profiles() -> None:
    """Register Hypothesis' profiles `whole`, the default, and `fast`, and load `whole`."""
    # Deadlines would make tests depend on the speed of the machine.
    settings.register_profile("whole", deadline=None, max_examples=WHOLE)
    settings.register_profile("fast", deadline=None, max_examples=WHOLE // 10)
    settings.load_profile("whole")


def examples(count: int) -> int:
    """Return how many examples a test tries in this run, given the number in the whole suite."""
    return max(1, count * settings().max_examples // WHOLE)


def thinned(cases: Sequence[T]) -> Sequence[T]:
    """Return all cases in the whole suite, or every tenth case in the fast tiers."""
    return cases[:: WHOLE // settings().max_examples]
