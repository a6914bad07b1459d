"""Resources by name, and functions that list and change them as Google does."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from examples.google_api.faults import Call, Refusal


class Store:
    """Resources by full name, in the order in which they were created."""

    def __init__(self) -> None:
        self._resources: dict[str, dict[str, Any]] = {}

    def get(self, name: str) -> dict[str, Any]:
        """Return the resource itself, or raise Refusal with status 404."""
        if name not in self._resources:
            raise Refusal(404, f"The resource {name} is not found.")
        return self._resources[name]

    def create(self, name: str, resource: dict[str, Any]) -> dict[str, Any]:
        """Store a resource and return it, or raise Refusal with status 409 if the name exists."""
        if name in self._resources:
            raise Refusal(409, f"The resource {name} already exists.")
        self._resources[name] = resource
        return resource

    def delete(self, name: str) -> None:
        """Delete a resource, or raise Refusal with status 404."""
        self.get(name)
        del self._resources[name]

    def all(self) -> list[dict[str, Any]]:
        """Return all resources."""
        return list(self._resources.values())

    def under(self, prefix: str) -> list[dict[str, Any]]:
        """Return the resources of a collection, without resources below them."""
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
    """Return the page of resources that a list call requests with pageSize, pageToken and filter.

    Args:
        call: The call. Its filter consists of conditions `field="text"` or `labels.key:*`, joined
            by AND.
        key: The field of the answer that holds the resources.
        resources: All resources.
        page_size: The default and the maximum number of resources on a page.

    Raises:
        Refusal: If the filter is not valid.
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
    """Change only the fields of a resource that an update mask names.

    Args:
        resource: The resource, which is changed.
        body: The new values of fields; a named field without a value is removed.
        mask: The names of the fields, separated by commas; if empty, all fields of the body.
    """
    for path in mask.split(",") if mask else list(body):
        camel = re.sub(r"_(\w)", lambda m: m[1].upper(), path)
        if camel in body:
            resource[camel] = body[camel]
        else:
            resource.pop(camel, None)
