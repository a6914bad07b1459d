"""How a cleanup ended."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(kw_only=True)
class Outcome:
    """What was done, what was kept and why, what went wrong.

    emptied: tables that stay. blocked: what a job of ours that runs stood against.
    """

    done: list[str] = field(default_factory=list)
    emptied: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    blocked: list[str] = field(default_factory=list)

    def __add__(self, other: Outcome) -> Outcome:
        """Another -> both, one after the other."""
        return Outcome(
            done=self.done + other.done,
            emptied=self.emptied + other.emptied,
            kept=self.kept + other.kept,
            errors=self.errors + other.errors,
            blocked=self.blocked + other.blocked,
        )
