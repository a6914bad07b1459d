"""Which steps of a stream hold messages that Pub/Sub has been told to forget, told by their names.

Dataflow says of a running job's step its name and whether it is a ParDo, not whether it has state.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

# Shuffles hold what waits for its window, reads what was handed out and is not done yet.
_KINDS = {"group_by_key", "read"}
# ParDos with state or timers, ours and Beam's.
_NAMES = re.compile(r"GroupIntoBatches|Deduplicate|ReadMessages|[Ss]tateful")


def holds_state(name: str, kind: str) -> bool:
    """A step's name and kind -> whether it may hold messages that come from nowhere else again."""
    return kind in _KINDS or _NAMES.search(name) is not None


def losing(old: Mapping[str, str], new: Mapping[str, str], mapping: Mapping[str, str]) -> list[str]:
    """Steps of the running job and of the new one, a mapping -> steps whose state it gives away.

    Into nothing, or into a step that has no place for it.
    """
    return [
        name
        for name, target in mapping.items()
        if holds_state(name, old.get(name, ""))
        and (not target or (target in new and not holds_state(target, new[target])))
    ]


def leaves(name: str, steps: Iterable[str]) -> list[str]:
    """A step's name -> the steps within it; none where it has no parts."""
    return [step for step in steps if step.startswith(f"{name}/")]
