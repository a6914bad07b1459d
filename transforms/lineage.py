"""Record which dead letters a replay uses, to detect two replays of the same row.

A replay has its own run id, and its rows carry only that id. This module has no side effects:
transforms/bigquery/replay_marks.py stores lineages.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import orjson

# The pipelines of replays.
STREAM_REPLAY, BATCH_REPLAY = "stream_replay", "batch_replay"
Relation = Literal["apart", "covers", "overlaps"]


@dataclass(frozen=True)
class LetterKind:
    """What dead letters have in common: the run, the pipeline, the stage and the reason."""

    run_id: str
    pipeline: str
    stage: str
    reason: str

    @property
    def of_replay(self) -> bool:
        """Whether a replay wrote them, so that another run has dead letters of the same rows."""
        return self.pipeline in (STREAM_REPLAY, BATCH_REPLAY)


@dataclass(frozen=True)
class Taken:
    """How many dead letters of a kind a replay uses, and when the first and the last failed.

    Attributes:
        count: The number of dead letters.
        first: When the first one failed, in seconds since 1970.
        last: When the last one failed, in seconds since 1970.
    """

    count: int
    first: float
    last: float

    def add(self, time: float) -> Taken:
        """Return the same with one more dead letter, which failed at a time in seconds."""
        return Taken(self.count + 1, min(self.first, time), max(self.last, time))


@dataclass(frozen=True)
class Lineage:
    """The run id of a replay, and how many dead letters of each kind it uses."""

    run_id: str
    letters: Mapping[LetterKind, Taken]

    @property
    def runs(self) -> tuple[str, ...]:
        """The runs whose dead letters are replayed."""
        return tuple(sorted({kind.run_id for kind in self.letters}))

    def to(self, earlier: Lineage, known: Mapping[str, Lineage] | None = None) -> Relation:
        """Compare this replay with an earlier one.

        Dead letters are compared by kind, number and time, because rows may share ids.

        Args:
            earlier: The earlier replay.
            known: Other replays by run id. The dead letters that a replay wrote may have been
                deleted since; they count as used if all dead letters that it used are used.

        Returns:
            `covers` if this replay uses all dead letters of the earlier one, `overlaps` if it may
            use some of them, `apart` if it uses none.
        """
        if self._covers(earlier, known or {}, frozenset()):
            return "covers"
        pairs = ((own, other) for own in self.letters for other in earlier.letters)
        met = any(_may_meet(self, own, earlier, other) for own, other in pairs)
        return "overlaps" if met else "apart"

    def _covers(self, other: Lineage, known: Mapping[str, Lineage], seen: frozenset[str]) -> bool:
        for kind, taken in other.letters.items():
            own = self.letters.get(kind)
            if own is not None and own.count >= taken.count and own.first <= taken.first:
                continue
            source = known.get(kind.run_id) if kind.of_replay else None
            if source is None or kind.run_id in seen:
                return False
            if not self._covers(source, known, seen | {kind.run_id}):
                return False
        return True

    def to_text(self) -> str:
        """Return the lineage as a line of JSON."""
        letters = [
            [kind.run_id, kind.pipeline, kind.stage, kind.reason, t.count, t.first, t.last]
            for kind, t in self.letters.items()
        ]
        return orjson.dumps({"run_id": self.run_id, "letters": letters}).decode()

    @classmethod
    def from_text(cls, text: str) -> Lineage:
        """Return the lineage that `to_text` wrote."""
        value = orjson.loads(text)
        return cls(
            value["run_id"],
            {LetterKind(*entry[:4]): Taken(*entry[4:]) for entry in value["letters"]},
        )


def _may_meet(new: Lineage, own: LetterKind, earlier: Lineage, other: LetterKind) -> bool:
    """Return whether dead letters of two kinds may be of the same row."""
    if own != other:
        # The rows of a replay's dead letters also have dead letters of other runs.
        return own.run_id != other.run_id and (own.of_replay or other.of_replay)
    ours, theirs = new.letters[own], earlier.letters[other]
    return ours.first <= theirs.last and theirs.first <= ours.last
