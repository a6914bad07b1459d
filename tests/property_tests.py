"""How much a test tries of what it could try: less in the fast tiers than in the whole suite."""

from collections.abc import Sequence
from typing import TypeVar

from hypothesis import settings

WHOLE = 100
T = TypeVar("T")


def register_profiles() -> None:
    """Makes the profiles `whole`, which is used from here on, and `fast`, for the command line."""
    # No test depends on how fast the machine is.
    settings.register_profile("whole", deadline=None, max_examples=WHOLE)
    settings.register_profile("fast", deadline=None, max_examples=WHOLE // 10)
    settings.load_profile("whole")


def examples(count: int) -> int:
    """The examples that a test tries in the whole suite -> those that it tries in this run."""
    return max(1, count * settings().max_examples // WHOLE)


def thinned(cases: Sequence[T]) -> Sequence[T]:
    """Return all cases in the whole suite, every tenth one in the fast tiers."""
    return cases[:: WHOLE // settings().max_examples]
