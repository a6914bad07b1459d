"""Flags as fields of dataclasses, from which the parser, `--help` and the templates are built.

This module does not import Beam, so `--help` responds at once. Flags that no dataclass declares
are passed on to Beam.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import re
import types
import typing
from collections.abc import Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, TypeVar

from common.addresses import NO_USER, address_fault, path_fault
from common.command_line import CommandParser
from common.errors import UsageError
from pipelines.options.forms import Form
from pipelines.options.lists import Split, join_list, split_list

T = TypeVar("T")
_METAVARS = {int: "N"}
# Arrow, JSON and BigQuery have no greater integers.
_MAX_INTEGER = 2**63 - 1
_NUMBERS = {int: "a whole number", float: "a number"}
# The origins of `int | None` and of `Literal["a"] | None`.
_UNIONS = (types.UnionType, typing.Union)


def flag(
    text: str,
    default: Any = None,
    *,
    label: str,
    param_type: str = "TEXT",
    form: Form | None = None,
    metavar: str | None = None,
    in_template: bool = True,
) -> Any:
    """Return a dataclass field that is a flag.

    If the type of the field is a Literal, the flag takes only the values that it lists.

    Args:
        text: The help text, without the default.
        default: The value if the flag is not given. None means that it has none.
        label: The label of the Flex Template parameter.
        param_type: The type of the Flex Template parameter.
        form: The form of the value. The Dataflow console and the command line check it.
        metavar: The placeholder for the value in the help.
        in_template: False if the flag is useful only on a terminal.
    """
    metadata = {
        "help": text,
        "label": label,
        "param_type": param_type,
        "form": form,
        "metavar": metavar,
        "in_template": in_template,
    }
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Parsed:
    """A parsed command line.

    Attributes:
        groups: An instance of each options class of the command.
        beam_args: The arguments that no options class declares. Beam parses them.
        splits: The values that were split, if that may surprise the user: paths, and texts that
            were split at spaces.
    """

    groups: dict[type[Any], Any]
    beam_args: list[str]
    splits: tuple[Split, ...] = ()

    def get(self, kind: type[T]) -> T:
        """Return the instance of an options class of the command."""
        return typing.cast(T, self.groups[kind])

    def find(self, kind: type[T]) -> T | None:
        """Return the instance of an options class, or None if the command has no such flags."""
        return typing.cast(T | None, self.groups.get(kind))


def build_parser(
    program: str, about: str, kinds: Sequence[type[Any]], *, beam: bool = True
) -> argparse.ArgumentParser:
    """Build the parser of a command.

    Args:
        program: The command after `pipelines.`, such as `batch_local`.
        about: The description for `--help`.
        kinds: The options classes. The first line of a docstring is the title of a flag group.
        beam: Whether the help says that the command also takes the flags of Beam.
    """
    parser = CommandParser(
        f"pipelines.{program}",
        about,
        epilog="All flags of Apache Beam and its runners are accepted as well, for example "
        "--runner DataflowRunner --project P --region R --temp_location gs://B/tmp."
        if beam
        else None,
    )
    for kind in kinds:
        group = parser.add_argument_group((kind.__doc__ or "").strip().splitlines()[0].rstrip("."))
        hints = typing.get_type_hints(kind)
        for f in dataclasses.fields(kind):
            _add_flag(group, f, hints[f.name])
    return parser


def _add_flag(group: Any, f: dataclasses.Field[Any], hint: Any) -> None:
    meta = f.metadata
    # Not `in (None, False)`: 0 equals False, and is a default to show.
    hidden = f.default is None or f.default is False
    shown = "" if hidden else f" (default: {f.default})"
    common = {"default": None, "help": meta["help"].replace("%", "%%") + shown, "dest": f.name}
    plain = plain_type(hint)
    if plain is bool:
        group.add_argument(
            f"--{f.name}", nargs="?", const=True, type=_parse_bool, metavar="true|false", **common
        )
    elif plain is tuple:
        group.add_argument(f"--{f.name}", nargs="+", metavar=meta["metavar"], **common)
    else:
        choices = ",".join(choices_of(hint))
        metavar = f"{{{choices}}}" if choices else meta["metavar"] or _METAVARS.get(plain, "VALUE")
        group.add_argument(f"--{f.name}", metavar=metavar, **common)


def choices_of(hint: Any) -> tuple[str, ...]:
    """Return the values of `Literal["a", "b"]` or `Literal["a", "b"] | None`, else nothing."""
    parts = typing.get_args(hint) if typing.get_origin(hint) in _UNIONS else (hint,)
    found = (typing.get_args(p) for p in parts if typing.get_origin(p) is typing.Literal)
    return next(found, ())


def plain_type(hint: Any) -> Any:
    """Return int for `int | None`, tuple for `tuple[str, ...]`, str for `Literal["a"]`."""
    if choices_of(hint):
        return str
    if typing.get_origin(hint) in _UNIONS:
        hint = next(part for part in typing.get_args(hint) if part is not type(None))
    return typing.get_origin(hint) or hint


def _parse_bool(text: str) -> bool:
    text = text.strip()
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"expected true or false, got {text!r}")
    return text.lower() == "true"


def parse_flags(
    program: str, about: str, kinds: Sequence[type[Any]], argv: Sequence[str], *, beam: bool = True
) -> Parsed:
    """Parse a command line. `--help` prints the help and exits.

    Args:
        program: The command after `pipelines.`, such as `batch_local`.
        about: The description for `--help`.
        kinds: The options classes of the command.
        argv: The arguments.
        beam: Whether the command also takes the flags of Beam.

    Raises:
        UsageError: If the value of a flag is missing, malformed or out of range.
    """
    parser = build_parser(program, about, kinds, beam=beam)
    known, beam_args = parser.parse_known_args(list(argv))
    groups: dict[type[Any], Any] = {}
    splits: list[Split] = []
    for kind in kinds:
        values, hints = {}, typing.get_type_hints(kind)
        for f in dataclasses.fields(kind):
            value = getattr(known, f.name)
            if value is not None:
                values[f.name] = _checked(f, hints[f.name], value)
                splits += _splits(f, value, values[f.name])
        groups[kind] = kind(**values)
    return Parsed(groups, beam_args, tuple(splits))


def _splits(f: dataclasses.Field[Any], words: Any, parts: Any) -> list[Split]:
    """Return how the words of a list were split, if that may surprise the user."""
    if not isinstance(words, list) or len(parts) == len(words):
        return []
    at_spaces = not re.search(r"[,\n]", words[0].strip())
    if not (at_spaces or f.metadata["param_type"].startswith("GCS_")):
        return []
    return [Split(f.name, parts, "spaces" if at_spaces else "commas")]


def as_text(value: Any) -> str:
    """Return the text with which a user gives a flag this value."""
    if isinstance(value, tuple):
        return join_list(value)
    if isinstance(value, float):
        # The patterns of numbers do not match exponents.
        return f"{Decimal(repr(value)):f}"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _checked(f: dataclasses.Field[Any], hint: Any, value: Any) -> Any:
    """Return the value of a flag from its text, or raise UsageError.

    White space and line ends around a value are dropped: they come from pasting it.
    """
    _check_addresses(f, value if isinstance(value, list) else [value])
    if isinstance(value, list):
        parts = split_list(value, conditions=f.metadata["metavar"] == "CONDITION")
        _check_addresses(f, parts)
        if not parts:
            raise UsageError(f"--{f.name} must list at least one value, got {' '.join(value)!r}")
        return tuple(_absolute(f, part) for part in parts)
    value = value.strip() if isinstance(value, str) else value
    if value == "":
        raise UsageError(f"--{f.name} has an empty value: give it a value, or leave out --{f.name}")
    if isinstance(value, bool):
        return value
    choices, plain = choices_of(hint), plain_type(hint)
    if choices and value not in choices:
        raise UsageError(f"--{f.name} must be one of {', '.join(choices)}, got {value}")
    form = f.metadata["form"]
    try:
        number = plain(value)
    except ValueError as error:
        must = _NUMBERS[plain]
        raise UsageError(f"--{f.name} must be {must}, got {value}") from error
    if form is not None and not re.fullmatch(form.regex, as_text(number)):
        raise UsageError(f"--{f.name} must {form.must}, got {value}")
    if plain is int and number > _MAX_INTEGER:
        raise UsageError(f"--{f.name} must be at most {_MAX_INTEGER}, got {value}")
    return _absolute(f, number)


def _absolute(f: dataclasses.Field[Any], value: Any) -> Any:
    """Return the value of a flag, as an absolute path if it is a relative path on this machine.

    The workers may run in another folder.
    """
    kind, here = f.metadata["param_type"], os.getcwd()
    if not kind.startswith("GCS_") or "://" in value or os.path.isabs(value):
        return value
    if kind == "GCS_READ_FILE" and re.search(r"[*?\[]", here):
        # In a pattern, Beam has no way to quote these characters.
        return value
    return os.path.join(here, re.sub(r"^(\./+)+", "", value))


def _check_addresses(f: dataclasses.Field[Any], values: Sequence[Any]) -> None:
    """Raise UsageError if a value is an address with credentials, or a path of the wrong kind."""
    fault_of = path_fault if f.metadata["param_type"].startswith("GCS_") else address_fault
    for value in values:
        # @PATH stands for the content of the file.
        if isinstance(value, str) and (fault := fault_of(value.strip().removeprefix("@"))):
            raise UsageError(f"--{f.name}: {fault}")
        if f.metadata["metavar"] == "URL" and "@" in value.partition("://")[0]:
            raise UsageError(f"--{f.name}: {NO_USER}")
