"""Write the reference page of all steps, docs/reference/steps.md.

python tools/step_page.py            # writes the page if it is out of date
python tools/step_page.py --check    # reports that, and exits with 1

The page is made from the declarations of the steps, so it cannot differ from what a manifest takes.
"""

from __future__ import annotations

import dataclasses
import inspect
import sys
import types
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from model_handlers.steps.answers import ANSWER_STEPS  # noqa: E402
from model_handlers.steps.categories import CATEGORY_STEPS  # noqa: E402
from model_handlers.steps.general import GENERAL_STEPS  # noqa: E402
from model_handlers.steps.lists import LIST_STEPS  # noqa: E402
from model_handlers.steps.numeric import NUMBER_STEPS  # noqa: E402
from model_handlers.steps.own_function import OWN_STEPS  # noqa: E402
from model_handlers.steps.raw import RAW_TYPES, expected  # noqa: E402
from model_handlers.steps.step import WORDS, Kind, Step  # noqa: E402
from model_handlers.steps.times import TIME_STEPS  # noqa: E402

PAGE = ROOT / "docs" / "reference" / "steps.md"
_GROUPS: dict[str, Sequence[type[Step]]] = {
    "Any cells": GENERAL_STEPS,
    "Numbers": NUMBER_STEPS,
    "Text and categories": CATEGORY_STEPS,
    "Times": TIME_STEPS,
    "Lists": LIST_STEPS,
    "Answers of the model": ANSWER_STEPS,
    "Your own functions": OWN_STEPS,
}
_INTRODUCTION = """\
# Steps

Generated from the code by `make templates`.

A chain is a list in `model.json`: the name of a column, then steps. Each step takes what the one
before it gives. The chains of an input (`from` of `inputs`) turn columns of the source into its
numbers. The chain of a field (`from` of `fields`) turns an output of the model, or an earlier
field, into a label, a decision or another number.

```json
[{"column": "amount"}, {"step": "log1p"}, {"step": "scale", "mean": 3.1, "std": 1.2}]
```

Null stays null in every step but `fill`, and a row with null in an input becomes a dead letter. So
does a row with a cell that a step refuses; the message names the column, and each step lists its
[reasons](dead-letter-reasons.md). A step that also takes lists changes each item, and refuses a
list with an item that it refuses. Numbers are computed in 64 bits, and converted to the dtype of
the input at the end.
"""
_RAW = """
## Types of columns

`columns` in `model.json` declares the type of each column that a chain reads. Text that spells a
value counts as the value: CSV, JSON, Avro, Arrow, Parquet and BigQuery give the same cells. NaN
counts as null, and so does empty text, unless the type is `string`. Times are kept to the
microsecond. Their years are from 1 to 9999.

| type | what a cell is |
|---|---|
"""


def pages() -> dict[Path, str]:
    """Return the path and text of the page."""
    lines = [_INTRODUCTION.rstrip(), _RAW.rstrip()]
    lines += [f"| `{raw}` | {expected(raw)} |" for raw in RAW_TYPES]
    for title, steps in _GROUPS.items():
        lines += ["", f"## {title}"]
        for step in steps:
            lines += ["", *_section(step)]
    return {PAGE: "\n".join(lines) + "\n"}


def _section(step: type[Step]) -> Iterator[str]:
    """Yield the lines of the section of a step."""
    yield f"### {step.NAME}"
    yield ""
    yield inspect.cleandoc(step.__doc__ or "")
    members = dataclasses.fields(step)
    if members:
        hints = get_type_hints(step)
        yield ""
        yield "| member | type | default |"
        yield "|---|---|---|"
        for member in members:
            yield f"| `{member.name}` | {_type(hints[member.name])} | {_default(member)} |"
    yield ""
    yield "| takes | gives | reasons of dead letters |"
    yield "|---|---|---|"
    kinds = (
        "any cells"
        if set(step.TAKES) == set(Kind)
        else " or ".join(WORDS[kind] for kind in step.TAKES)
    )
    takes = f"{kinds}; also in lists" if step.EACH else kinds
    reasons = ", ".join(f"`{reason}`" for reason in step.REASONS) or "none"
    yield f"| {takes} | {step.GIVES} | {reasons} |"


def _type(kind: Any) -> str:
    """Return the type of a member in words."""
    origin, args = get_origin(kind), get_args(kind)
    if origin is Literal:
        return ", ".join(f"`{choice}`" for choice in args)
    if origin in (types.UnionType, Union):
        words = [_type(one) for one in args if one is not type(None)]
        # An integer is a number too.
        return " or ".join(word for word in words if word != "integer" or "number" not in words)
    if origin is tuple:
        return f"list of {_type(args[0])}s"
    return {str: "text", int: "integer", float: "number", bool: "true or false"}[kind]


def _default(member: dataclasses.Field[Any]) -> str:
    if member.default is dataclasses.MISSING:
        return "required"
    if member.default in (None, ()):
        return ""
    if isinstance(member.default, bool):
        return str(member.default).lower()
    return f"`{member.default:g}`" if isinstance(member.default, float) else f"`{member.default}`"


def main(argv: Sequence[str]) -> int:
    """Write or check the page; return the exit code."""
    stale = [p for p, text in pages().items() if not p.exists() or p.read_text() != text]
    for path in stale:
        if "--check" in argv:
            print(f"{path.relative_to(ROOT)} is out of date: run make templates", file=sys.stderr)
            return 1
        path.write_text(pages()[path])
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
