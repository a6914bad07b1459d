"""A memory for what Beam finds out about a DoFn again and again."""

from types import MethodType
from typing import Any

from apache_beam.transforms import userstate


def remember_specs() -> None:
    """Let Beam look at the methods of each class of DoFn once.

    Beam inspects every method of every DoFn eight times per pipeline, which is a third of the CPU
    time of a small one. The fast tiers do without; the whole suite leaves Beam as it is.
    """
    inspect, known = userstate.get_dofn_specs, {}

    def get_dofn_specs(dofn: Any) -> Any:
        # A function that Beam wraps is no method, and so has no specs, unless it is a bound method.
        process = getattr(dofn, "process", None)
        key = (type(dofn), process.__func__ if isinstance(process, MethodType) else None)
        if key not in known:
            known[key] = inspect(dofn)
        return known[key]

    userstate.get_dofn_specs = get_dofn_specs
