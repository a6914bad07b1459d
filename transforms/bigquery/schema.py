"""BigQuery's names, types and schemas, and their counterparts in Arrow."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from google.cloud.bigquery import SchemaField

from common.cells import is_list, is_text
from common.errors import OutputError, UsageError, suggest

# A domain-scoped project contains a colon itself: example.com:project.dataset.table.
_TABLE = re.compile(
    r"(?:(?P<project>(?:[a-z0-9.-]+:)?[a-z][a-z0-9-]{4,28}[a-z0-9])[.:])?"
    r"(?P<dataset>\w{1,1024})\.(?P<table>[\w -]{1,1024})"
)
# Source: BigQuery's documentation of schemas, "flexible column names".
_PUNCTUATION, _NAME_CHARACTERS = "&%=+:'<>#| ", 300
_RESERVED = ("_table_", "_file_", "_partition", "_row_timestamp", "__root__", "_colidentifier")

# A JSON column arrives as text; this metadata of the Read API distinguishes it from a STRING.
_MARK = b"ARROW:extension:name"
JSON_METADATA = {_MARK: b"google:sqlType:json"}

_TYPES = {
    "INTEGER": pa.int64(),
    "FLOAT": pa.float64(),
    "NUMERIC": pa.decimal128(38, 9),
    "BIGNUMERIC": pa.decimal256(76, 38),
    "BOOLEAN": pa.bool_(),
    "STRING": pa.string(),
    "BYTES": pa.binary(),
    "DATE": pa.date32(),
    "DATETIME": pa.timestamp("us"),
    "TIMESTAMP": pa.timestamp("us", tz="UTC"),
    "TIME": pa.time64("us"),
    "JSON": pa.string(),
}
_STANDARD_NAMES = {
    "INT64": "INTEGER",
    "FLOAT64": "FLOAT",
    "BOOL": "BOOLEAN",
    "STRUCT": "RECORD",
    "DECIMAL": "NUMERIC",
    "BIGDECIMAL": "BIGNUMERIC",
}


@dataclass(frozen=True)
class TableName:
    """The full name of a table."""

    project: str
    dataset: str
    table: str

    @classmethod
    def parse(cls, text: str, flag: str, project: str | None = None) -> TableName:
        """Parse `project.dataset.table`, `project:dataset.table` or `dataset.table`.

        Args:
            text: The name, with or without backticks.
            flag: The flag that has the name, without dashes.
            project: The project of a table whose name does not include one.

        Raises:
            UsageError: The text is not the name of a table, or the project is not known.
        """
        found = _TABLE.fullmatch(text.replace("`", ""))
        hint = "; use --input_query to read a partition or a wildcard table" * ("input" in flag)
        if found is None or not (found["project"] or project):
            raise UsageError(
                f"--{flag}: expected project.dataset.table, of letters, digits and _, got {text!r}"
                + hint
            )
        return cls(found["project"] or project or "", found["dataset"], found["table"])

    def sibling(self, table: str) -> TableName:
        """Return the full name of another table in the same dataset."""
        return TableName(self.project, self.dataset, table)

    @property
    def path(self) -> str:
        """The name as the Storage APIs spell it."""
        return f"projects/{self.project}/datasets/{self.dataset}/tables/{self.table}"

    def __str__(self) -> str:
        return f"{self.project}.{self.dataset}.{self.table}"


def project_of(text: str) -> str | None:
    """Return the project in a table's name as a user wrote it, or None."""
    found = _TABLE.fullmatch(text.replace("`", ""))
    return found["project"] if found else None


def type_name(field: SchemaField) -> str:
    """Return the type of a field as the REST API names it: INTEGER, not INT64."""
    name = field.field_type.upper()
    return _STANDARD_NAMES.get(name, name)


def arrow_schema(fields: Iterable[SchemaField]) -> pa.Schema:
    """Return the Arrow schema that the Storage Read API returns for a table's columns.

    Types without a counterpart here (GEOGRAPHY, INTERVAL, RANGE) become text, with the name of the
    type as metadata.
    """
    return pa.schema([arrow_field(field) for field in fields])


def arrow_field(field: SchemaField) -> pa.Field:
    """Return the Arrow field of a BigQuery column."""
    name = type_name(field)
    if name == "RECORD":
        kind: pa.DataType = pa.struct([arrow_field(child) for child in field.fields])
    else:
        kind = _TYPES.get(name, pa.string())
    marked = name == "JSON" or (name not in _TYPES and name != "RECORD")
    metadata = {_MARK: f"google:sqlType:{name.lower()}".encode()} if marked else None
    if field.mode == "REPEATED":
        kind, metadata = pa.list_(pa.field("item", kind, metadata=metadata)), None
    return pa.field(field.name, kind, nullable=field.mode != "REQUIRED", metadata=metadata)


