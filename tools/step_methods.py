"""Write the methods of `column(...)`, one for each step: model_handlers/packaging/step_methods.py.

python tools/step_methods.py            # writes the module if it is out of date
python tools/step_methods.py --check    # reports it, and exits with 1

The methods are made from the declarations of the steps, so they have the same members.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from model_handlers.packaging.to_fit import GIVEN, TO_FIT  # noqa: E402
from model_handlers.steps.catalog import STEPS  # noqa: E402
from model_handlers.steps.step import Step  # noqa: E402

MODULE = ROOT / "model_handlers" / "packaging" / "step_methods.py"
_HEAD = '''"""The steps as methods. Written by tools/step_methods.py: do not edit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

from model_handlers.steps.general import RawName
from model_handlers.steps.lists import Keep, Side
from model_handlers.steps.times import Part


class StepMethods:
    """Methods that return a column, an output or a field with one more step."""

    def _then(self, step: str, **members: Any) -> Self:
        raise NotImplementedError
'''


def module() -> str:
    """Return the text of the module, which is still to be formatted."""
    return _HEAD + "".join(f"\n{method(step)}" for step in STEPS.values())


def is_current() -> bool:
    """Return whether the module has the methods of all steps."""
    found = MODULE.read_text() if MODULE.exists() else ""
    return ast.dump(ast.parse(found)) == ast.dump(ast.parse(module()))


def method(step: type[Step]) -> str:
    """Return the text of the method of a step."""
    plain, keywords = parameters(step)
    arguments = ", ".join(["self", *plain, *(["*", *keywords] if keywords else [])])
    names = [text.partition(":")[0] for text in (*plain, *keywords)]
    members = "".join(f", {name}={name}" for name in names)
    text = textwrap.indent(description(step), " " * 8).lstrip()
    text += " " * 8 if "\n" in text else ""
    return (
        f"    def {step.NAME}({arguments}) -> Self:\n"
        f'        """{text}"""\n'
        f'        return self._then("{step.NAME}"{members})\n'
    )


def parameters(step: type[Step]) -> tuple[list[str], list[str]]:
    """Return the parameters of a method that may be positional, and those that may not."""
    plain: list[str] = []
    keywords: list[str] = []
    own = dataclasses.fields(step)
    for member in own:
        (keywords if member.kw_only else plain).append(_parameter(step, member))
    if step.NAME in TO_FIT:
        known = {member.name for member in own}
        for member in dataclasses.fields(TO_FIT[step.NAME]):
            if member.name not in known:
                keywords.insert(0, f"{member.name}: {_optional(member.type)} = None")
    return plain, keywords


def _parameter(step: type[Step], member: dataclasses.Field) -> str:
    if member.name == "file":
        # A list in its place is `values`.
        return "file: str | Sequence[str] | None = None"
    kind = re.sub(r"tuple\[(\w+), \.\.\.\]", r"Sequence[\1]", str(member.type))
    if member.default is not dataclasses.MISSING:
        return f"{member.name}: {kind} = {member.default!r}"
    if member.name in GIVEN.get(step.NAME, ()):
        return f"{member.name}: {_optional(kind)} = None"
    return f"{member.name}: {kind}"


def _optional(kind: object) -> str:
    return f"{kind}" if str(kind).endswith("| None") else f"{kind} | None"


def description(step: type[Step]) -> str:
    """Return the docstring of a method."""
    text = "\n\n".join(textwrap.fill(part, 86) for part in _paragraphs(step))
    return f"{text}\n" if "\n" in text else text


def _paragraphs(step: type[Step]) -> Iterator[str]:
    text = inspect.cleandoc(step.__doc__ or "")
    first, _, rest = text.partition("\n\n")
    # The first line of a docstring is a sentence.
    sentence, _, more = " ".join(first.split()).partition(". ")
    yield sentence.rstrip(".") + "."
    if more:
        yield more
    yield from (" ".join(part.split()) for part in rest.split("\n\n") if part)
    if step.NAME in TO_FIT:
        fitted = " ".join(inspect.cleandoc(TO_FIT[step.NAME].__doc__ or "").split())
        given = GIVEN.get(step.NAME)
        start = f"Without {' and '.join(given)}, it is" if given else "It can be"
        yield f"{start} fitted on the sample: {fitted[0].lower()}{fitted[1:]}"


def main(argv: Sequence[str] | None = None) -> int:
    """Write or check the module."""
    check = "--check" in (sys.argv[1:] if argv is None else argv)
    if is_current():
        return 0
    if check:
        print(f"{MODULE.relative_to(ROOT)} is out of date: run python tools/step_methods.py")
        return 1
    MODULE.write_text(module())
    subprocess.run([sys.executable, "-m", "ruff", "format", "-q", str(MODULE)], check=True)
    print(f"wrote {MODULE.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
