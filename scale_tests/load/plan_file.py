"""Reads a plan from TOML. An error names the line and what was expected there."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping
from functools import reduce
from pathlib import Path
from typing import Any, get_args, get_type_hints

import msgspec

from common.errors import UsageError, suggest
from scale_tests.load.batch_plan import BatchPlan, Offline, batch_contradictions
from scale_tests.load.plan import Burst, PhaseKind, Plan, Target, Values

Place = tuple[str | int, ...]

# Where results of a target are read.
SOURCES: Mapping[Target, tuple[str, ...]] = {
    "stream": ("topic", "table"),
    "endpoint": ("answer",),
}
# What a plan of the other kind has in place of a table.
INSTEAD = {
    "objective": "use batch.min_rows_per_second or batch.max_seconds",
    "result": "results are where send_to says",
}
_TABLE = re.compile(r"([\w:.-]+[.:])?\w+\.\w+")
_KINDS = {"float": "a number", "int": "a whole number", "str": "text", "bool": "true or false"}
_KINDS |= {
    "array": "a list",
    "int | array": "a whole number or a list of them",
    "object": "a table",
    "null": "nothing",
}
_COMPARED = {">=": "of at least", "<=": "of at most", ">": "above", "<": "below"}


def read_plan(path: Path) -> Plan | BatchPlan:
    """Return the plan in a TOML file.

    Raises:
        UsageError: The file cannot be read, is not TOML, or is no plan. The message names the line.
    """
    try:
        # Some editors on Windows put a byte order mark at the start of a file.
        text = path.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise UsageError(f"{path}: expected a plan in TOML; it cannot be read: {reason}") from error
    return parse_plan(text, str(path))


def parse_plan(text: str, name: str) -> Plan | BatchPlan:
    """Return the plan in a text; `name` is what errors call it. Raises as `read_plan`."""
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        reason, line = _syntax(str(error), text)
        raise UsageError(f"{name}, line {line}: not TOML: {reason}") from error
    try:
        plan = msgspec.convert(values, kind_of(values))
    except msgspec.ValidationError as error:
        place, reason = explain(str(error), values)
        raise UsageError(f"{name}, line {line_of(text, place)}: {reason}") from error
    for number, phase in enumerate(values["phases"]):
        # msgspec does not need the kind if there is only one.
        if "kind" not in phase:
            line = line_of(text, ("phases", number))
            raise UsageError(f"{name}, line {line}: phases[{number}].kind is missing")
    for place, reason in contradictions(plan):
        raise UsageError(f"{name}, line {line_of(text, place)}: {reason}")
    return plan


def kind_of(values: Mapping[str, Any]) -> type[Plan | BatchPlan]:
    """Return the type of the plan that a document holds."""
    return BatchPlan if values.get("target") == "batch" else Plan


def contradictions(plan: Plan | BatchPlan) -> Iterator[tuple[Place, str]]:
    """Yield what does not fit together in a plan, each with its place."""
    yield from batch_contradictions(plan) if isinstance(plan, BatchPlan) else _of_load(plan)
    if plan.rows.source != "example" and not plan.rows.path:
        what = "model package" if plan.rows.source == "statistics" else "Parquet or JSON Lines file"
        yield ("rows",), f"rows.path is missing: name the {what}"
    if plan.rows.source == "example" and plan.rows.path:
        yield (
            ("rows", "path"),
            'rows.path: the example needs none; name a source, "statistics" or "file"',
        )


def _of_load(plan: Plan) -> Iterator[tuple[Place, str]]:
    sources = SOURCES[plan.target]
    if plan.result.source not in sources:
        named = " or ".join(repr(one) for one in sources)
        yield (
            ("result", "source"),
            f"result.source: target {plan.target!r} needs {named}, got {plan.result.source!r}",
        )
    if plan.result.source in ("topic", "table") and not plan.result.name:
        yield ("result",), f"result.name is missing: name the {plan.result.source} of the results"
    elif plan.result.source == "table" and not _TABLE.fullmatch(plan.result.name):
        yield (
            ("result", "name"),
            "result.name: expected dataset.table or project.dataset.table, of letters, digits and "
            f"_, got {plan.result.name!r}",
        )
    if plan.target == "stream" and not plan.send_to:
        yield ("target",), "send_to is missing: name the topic that the stream reads"
    if plan.target == "stream" and not plan.result.dead_letters:
        yield ("result",), "result.dead_letters is missing: name the topic of the dead letters"
    for number, phase in enumerate(plan.phases):
        if plan.target != "endpoint" and isinstance(phase.rows, tuple):
            yield ("phases", number, "rows"), f"phases[{number}].rows: expected a whole number"
        elif plan.target == "stream" and phase.rows != 1:
            yield (
                ("phases", number, "rows"),
                f"phases[{number}].rows: a message has one row, got {phase.rows}",
            )
        most = plan.sender.in_flight
        if plan.target == "endpoint" and isinstance(phase, Burst) and phase.messages > most:
            yield (
                ("phases", number, "messages"),
                f"phases[{number}].messages: expected at most sender.in_flight ({most:,}), "
                f"got {phase.messages:,}",
            )


def line_of(text: str, place: Place) -> int:
    """Return the line, from 1, on which a value starts, or the innermost table that contains it.

    The first lines of a valid document are a valid document unless they end inside a value. So the
    value starts after the longest such part that does not contain it.
    """
    lines = text.splitlines(keepends=True)
    found = 1
    for depth in range(1, len(place) + 1):
        without = 0
        for count in range(len(lines) + 1):
            try:
                values = tomllib.loads("".join(lines[:count]))
            except tomllib.TOMLDecodeError:
                continue
            if _contains(values, place[:depth]):
                found = without + 1
                break
            without = count
    return found


def _contains(values: Any, place: Place) -> bool:
    try:
        reduce(lambda value, key: value[key], place, values)
    except (KeyError, IndexError, TypeError):
        return False
    return True


def _syntax(message: str, text: str) -> tuple[str, int]:
    """Return the reason in a message of tomllib, and its line."""
    found = re.fullmatch(r"(.+) \(at (?:line (\d+), column \d+|end of document)\)", message)
    if not found:
        return message, 1
    return found[1], int(found[2] or max(1, len(text.splitlines())))


def explain(message: str, values: Mapping[str, Any]) -> tuple[Place, str]:
    """Return the place that a message of msgspec means, and what is wrong in words.

    Args:
        message: The message, such as "Expected `float`, got `str` - at `$.sender.cpu`".
        values: The values of the document.
    """
    if "target" not in values:
        # The rest depends on it.
        return (), "target is missing"
    reason, _, path = message.partition(" - at `$")
    place: Place = tuple(
        int(number) if number else name
        for name, number in re.findall(r"\.(\w+)|\[(\d+)\]", path.rstrip("`"))
    )
    if found := re.fullmatch(r"Object missing required field `(.+)`", reason):
        return place, f"{_named((*place, found[1]))} is missing"
    if found := re.fullmatch(r"Object contains unknown field `(.+)`", reason):
        known = get_type_hints(_type_at(place, values))
        unknown = (*place, found[1])
        others = {*get_type_hints(Plan), *get_type_hints(BatchPlan)}
        if not place and found[1] in others and "target" in values:
            why = f": {INSTEAD[found[1]]}" if found[1] in INSTEAD else ""
            return unknown, f"{found[1]}: target {values['target']!r} has none{why}"
        return unknown, f"{_named(unknown)} is unknown{suggest(found[1], known)}"
    return place, f"{_named(place)}: {_in_words(reason, place, values)}"


def _in_words(reason: str, place: Place, values: Mapping[str, Any]) -> str:
    got: Any = values
    for key in place:
        got = got[key]
    if reason.startswith("Invalid"):
        choices = _choices(place, values)
        return f"expected {' or '.join(choices)}, got {got!r}{suggest(str(got), choices)}"
    if found := re.fullmatch(r"Expected `([\w |]+)`, got `(\w+)`", reason):
        names = [name.removesuffix(" | null") for name in found.groups()]
        kinds = [_KINDS.get(name, name) for name in names]
        return f"expected {kinds[0]}, got {kinds[1]}"
    if found := re.fullmatch(r"Expected `(float|int)` (>=|<=|>|<) (\S+)", reason):
        compared = f"{_COMPARED[found[2]]} {float(found[3]):,.12g}"
        return f"expected {_KINDS[found[1]]} {compared}, got {got}"
    if reason.startswith("Expected `array` of length"):
        return "expected at least one"
    return reason


def _choices(place: Place, values: Mapping[str, Any]) -> list[str]:
    """Return the values that a choice knows."""
    if place[-1] == "kind":
        kinds = (Offline,) if kind_of(values) is BatchPlan else get_args(PhaseKind)
        return [str(kind.__struct_config__.tag) for kind in kinds]
    hint = get_type_hints(_type_at(place[:-1], values))[str(place[-1])]
    return list(get_args(hint))


def _type_at(place: Place, values: Mapping[str, Any]) -> type[Values]:
    """Return the type of the table at a place."""
    plan = kind_of(values)
    if not place:
        return plan
    if place[0] == "phases" and plan is BatchPlan:
        return Offline
    if place[0] == "phases":
        kind = values["phases"][place[1]]["kind"]
        return next(one for one in get_args(PhaseKind) if one.__struct_config__.tag == kind)
    hint = get_type_hints(plan)[str(place[0])]
    # A table that a plan may lack is a union with None.
    found: type[Values] = next(one for one in (*get_args(hint), hint) if one is not type(None))
    return found


def _named(place: Place) -> str:
    text = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in place)
    return text.removeprefix(".") or "the plan"
