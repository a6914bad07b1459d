"""Formats quantities for people."""

from __future__ import annotations


def in_bytes(size: float) -> str:
    """Format a number of bytes with three digits and a unit, for example `1.23 MB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:,.3g} {unit}"
        size /= 1000
    return f"{size:,.3g} TB"
