"""Resources by their names: kept, listed and changed as Google does."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from examples.google_api.faults import Call, Refusal


class Store:
    """Resources by full name, in the order in which they were made."""

    def __init__(self) -> None:
        self._resources: dict[str, dict[str, Any]] = {}

    def get(self, name: str) -> dict[str, Any]:
        """A name -> the resource itself. Raises Refusal 404."""
        if name not in self._resources:
            raise Refusal(404, f"The resource {name} is not found.")
        return self._resources[name]

    def create(self, name: str, resource: dict[str, Any]) -> dict[str, Any]:
        """A name and a resource -> the resource, kept. Raises Refusal 409."""
        if name in self._resources:
            raise Refusal(409, f"The resource {name} already exists.")
        self._resources[name] = resource
        return resource

    def delete(self, name: str) -> None:
        """A name -> nothing is there any more. Raises Refusal 404."""
        self.get(name)
        del self._resources[name]

    def all(self) -> list[dict[str, Any]]:
        """Nothing -> all resources."""
        return list(self._resources.values())

    def under(self, prefix: str) -> list[dict[str, Any]]:
        """A collection's name -> its resources, those below them left out."""
        prefix = f"{prefix}/"
        return [
            resource
            for name, resource in self._resources.items()
            if name.startswith(prefix) and "/" not in name[len(prefix) :]
        ]


_CONDITION = re.compile(r'\s*([\w.-]+)\s*(=|:)\s*("[^"]*"|[\w.*-]+)\s*')


def listed(
    call: Call, key: str, resources: Sequence[Mapping[str, Any]], page_size: int = 100
) -> dict[str, Any]:
    """A list call and resources -> the page asked for: pageSize, pageToken and filter obeyed.

    Filters are conditions `field="text"` or `labels.key:*` joined by AND.
    """
    found = [r for r in resources if _passes(call.values.get("filter", ""), r)]
    start = int(call.values.get("pageToken") or 0)
    stop = start + min(int(call.values.get("pageSize") or 0) or page_size, page_size)
    more = {"nextPageToken": str(stop)} if stop < len(found) else {}
    return {key: found[start:stop], **more} if found[start:stop] else {}


def _passes(text: str, resource: Mapping[str, Any]) -> bool:
    for condition in text.split(" AND ") if text else []:
        parts = _CONDITION.fullmatch(condition)
        if parts is None:
            raise Refusal(400, f"Invalid list filter: {text}")
        value: Any = resource
        for name in parts[1].split("."):
            camel = re.sub(r"_(\w)", lambda m: m[1].upper(), name)
            value = value.get(name, value.get(camel)) if isinstance(value, Mapping) else None
        wanted = parts[3].strip('"')
        if value is None or (wanted != "*" and str(value) != wanted):
            return False
    return True


def patched(resource: dict[str, Any], body: Mapping[str, Any], mask: str) -> None:
    """A resource, a body and an update mask -> the resource changed in these fields alone."""
    for path in mask.split(",") if mask else list(body):
        camel = re.sub(r"_(\w)", lambda m: m[1].upper(), path)
        if camel in body:
            resource[camel] = body[camel]
        else:
            resource.pop(camel, None)
