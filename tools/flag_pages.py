"""Write the reference pages of all flags, docs/reference/flags/*.md.

python tools/flag_pages.py            # writes the pages that are out of date
python tools/flag_pages.py --check    # reports them, and exits with 1 if there are any

The pages are made from the parsers of the commands, so they cannot differ from `--help`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from common.command_line import non_negative, positive_integer  # noqa: E402
from model_handlers import inspect_package, package_flags  # noqa: E402
from pipelines import template_spec  # noqa: E402
from pipelines.launch import command as launch  # noqa: E402
from pipelines.options.flag import build_parser  # noqa: E402
from pipelines.replay import command as replay  # noqa: E402
from resources import flags as resources  # noqa: E402
from serving import settings  # noqa: E402
from serving.deploy import flags as deploy  # noqa: E402

FOLDER = ROOT / "docs" / "reference" / "flags"
_BEAM = "The command also accepts the flags of Apache Beam and its runners."
_LISTS = (
    "Commas or spaces separate the values of a list; a text with commas is not split at its "
    "spaces. Put a value that contains a separator into double quotes: `'\"a,b.csv\",c.csv'`."
)


@dataclass(frozen=True)
class Page:
    """The page of a command.

    Attributes:
        name: The file's name, without suffix.
        command: What a user types after `python -m`.
        parser: The parser of its flags.
        beam: Whether the command accepts Beam's flags too.
    """

    name: str
    command: str
    parser: argparse.ArgumentParser
    beam: bool = False


def commands() -> Iterator[Page]:
    """Yield a page for each command."""
    for command in (*launch.PIPELINES.values(), replay.COMMAND, launch.FLAGS):
        parser = build_parser(command.name, command.about, command.options)
        yield Page(command.name, f"pipelines.{command.name}", parser, beam=True)
    yield Page("template_spec", "pipelines.template_spec", template_spec.make_parser())
    yield Page("package", "model_handlers.package", package_flags.make_parser())
    yield Page("inspect", "model_handlers.inspect_package", inspect_package.make_parser())
    yield Page("serving", "serving", settings.make_parser({}))
    for name in ("deploy", "status", "undeploy"):
        yield Page(f"serving-{name}", f"serving {name}", getattr(deploy, f"{name}_parser")())
    (subcommands,) = (
        action
        for action in resources.make_parser()._actions
        if isinstance(action, argparse._SubParsersAction)
    )
    for name, parser in subcommands.choices.items():
        yield Page(f"resources-{name}", f"resources {name}", parser)


def table(actions: Sequence[argparse.Action]) -> list[str]:
    """Return the lines of a table of flags."""
    lines = ["| flag | value | what it does |", "|---|---|---|"]
    for action in actions:
        name = f"`{', '.join(action.option_strings) or action.metavar or action.dest}`"
        text = (action.help or "").replace("%%", "%").replace("|", "\\|")
        lines.append(f"| {name} | {value_of(action)} | {text} |")
    return lines


def value_of(action: argparse.Action) -> str:
    """Return what a user may type as the value of a flag."""
    if action.nargs == 0:
        return ""
    if action.choices is not None:
        return ", ".join(f"`{choice}`" for choice in action.choices)
    numeric = action.type in (positive_integer, non_negative)
    text = str(action.metavar or ("N" if numeric else "text"))
    if text.startswith("{"):
        return ", ".join(f"`{choice}`" for choice in text.strip("{}").split(","))
    return text.replace("|", " or ")


def text_of(page: Page) -> str:
    """Return the Markdown of a page."""
    lines = [f"# python -m {page.command}", "", page.parser.description or ""]
    lines += ["", f"{_BEAM} {_LISTS}"] if page.beam else []
    for group in page.parser._action_groups:
        actions = [action for action in group._group_actions if action.dest != "help"]
        if actions:
            title = group.title or ""
            heading = {"options": "Flags", "positional arguments": "Arguments"}.get(title, title)
            lines += ["", f"## {heading[:1].upper()}{heading[1:]}", "", *table(actions)]
    return "\n".join(lines) + "\n"


def pages() -> dict[Path, str]:
    """Return the path and text of each page, the index included."""
    found = {FOLDER / f"{page.name}.md": text_of(page) for page in commands()}
    index = ["# Flags", "", "Generated from the commands by `make templates`.", ""]
    index += ["| command | what it does |", "|---|---|"]
    for page in commands():
        about = page.parser.description or ""
        index.append(f"| [`python -m {page.command}`]({page.name}.md) | {about} |")
    return found | {FOLDER / "index.md": "\n".join(index) + "\n"}


def main(argv: Sequence[str]) -> int:
    """Write or check the pages; return the exit code."""
    wanted = pages()
    stale = [p for p, text in wanted.items() if not p.exists() or p.read_text() != text]
    extra = [path for path in FOLDER.glob("*.md") if path not in wanted]
    for path in [*stale, *extra]:
        print(f"{path.relative_to(ROOT)} is out of date", file=sys.stderr)
    if "--check" in argv:
        if stale or extra:
            print("to update the pages, run: make templates", file=sys.stderr)
        return 1 if stale or extra else 0
    FOLDER.mkdir(parents=True, exist_ok=True)
    for path in stale:
        path.write_text(wanted[path])
    for path in extra:
        path.unlink()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
