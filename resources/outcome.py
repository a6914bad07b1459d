"""The outcome of a cleanup."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(kw_only=True)
class Outcome:
    """What a cleanup did.

    Attributes:
        done: Resources that were removed, and jobs that ended.
        emptied: Tables that were truncated.
        kept: What was kept, with the reasons.
        errors: Messages about what failed.
        blocked: Messages about what was kept because one of this configuration's jobs still runs.
    """

    done: list[str] = field(default_factory=list)
    emptied: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    blocked: list[str] = field(default_factory=list)

    def __add__(self, other: Outcome) -> Outcome:
        """Return the combination of both outcomes."""
        return Outcome(
            done=self.done + other.done,
            emptied=self.emptied + other.emptied,
            kept=self.kept + other.kept,
            errors=self.errors + other.errors,
            blocked=self.blocked + other.blocked,
        )
