"""The parts of a manifest as plain values, as they are written in JSON."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from typing import Any

from model_handlers.manifests.parts import ColumnStatistics, FieldSpec, Spread
from model_handlers.steps.chain import Chain
from model_handlers.steps.step import Step

# What is written without the members that have their default.
_SPARSE = (Step, ColumnStatistics, Spread)


@dataclass(frozen=True)
class PlainValues:
    """How the parts of a manifest become plain values.

    Attributes:
        version: The version of the manifest. Members of later versions are left out.
        outputs: The names of the model's outputs, at which chains of fields may start.
        brief: Whether to leave out the members that have their default in all parts, not only in
            some.
    """

    version: int
    outputs: Collection[str]
    brief: bool = False

    def of(self, value: Any, in_field: bool = False) -> Any:
        """Return the plain value of a part.

        Args:
            value: The part: a dataclass of the manifest, a mapping, a list or a plain value.
            in_field: Whether the part belongs to a field.
        """
        if isinstance(value, Chain):
            kind = ("output" if value.start in self.outputs else "field") if in_field else "column"
            return [{kind: value.start}, *(self.of(step) for step in value.steps)]
        if is_dataclass(value) and not isinstance(value, type):
            own = {"step": value.NAME} if isinstance(value, Step) else {}
            return own | {
                f.metadata.get("name", f.name): self.of(
                    getattr(value, f.name), isinstance(value, FieldSpec)
                )
                for f in fields(value)
                if self._has(value, f)
            }
        if isinstance(value, Mapping):
            return {name: self.of(item, in_field) for name, item in value.items()}
        if isinstance(value, (tuple, list)):
            return [self.of(item, in_field) for item in value]
        return value

    def _has(self, value: Any, member: Field[Any]) -> bool:
        """Return whether a member of a dataclass is written."""
        if member.metadata.get("since", 1) > self.version:
            return False
        if not self.brief and not isinstance(value, _SPARSE):
            return True
        default = member.default
        if default is MISSING and member.default_factory is not MISSING:
            default = member.default_factory()
        return bool(getattr(value, member.name) != default)


def digest_of(values: Mapping[str, Any]) -> str:
    """Return the hex sha256 of plain values. The order of the members of objects is ignored."""
    text = json.dumps(values, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()