def table_fields(schema: pa.Schema) -> list[SchemaField]:
    """Return the BigQuery columns for an Arrow schema.

    Raises:
        OutputError: BigQuery cannot hold a column, or does not accept its name.
    """
    _check_names(schema.names)
    return [_table_field(field) for field in schema]


def _check_names(names: Sequence[str], where: str = "") -> None:
    """Raise OutputError for a name that BigQuery does not accept.

    Args:
        names: The names of columns, or of the fields of a struct.
        where: For the fields of a struct, the column that they belong to, as part of the message;
            empty for columns.
    """
    what = "field" if where else "column"
    seen: dict[str, str] = {}
    for name in names:
        if not _is_name(name):
            raise OutputError(
                f"{what} {name!r}{where} cannot be in a BigQuery table: expected up to "
                f"{_NAME_CHARACTERS} letters, digits, spaces and any of _-{_PUNCTUATION.strip()}, "
                "without a prefix that BigQuery reserves; rename it, or choose --output_fields "
                "without it"
            )
        if (other := seen.get(name.lower())) is not None:
            raise OutputError(
                f"{what}s {other!r} and {name!r}{where} are the same name to BigQuery: choose "
                "--output_fields without one of them"
            )
        seen[name.lower()] = name


def _is_name(name: str) -> bool:
    """Return whether BigQuery accepts the name of a column, in any language."""
    return (
        0 < len(name) <= _NAME_CHARACTERS
        and not name.lower().startswith(_RESERVED)
        and all(c in _PUNCTUATION or _is_letter(unicodedata.category(c)) for c in name)
    )


def _is_letter(category: str) -> bool:
    """Return whether a Unicode category is of letters, digits, marks, connectors or dashes."""
    return category[0] in "LNM" or category in ("Pc", "Pd")


def _table_field(field: pa.Field) -> SchemaField:
    kind, repeated = field.type, is_list(field.type)
    marks = field.metadata
    if repeated:
        kind, marks = kind.value_type, kind.value_field.metadata
    if is_list(kind):
        raise OutputError(
            f"column {field.name!r} is {field.type}: BigQuery has no lists of lists; flatten it in "
            "the model, or choose --output_fields without it"
        )
    mode = "REPEATED" if repeated else "NULLABLE"
    if pa.types.is_struct(kind):
        if not kind.num_fields:
            raise OutputError(
                f"column {field.name!r} is a struct without fields, which BigQuery cannot hold: "
                "choose --output_fields without it"
            )
        _check_names([f.name for f in kind], f" of column {field.name!r}")
        return SchemaField(field.name, "RECORD", mode, fields=[_table_field(f) for f in kind])
    return SchemaField(field.name, _scalar_name(field.name, kind, marks), mode)


def _scalar_name(name: str, kind: pa.DataType, metadata: dict[bytes, bytes] | None) -> str:
    mark = (metadata or {}).get(_MARK, b"").decode()
    if mark.startswith("google:sqlType:") and mark != JSON_METADATA[_MARK].decode():
        sql = mark.rsplit(":", 1)[-1].upper()
        if sql not in _TYPES:
            raise OutputError(
                f"column {name!r} is {sql}, which cannot be passed through: convert it to a STRING "
                "in --input_query, or choose --output_fields without it"
            )
        return sql
    if mark:
        return "JSON"
    value = kind.value_type if pa.types.is_dictionary(kind) else kind
    if is_text(value) or pa.types.is_null(value):
        return "STRING"
    if pa.types.is_timestamp(value):
        return "TIMESTAMP" if value.tz else "DATETIME"
    if pa.types.is_decimal(value) and (found := _decimal_name(value)):
        return found
    for is_kind, found in (
        (pa.types.is_integer, "INTEGER"),
        (pa.types.is_floating, "FLOAT"),
        (pa.types.is_boolean, "BOOLEAN"),
        (pa.types.is_binary, "BYTES"),
        (pa.types.is_large_binary, "BYTES"),
        (pa.types.is_binary_view, "BYTES"),
        (pa.types.is_fixed_size_binary, "BYTES"),
        (pa.types.is_date, "DATE"),
        (pa.types.is_time, "TIME"),
    ):
        if is_kind(value):
            return found
    raise OutputError(
        f"column {name!r} is {kind}, for which BigQuery has no type: choose --output_fields "
        "without it"
    )


def _decimal_name(kind: pa.DataType) -> str | None:
    """Return the smallest BigQuery type that holds a decimal type, or None."""
    whole = kind.precision - kind.scale
    if kind.scale <= 9 and whole <= 29:
        return "NUMERIC"
    return "BIGNUMERIC" if kind.scale <= 38 and whole <= 38 else None


def same_names(names: Sequence[str], others: Sequence[str]) -> bool:
    """Return whether names of columns are equal to BigQuery, which ignores their case."""
    return [name.lower() for name in names] == [name.lower() for name in others]


