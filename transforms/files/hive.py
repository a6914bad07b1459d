"""Columns whose values are in the path of a file, in folders of the form `NAME=VALUE`."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any
from urllib.parse import unquote

import orjson
import pyarrow as pa
import pyarrow.compute as pc

from common.cells import cast_column
from common.errors import InputError, UsageError, suggest
from transforms.dead_letters import Fault
from transforms.json_rows.values import read_json_values

# Hive, Spark and others write this value for null.
_NULL = "__HIVE_DEFAULT_PARTITION__"
_DIGITS = re.compile(r"-?[0-9]{1,18}(\.[0-9]+)?")
_CONDITION = re.compile(r"\s*([^<>=!]+?)\s*(>=|<=|!=|==|=|<|>)\s*((?![<>=!]).*?)\s*")
_COMPARE: dict[str, Callable[[Any, Any], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    "!=": operator.ne,
    "==": operator.eq,
    "=": operator.eq,
    "<": operator.lt,
    ">": operator.gt,
}

Keys = Mapping[str, str | None]


def keys_of(path: str) -> dict[str, str | None]:
    """Return the keys in the folders of a path, with escapes undone; null is None."""
    folders = path.split("/")[:-1]
    pairs = (folder.split("=", 1) for folder in folders if not folder.startswith("="))
    found = {unquote(pair[0]): unquote(pair[1]) for pair in pairs if len(pair) == 2}
    return {name: None if value == _NULL else value for name, value in found.items()}


def with_keys(
    schema: pa.Schema, keys: Keys, types: Mapping[str, pa.DataType] = MappingProxyType({})
) -> pa.Schema:
    """Return the columns of a file and its keys, which are strings unless `types` has them."""
    for name in keys.keys() - set(schema.names):
        schema = schema.append(pa.field(name, types.get(name, pa.string())))
    return schema


def check_keys(paths: Iterable[str], types: Mapping[str, pa.DataType], asker: str) -> None:
    """Raise InputError unless the keys in the paths of all files can have these types.

    Args:
        paths: The paths of the files.
        types: The types of keys, by name.
        asker: What needs these types, for the message.

    Raises:
        InputError: The value of a key cannot be converted to its type.
    """
    for path in paths:
        keys = keys_of(path)
        for name in keys.keys() & types.keys():
            try:
                cast_column(pa.array([keys[name]], pa.string()), types[name])
            except pa.ArrowException as error:
                raise InputError(
                    f"{path}: folder {name}=VALUE: expected {types[name]}, which {asker} needs, "
                    "got another value: move the file, or choose --output_fields without "
                    f"{name!r}"
                ) from error


def add_keys(batch: pa.RecordBatch, names: Sequence[str], keys: Keys, path: str) -> pa.RecordBatch:
    """Return columns of a file, with those whose values are in its path.

    Args:
        batch: The columns that the file itself has.
        names: The columns to return.
        keys: The keys in the path.
        path: The path of the file, for messages.

    Raises:
        InputError: A column of the file has the name of a key, and another value.
    """
    if not (wanted := keys.keys() & set(names)):
        return batch
    columns = {name: batch.column(name) for name in batch.schema.names}
    for name in wanted:
        if name in columns:
            _check(columns[name], name, keys[name], path)
        else:
            columns[name] = pa.repeat(pa.scalar(keys[name], pa.string()), batch.num_rows)
    return pa.record_batch({name: columns[name] for name in names})


def _check(column: pa.Array, name: str, value: str | None, path: str) -> None:
    try:
        expected = pa.scalar(value, pa.string()).cast(column.type)
        same = (
            column.null_count == len(column)
            if value is None
            else pc.all(pc.fill_null(pc.equal(column, expected), False)).as_py()
        )
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        same = False
    if not same and len(column):
        raise _differs(path, name)


def _differs(path: str, name: str) -> InputError:
    return InputError(
        f"{path}: column {name!r} differs from the folder of the file, which names its value: "
        "move the file, or remove the column"
    )


def add_to_lines(lines: Iterable[bytes], keys: Keys, numbers: set[str], path: str) -> list[bytes]:
    """Return JSON objects with the keys in the path of their file. Other lines are unchanged.

    Args:
        lines: Texts of JSON, without white space around them.
        keys: The keys to add.
        numbers: The keys whose values are numbers, if they can be read as such.
        path: The path of the file, for messages.

    Raises:
        InputError: An object has the name of a key, and another value.
    """
    typed = {name: _number(value) if name in numbers else value for name, value in keys.items()}
    marks = {name: orjson.dumps(name) for name in keys}
    every = orjson.dumps(typed)[:-1]
    return [
        line
        if line[:1] != b"{"
        else _joined(every, line)
        if not any(mark in line for mark in marks.values())
        else _added(line, typed, path)
        for line in lines
    ]


def _joined(start: bytes, line: bytes) -> bytes:
    rest = line[1:].lstrip()
    return start + (b"" if rest.startswith(b"}") else b",") + rest


def _added(line: bytes, keys: Mapping[str, Any], path: str) -> bytes:
    """Return an object that may have some of the keys already, with the others."""
    (row,) = read_json_values([line])
    if isinstance(row, Fault):
        return line
    for name in keys.keys() & row.keys():
        if row[name] != keys[name] and str(row[name]) != str(keys[name]):
            raise _differs(path, name)
    missing = {name: value for name, value in keys.items() if name not in row}
    return _joined(orjson.dumps(missing)[:-1], line) if missing else line


def _number(value: str | None) -> Any:
    """Return the number that a text spells in plain digits; the value itself if it does not."""
    if value is None or _DIGITS.fullmatch(value) is None:
        return value
    return float(value) if "." in value else int(value)


@dataclass(frozen=True)
class Condition:
    """A condition on a key, such as `day>=2026-11-01`.

    Attributes:
        name: The name of the key.
        compare: The comparison: >=, <=, !=, =, < or >.
        value: What the key is compared with: as a number if both are numbers, else as text.
            Single or double quotes around it, as in SQL, are not a part of it.
    """

    name: str
    compare: str
    value: str

    @classmethod
    def parse(cls, text: str) -> Condition:
        """Return the condition in a text; raise UsageError if it has another form."""
        found = _CONDITION.fullmatch(text)
        if found is None:
            raise UsageError(
                f"--partition_filter: expected conditions such as day>=2026-11-01, got {text!r}"
            )
        name, compare, value = found.groups()
        if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"":
            value = value[1:-1]
        return cls(name, compare, value)

    def accepts(self, keys: Keys) -> bool:
        """Return whether the keys of a file fulfil the condition. Null fulfils none."""
        value = keys[self.name]
        if value is None:
            return False
        one, other = _number(value), _number(self.value)
        if isinstance(one, str) or isinstance(other, str):
            one, other = value, self.value
        return _COMPARE[self.compare](one, other)


def accepted(path: str, conditions: Sequence[Condition]) -> bool:
    """Return whether a file fulfils all conditions on the keys in its path.

    Raises:
        UsageError: The path lacks a key.
    """
    keys = keys_of(path)
    for condition in conditions:
        if condition.name not in keys:
            raise UsageError(
                f"--partition_filter: no folder of {path} has the form {condition.name}=VALUE"
                f"{suggest(condition.name, list(keys))}"
            )
    return all(condition.accepts(keys) for condition in conditions)
