"""Flags that would have no effect beside the others: refused, rather than ignored silently."""

from __future__ import annotations

import dataclasses
from typing import Any

from common.errors import UsageError
from pipelines.options.flag import Parsed

_ENDPOINT = ("endpoint", "endpoint_url")
# A flag -> those of which it needs one.
_NEEDS = {
    "endpoint_project": ("endpoint",),
    "endpoint_location": ("endpoint",),
    "instance_format": _ENDPOINT,
    "endpoint_parameters": _ENDPOINT,
    "endpoint_request_rows": _ENDPOINT,
    "endpoint_concurrency": _ENDPOINT,
    "endpoint_timeout_seconds": _ENDPOINT,
    "endpoint_cache_rows": _ENDPOINT,
    "skip_endpoint_check": _ENDPOINT,
    "file_seconds": ("output_files", "dead_letter_files"),
    "output_format": ("output_files",),
    "max_messages": ("input_subscription",),
}
# Flags of a model in the worker, where an endpoint may have it instead.
_OF_WORKER = ("device", "precision", "compile")


def check_idle_flags(parsed: Parsed) -> None:
    """Flags -> nothing, or a UsageError for one that has no effect beside the others."""
    given = {name for group in parsed.groups.values() for name in _given(group)}
    for name, others in _NEEDS.items():
        if name in given and given.isdisjoint(others):
            flags = " or ".join(f"--{other}" for other in others)
            raise UsageError(f"--{name} has no effect without {flags}: add it, or drop --{name}")
    for name in _OF_WORKER:
        if name in given and (other := next((e for e in _ENDPOINT if e in given), None)):
            raise UsageError(
                f"--{name} has no effect beside --{other}, which runs the model: drop --{name}"
            )


def _given(group: Any) -> set[str]:
    """An options class' instance -> its flags that have another value than the default."""
    fields = dataclasses.fields(group)
    return {f.name for f in fields if getattr(group, f.name) != f.default}
