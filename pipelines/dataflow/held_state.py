"""Find out, by their names, which steps of a stream hold messages that are acknowledged already.

Dataflow reports the name and kind of each step of a running job, but not whether it has state.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

# A shuffle holds messages that wait for their window. A read holds messages that it has handed out
# and that are not processed yet.
_KINDS = {"group_by_key", "read"}
# Names of ParDos with state or timers, of Millrace and of Beam.
_NAMES = re.compile(
    r"GroupIntoBatches|Group/Wait\b|Deduplicate|ReadMessages|Write\w+/Group\b|[Ss]tateful"
)


def holds_state(name: str, kind: str) -> bool:
    """Return whether a step may hold messages that Pub/Sub will not deliver again.

    Args:
        name: The full name of the step.
        kind: Its kind as Dataflow names it, such as `par_do` or `group_by_key`.
    """
    return kind in _KINDS or _NAMES.search(name) is not None


def losing(old: Mapping[str, str], new: Mapping[str, str], mapping: Mapping[str, str]) -> list[str]:
    """Return the steps of the running job whose state a mapping drops.

    A mapping drops a step's state if it maps the step to an empty name, or to a step that holds no
    state.

    Args:
        old: The steps of the running job: their kinds by name.
        new: The steps of the new pipeline: their kinds by name.
        mapping: Old names to new names.
    """
    return [
        name
        for name, target in mapping.items()
        if holds_state(name, old.get(name, ""))
        and (not target or (target in new and not holds_state(target, new[target])))
    ]


def leaves(name: str, steps: Iterable[str]) -> list[str]:
    """Return the steps within a group of steps; empty if the name is not a group's.

    Args:
        name: The name of the group.
        steps: The names of all steps.
    """
    return [step for step in steps if step.startswith(f"{name}/")]
