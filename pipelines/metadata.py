"""Files generated from the flags: metadata of the Flex Templates, and the tables in the docs.

python -m pipelines.metadata            # writes templates/*.json and docs/flags.md
python -m pipelines.metadata --check    # fails if one of them is out of date
"""

from __future__ import annotations

import dataclasses
import sys
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import orjson

from pipelines.command import Command
from pipelines.launch import command as launch
from pipelines.options.flag import as_text, choices_of, plain_type
from pipelines.replay import command as replay

TEMPLATES = tuple(launch.PIPELINES.values())
# Every other flag that a pipeline needs has alternatives, which the pipeline's error names.
_REQUIRED = {"model"}
FOLDER = Path(__file__).parent.parent


def template(command: Command) -> dict[str, Any]:
    """Return the metadata of a pipeline's Flex Template, as the Dataflow console reads it.

    Source of the fields: Dataflow's TemplateMetadata and ParameterMetadata.
    """
    metadata: dict[str, Any] = {
        "name": command.title,
        "description": command.about,
        "parameters": [_parameter(kind, f) for kind, f in _fields(command, in_template=True)],
    }
    if command.name.startswith("stream"):
        # The sinks deliver at least once in either mode, and this mode costs less.
        metadata |= {
            "streaming": True,
            "supportsAtLeastOnce": True,
            "supportsExactlyOnce": True,
            "defaultStreamingMode": "AT_LEAST_ONCE",
        }
    return metadata


def _fields(
    command: Command, *, in_template: bool
) -> Iterator[tuple[type[Any], dataclasses.Field[Any]]]:
    for kind in command.options:
        for f in dataclasses.fields(kind):
            if f.metadata["in_template"] or not in_template:
                yield kind, f


def _group(kind: type[Any]) -> str:
    return (kind.__doc__ or "").strip().splitlines()[0].rstrip(".")


def _parameter(kind: type[Any], f: dataclasses.Field[Any]) -> dict[str, Any]:
    meta = f.metadata
    found: dict[str, Any] = {
        "name": f.name,
        "label": meta["label"],
        "helpText": _sentence(meta["help"]),
        "isOptional": f.name not in _REQUIRED,
        "paramType": meta["param_type"],
        "groupName": _group(kind),
    }
    if meta["form"] is not None:
        found["regexes"] = [f"^(?:{meta['form'].regex})$"]
    if choices := choices_of(typing.get_type_hints(kind)[f.name]):
        found["enumOptions"] = [{"value": choice, "label": choice} for choice in choices]
    if f.default is not None:
        found["defaultValue"] = as_text(f.default)
    return found


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


def flag_tables(commands: Sequence[Command]) -> str:
    """Return a page of Markdown with tables of the flags of each command."""
    lines = [
        "# Flags",
        "",
        "Generated from `pipelines/options/` by `make templates`. The commands also accept the",
        "flags of Apache Beam and its runners. Commas or spaces separate the values of a list.",
    ]
    for command in commands:
        lines += ["", f"## python -m pipelines.{command.name}", "", command.about]
        group = ""
        for kind, f in _fields(command, in_template=False):
            if _group(kind) != group:
                group = _group(kind)
                lines += [
                    "",
                    f"**{group}**",
                    "",
                    "| flag | value | default | |",
                    "|---|---|---|---|",
                ]
            default = "" if f.default in (None, False) else f"`{as_text(f.default)}`"
            text = f.metadata["help"].replace("|", "\\|")
            lines.append(f"| `--{f.name}` | {_value(kind, f)} | {default} | {text} |")
    return "\n".join(lines) + "\n"


def _value(kind: type[Any], f: dataclasses.Field[Any]) -> str:
    hint = typing.get_type_hints(kind)[f.name]
    if choices := choices_of(hint):
        return ", ".join(f"`{choice}`" for choice in choices)
    plain = plain_type(hint)
    names = {bool: "true or false", int: "N", float: "number"}
    return f"{f.metadata['metavar'] or names.get(plain, 'text')}".replace("|", "\\|")


def pages() -> dict[Path, bytes]:
    """Return the path and the content of each file that is generated from the flags."""
    options = orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE
    found = {
        FOLDER / "templates" / f"{command.name}.json": orjson.dumps(
            template(command), option=options
        )
        for command in TEMPLATES
    }
    commands = [*TEMPLATES, replay.COMMAND, launch.FLAGS]
    return found | {FOLDER / "docs" / "flags.md": flag_tables(commands).encode()}


def main(argv: Sequence[str]) -> int:
    """Write the files that are out of date; with `--check`, report them and return exit code 1."""
    stale = [
        path
        for path, content in pages().items()
        if not path.exists() or path.read_bytes() != content
    ]
    for path in stale:
        print(f"{path.relative_to(FOLDER)} is out of date", file=sys.stderr)
        if "--check" not in argv:
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(pages()[path])
            print(f"wrote {path.relative_to(FOLDER)}", file=sys.stderr)
    if stale and "--check" in argv:
        print("to update them, run: make templates", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
