"""Which dead letters a replay takes, so that two replays of one row are known as such.

A replay has a run id of its own, and its rows carry that alone. Pure:
transforms/bigquery/replay_marks.py keeps lineages.
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
    """What letters have in common: the run and the pipeline that wrote them, and why."""

    run_id: str
    pipeline: str
    stage: str
    reason: str

    @property
    def of_replay(self) -> bool:
        """Whether a replay wrote them: another run has letters of the same rows."""
        return self.pipeline in (STREAM_REPLAY, BATCH_REPLAY)


@dataclass(frozen=True)
class Taken:
    """How many letters of a kind are taken, and when the first and the last of them failed.

    first, last: seconds since 1970.
    """

    count: int
    first: float
    last: float

    def add(self, time: float) -> Taken:
        """With one letter more, that failed at this time."""
        return Taken(self.count + 1, min(self.first, time), max(self.last, time))


@dataclass(frozen=True)
class Lineage:
    """A replay's run id, and what it takes of which letters."""

    run_id: str
    letters: Mapping[LetterKind, Taken]

    @property
    def runs(self) -> tuple[str, ...]:
        """The runs whose letters are taken."""
        return tuple(sorted({kind.run_id for kind in self.letters}))

    def to(self, earlier: Lineage, known: Mapping[str, Lineage] | None = None) -> Relation:
        """An earlier replay -> whether this one takes other letters, all of that one's, or some.

        known: replays by run id. What one of them wrote may be gone since: its letters are taken
        where all that it took is. Letters are compared by kind, number and time, since rows may
        share their ids.
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
        """As a line of JSON."""
        letters = [
            [kind.run_id, kind.pipeline, kind.stage, kind.reason, t.count, t.first, t.last]
            for kind, t in self.letters.items()
        ]
        return orjson.dumps({"run_id": self.run_id, "letters": letters}).decode()

    @classmethod
    def from_text(cls, text: str) -> Lineage:
        """What `to_text` made -> the lineage."""
        value = orjson.loads(text)
        return cls(
            value["run_id"],
            {LetterKind(*entry[:4]): Taken(*entry[4:]) for entry in value["letters"]},
        )


def _may_meet(new: Lineage, own: LetterKind, earlier: Lineage, other: LetterKind) -> bool:
    """Whether letters of two kinds may be of one row."""
    if own != other:
        # A replay's letters are of rows of which other runs have letters as well.
        return own.run_id != other.run_id and (own.of_replay or other.of_replay)
    ours, theirs = new.letters[own], earlier.letters[other]
    return ours.first <= theirs.last and theirs.first <= ours.last
