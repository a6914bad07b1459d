"""One HTML file from text, tables and charts. It loads nothing, and follows light and dark themes.

Charts are Vega-Lite specifications. The library that draws them is part of the file: vl-convert, an
optional package, contains it.
"""

from __future__ import annotations

import html
import importlib.util
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from common.errors import UsageError

Spec = Mapping[str, Any]
Tone = Literal["", "good", "bad", "odd"]
_HERE = Path(__file__).parent


@dataclass(frozen=True)
class Text:
    """A paragraph.

    Attributes:
        text: Plain text.
        kind: The class of the paragraph in the style sheet.
    """

    text: str
    kind: Literal["", "lead", "notice"] = ""


@dataclass(frozen=True)
class Code:
    """Text in a fixed-width font, with its line breaks."""

    text: str


@dataclass(frozen=True)
class Cell:
    """A cell of a table that has a tone."""

    text: str
    tone: Tone


CellValue = str | float | tuple[str, ...] | Cell | None


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table.

    Attributes:
        head: The names of the columns.
        rows: The cells: a text, a number, several lines, or None for a dash.
        caption: What the table shows.
    """

    head: Sequence[str]
    rows: Sequence[Sequence[CellValue]]
    caption: str = ""


@dataclass(frozen=True, kw_only=True)
class Chart:
    """A chart.

    Attributes:
        spec: The Vega-Lite specification, with its data.
        caption: What the chart shows, also for those who do not see it.
    """

    spec: Spec
    caption: str


@dataclass(frozen=True)
class Section:
    """A part of a page with a heading."""

    heading: str
    parts: Sequence[Text | Code | Table | Chart]


def write_page(title: str, sections: Iterable[Section], script: str | None = None) -> str:
    """Return the HTML of a page.

    Args:
        title: The title, also of the window.
        sections: The parts. The first one needs no heading.
        script: What `drawing_script` returned, for a machine that may lack vl-convert.

    Raises:
        UsageError: The page has a chart, and vl-convert is not installed.
    """
    charts: list[Spec] = []
    body = "\n".join(_section(section, charts) for section in sections)
    data = "\n".join(
        f'<script type="application/json" id="spec-{i}">{_data(spec)}</script>'
        for i, spec in enumerate(charts)
    )
    scripts = ""
    if charts:
        embed = (_HERE / "embed.js").read_text()
        scripts = f"<script>{script or drawing_script()}</script>\n<script>{embed}</script>"
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<link rel="icon" href="data:,">
<title>{html.escape(title)}</title>
<style>{(_HERE / "style.css").read_text()}</style>
</head>
<body>
<h1>{html.escape(title)}</h1>
{body}
{data}
{scripts}
</body>
</html>
"""


def drawing_script() -> str:
    """Return the script that draws charts.

    Raises:
        UsageError: vl-convert is not installed.
    """
    if importlib.util.find_spec("vl_convert") is None:
        raise UsageError("pages need one more package: run pip install 'millrace[pages]'")
    import vl_convert

    return str(vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")).replace(
        "</script", "<\\/script"
    )


def _data(spec: Spec) -> str:
    """Return a specification as JSON that cannot end the script element that it is in."""
    return json.dumps(spec, allow_nan=False).replace("<", "\\u003c")


def _section(section: Section, charts: list[Spec]) -> str:
    heading = f"<h2>{html.escape(section.heading)}</h2>\n" if section.heading else ""
    parts = "".join(_part(part, charts) for part in section.parts)
    return f"<section>\n{heading}{parts}</section>"


def _part(part: Text | Code | Table | Chart, charts: list[Spec]) -> str:
    if isinstance(part, Text):
        kind = f' class="{part.kind}"' if part.kind else ""
        return f"<p{kind}>{html.escape(part.text)}</p>\n"
    if isinstance(part, Code):
        return f"<pre>{html.escape(part.text)}</pre>\n"
    if isinstance(part, Table):
        return _table(part)
    charts.append(part.spec)
    caption = html.escape(part.caption)
    return (
        f'<figure><div class="chart" role="img" aria-label="{caption}" '
        f'data-spec="spec-{len(charts) - 1}"></div><figcaption>{caption}</figcaption></figure>\n'
    )


def _table(table: Table) -> str:
    numeric = [
        all(not isinstance(row[i], str | tuple | Cell) for row in table.rows) and bool(table.rows)
        for i in range(len(table.head))
    ]
    kinds = [' class="number"' if one else "" for one in numeric]
    head = "".join(
        f"<th{kind}>{html.escape(name)}</th>" for kind, name in zip(kinds, table.head, strict=True)
    )
    rows = "".join(
        f"<tr>{''.join(_cell(cell, kind) for cell, kind in zip(row, kinds, strict=True))}</tr>\n"
        for row in table.rows
    )
    body = f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
    # A caption of a table would be as narrow, or as wide, as the table.
    caption = f"<figcaption>{html.escape(table.caption)}</figcaption>" if table.caption else ""
    return f'<figure>{caption}<div class="scroll">{body}</div></figure>\n'


def _cell(cell: CellValue, kind: str) -> str:
    if isinstance(cell, Cell):
        return f'<td class="{cell.tone}">{html.escape(cell.text)}</td>'
    if isinstance(cell, str | tuple):
        lines = (cell,) if isinstance(cell, str) else cell
        return f"<td>{'<br>'.join(map(html.escape, lines))}</td>"
    return f"<td{kind}>{'-' if cell is None else number(cell)}</td>"


def number(value: float) -> str:
    """Return a number with three significant digits, or whole if it is at least 100."""
    return f"{value:,.0f}" if abs(value) >= 100 or value == int(value) else f"{value:,.3g}"
