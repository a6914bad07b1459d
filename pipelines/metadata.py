"""The metadata of the Flex Templates, generated from the flags.

python -m pipelines.metadata            # writes templates/*.json
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
from pipelines.options.flag import as_text, choices_of

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
        "parameters": [_parameter(kind, f) for kind, f in _fields(command)],
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


def _fields(command: Command) -> Iterator[tuple[type[Any], dataclasses.Field[Any]]]:
    """Yield the flags that a template has as parameters, each with its options class."""
    for kind in command.options:
        for f in dataclasses.fields(kind):
            if f.metadata["in_template"]:
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


def pages() -> dict[Path, bytes]:
    """Return the path and the content of each file that is generated from the flags."""
    options = orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE
    return {
        FOLDER / "templates" / f"{command.name}.json": orjson.dumps(
            template(command), option=options
        )
        for command in TEMPLATES
    }


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
