"""The table of findings, which several pages have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from common.html_pages.page import Table, number


def findings_table(findings: Sequence[Mapping[str, Any]]) -> Table:
    """Return findings with their evidence, as result.json has them."""

    def value(finding: Mapping[str, Any]) -> str:
        found = finding["value"]
        if found is None:
            return "insufficient data"
        text = found if isinstance(found, str) else number(found)
        return f"{text} {finding['unit']}".strip()

    return Table(
        head=["finding", "value", "confidence", "evidence"],
        rows=[
            [one["name"], value(one), one["confidence"], tuple(one["evidence"])] for one in findings
        ],
    )
