"""Flags as fields of dataclasses: declared once, read from a command line, told in its help.

Nothing of Beam is imported, so that `--help` answers at once; flags that are not
declared are Beam's and are passed on to it.
"""

from __future__ import annotations

import argparse
import dataclasses
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

T = TypeVar("T")
_METAVARS = {int: "N"}
_NUMBERS = {int: "a whole number", float: "a number"}
# Of `int | None`, and of `Literal["a"] | None`.
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
    """Help text, default and template metadata -> a dataclass field that is a flag.

    A default of None means: not given. A Literal as the field's type lists the values that the
    flag takes. param_type, label: of the Flex Template parameter. form: of the value, checked by
    the console and on the command line. in_template: False where a flag means something on a
    terminal alone.
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
    """A command line, read: an instance of each options class, and Beam's own flags."""

    groups: dict[type[Any], Any]
    beam_args: list[str]

    def get(self, kind: type[T]) -> T:
        """An options class -> its instance."""
        return typing.cast(T, self.groups[kind])

    def find(self, kind: type[T]) -> T | None:
        """An options class -> its instance, None where the pipeline has no such flags."""
        return typing.cast(T | None, self.groups.get(kind))


def build_parser(
    program: str, about: str, kinds: Sequence[type[Any]], *, beam: bool = True
) -> argparse.ArgumentParser:
    """A pipeline's name, its description and its options classes -> the parser.

    beam: it takes Beam's flags as well.
    """
    parser = CommandParser(
        f"pipelines.{program}",
        about,
        epilog="All flags of Apache Beam and its runners are accepted as well, for instance "
        "--runner DataflowRunner --project P --region R --temp_location gs://B/tmp."
        if beam
        else None,
    )
    for kind in kinds:
        group = parser.add_argument_group((kind.__doc__ or "").strip().splitlines()[0].rstrip("."))
        for f in dataclasses.fields(kind):
            _add_flag(group, f, typing.get_type_hints(kind)[f.name])
    return parser


def _add_flag(group: Any, f: dataclasses.Field[Any], hint: Any) -> None:
    meta = f.metadata
    shown = "" if f.default in (None, False) else f" (default: {f.default})"
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
    """`Literal["a", "b"] | None` -> the texts that it lists; none of another type."""
    parts = typing.get_args(hint) if typing.get_origin(hint) in _UNIONS else (hint,)
    found = (typing.get_args(p) for p in parts if typing.get_origin(p) is typing.Literal)
    return next(found, ())


def plain_type(hint: Any) -> Any:
    """`int | None`, `tuple[str, ...]`, `Literal["a"]` -> int, tuple, str."""
    if choices_of(hint):
        return str
    if typing.get_origin(hint) in _UNIONS:
        hint = next(part for part in typing.get_args(hint) if part is not type(None))
    return typing.get_origin(hint) or hint


def _parse_bool(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"expected true or false, got {text!r}")
    return text.lower() == "true"


def parse_flags(
    program: str, about: str, kinds: Sequence[type[Any]], argv: Sequence[str], *, beam: bool = True
) -> Parsed:
    """A command line -> Parsed. Raises UsageError; `--help` prints and exits."""
    parser = build_parser(program, about, kinds, beam=beam)
    known, beam_args = parser.parse_known_args(list(argv))
    groups: dict[type[Any], Any] = {}
    for kind in kinds:
        values = {}
        for f in dataclasses.fields(kind):
            value = getattr(known, f.name)
            if value is not None:
                values[f.name] = _checked(f, typing.get_type_hints(kind)[f.name], value)
        groups[kind] = kind(**values)
    return Parsed(groups, beam_args)


def as_text(value: Any) -> str:
    """A flag's value -> the text that, typed, is that value."""
    if isinstance(value, tuple):
        return ",".join(value)
    if isinstance(value, float):
        # Patterns know no exponents.
        return f"{Decimal(repr(value)):f}"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _checked(f: dataclasses.Field[Any], hint: Any, value: Any) -> Any:
    """A flag, its type and what was typed -> the value, lists split at commas.

    Raises UsageError.
    """
    _check_addresses(f, value if isinstance(value, list) else [value])
    if isinstance(value, list):
        parts = tuple(part.strip() for item in value for part in item.split(",") if part.strip())
        if not parts:
            raise UsageError(f"--{f.name}: expected at least one value, got {' '.join(value)!r}")
        return parts
    if value == "":
        raise UsageError(f"--{f.name}: expected a value, got none: leave the flag out instead")
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
    return number


def _check_addresses(f: dataclasses.Field[Any], values: Sequence[Any]) -> None:
    """A flag and its values -> nothing. Raises UsageError for what must not be in an address."""
    fault_of = path_fault if f.metadata["param_type"].startswith("GCS_") else address_fault
    for value in values:
        # @PATH stands for what is in the file.
        if isinstance(value, str) and (fault := fault_of(value.strip().removeprefix("@"))):
            raise UsageError(f"--{f.name}: {fault}")
        if f.metadata["metavar"] == "URL" and "@" in value.partition("://")[0]:
            raise UsageError(f"--{f.name}: {NO_USER}")
