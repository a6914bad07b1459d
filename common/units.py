"""Quantities as people read them."""

from __future__ import annotations


def in_bytes(size: float) -> str:
    """Bytes -> a text of three digits and a unit."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:,.3g} {unit}"
        size /= 1000
    return f"{size:,.3g} TB"
