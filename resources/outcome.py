"""How a cleanup ended."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
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
            self.done + other.done,
            self.emptied + other.emptied,
            self.kept + other.kept,
            self.errors + other.errors,
            self.blocked + other.blocked,
        )