def drift(table: str, wanted: Sequence[SchemaField], present: Sequence[SchemaField]) -> str | None:
    """Return how a table differs from the columns to write, as the text of an error, or None.

    A column of the table that is not written must allow nulls.

    Args:
        table: The table's name.
        wanted: The columns to write.
        present: The columns of the table.
    """
    by_name = {field.name.lower(): field for field in present}
    problems = []
    for field in wanted:
        other = by_name.pop(field.name.lower(), None)
        if other is None:
            hint = suggest(field.name, [f.name for f in present])
            problems.append(f"lacks column {field.name} {_shown(field)}{hint}")
        elif _shown(other) != _shown(field):
            problems.append(f"has column {other.name} {_shown(other)}, expected {_shown(field)}")
    problems += [
        f"requires column {field.name}, which is not written"
        for field in by_name.values()
        if field.mode == "REQUIRED"
    ]
    if not problems:
        return None
    return (
        f"table {table} {'; '.join(problems)}: alter the table, choose other --output_fields or "
        "--output_schema, or write to a new table"
    )


def _shown(field: SchemaField) -> str:
    """Return the type of a field as SQL names it."""
    names = {old: new for new, old in _STANDARD_NAMES.items() if not new.endswith("DECIMAL")}
    names = {**names, "INTEGER": "INT64", "FLOAT": "FLOAT64", "BOOLEAN": "BOOL"}
    name = type_name(field)
    if name == "RECORD":
        children = sorted((f.name.lower(), _shown(f)) for f in field.fields)
        name = f"STRUCT<{', '.join(f'{n} {t}' for n, t in children)}>"
    name = names.get(name, name)
    return f"ARRAY<{name}>" if field.mode == "REPEATED" else name


def without_json(field: SchemaField) -> SchemaField:
    """Return a column with text in place of JSON, which Parquet files cannot hold."""
    kind = "STRING" if type_name(field) == "JSON" else field.field_type
    mode = "REPEATED" if field.mode == "REPEATED" else "NULLABLE"
    return SchemaField(field.name, kind, mode, fields=[without_json(f) for f in field.fields])


def has_json(field: SchemaField) -> bool:
    """Return whether a column is JSON or contains JSON."""
    return type_name(field) == "JSON" or any(has_json(child) for child in field.fields)


def same_form(wanted: SchemaField, present: SchemaField) -> bool:
    """Return whether a column to write equals a table's, including the order of its fields."""
    return _form(wanted) == _form(present)


def _form(field: SchemaField) -> tuple[Any, ...]:
    limits = (field.precision, field.scale, field.max_length)
    mode = field.mode or "NULLABLE"
    return (field.name, type_name(field), mode, *limits, *(_form(f) for f in field.fields))


def in_form(field: SchemaField, path: str, depth: int = 0) -> str:
    """Return SQL that converts values to the type of a table's column.

    Text is parsed if the column is JSON. The fields of a struct are put into the table's order,
    because BigQuery matches them by position and ignores their names.

    Args:
        field: The column of the table.
        path: SQL of the values.
        depth: How many arrays surround the values; it numbers the variables of subqueries.
    """
    name = type_name(field)
    if name not in ("RECORD", "JSON"):
        return path
    if field.mode == "REPEATED":
        element = SchemaField(field.name, field.field_type, fields=field.fields)
        each = in_form(element, f"e{depth}", depth + 1)
        order = f"WITH OFFSET o{depth} ORDER BY o{depth}"
        return f"ARRAY(SELECT {each} FROM UNNEST({path}) AS e{depth} {order})"
    if name == "RECORD":
        children = ", ".join(
            f"{in_form(child, f'{path}.`{child.name}`', depth)} AS `{child.name}`"
            for child in field.fields
        )
        return f"IF({path} IS NULL, NULL, STRUCT({children}))"
    return f"PARSE_JSON({path}, wide_number_mode => 'round')"


def file_type(actual: pa.DataType, target: pa.DataType) -> pa.DataType:
    """Return the type of a column in a Parquet file that is loaded into a table.

    It is the table's type, unless the column's own type can be loaded and is smaller or exact.

    Args:
        actual: The type of the column.
        target: The type of the table's column.
    """
    if is_list(actual) and is_list(target):
        return pa.list_(file_type(actual.value_type, target.value_type))
    if pa.types.is_struct(actual) and pa.types.is_struct(target):
        return pa.struct([(f.name, file_type(actual.field(f.name).type, f.type)) for f in target])
    both_decimal = pa.types.is_decimal(actual) and pa.types.is_decimal(target)
    narrow = actual == pa.float32() and target == pa.float64()
    repeated = pa.types.is_dictionary(actual) and target == pa.string()
    return actual if both_decimal or narrow or repeated else target
