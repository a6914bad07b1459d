"""Read whole files, or the result of a query, as a table: a sample for a model package."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, cast

import pyarrow as pa

from cloud.clients import Cloud
from cloud.errors import translate_errors
from common.errors import InputError
from common.texts import to_text
from transforms.bigquery.read import run_query
from transforms.bigquery.session import open_session, read_stream
from transforms.bigquery.source import BigQuerySource, describe_source
from transforms.files.columns import Columns
from transforms.files.first_rows import row_texts
from transforms.files.ranges import format_of, match_inputs, plan_file, split_file
from transforms.files.read_range import read_range
from transforms.json_rows.values import read_json_values

_BATCH_ROWS = 32_768


class _All:
    """The columns of a file, all of them as they are. It stands for `Columns`."""

    categories: tuple[str, ...] = ()

    def names(self, available: pa.Schema, _: str) -> list[str]:
        return list(available.names)

    def csv_types(self, names: Sequence[str]) -> dict[str, pa.DataType]:
        return dict.fromkeys(names, pa.string())

    def with_ids(self, batch: pa.RecordBatch, *_: Any) -> pa.RecordBatch:
        return batch


_ALL = cast(Columns, _All())


def read_sample(patterns: Sequence[str]) -> pa.Table:
    """Return the rows of Parquet, CSV and JSON files, as a run reads them.

    The columns of a CSV file are text. Rows that cannot be read are left out.

    Args:
        patterns: Paths, globs and folders, on any filesystem that Beam supports.

    Raises:
        InputError: A file is missing or cannot be read, or there are no rows.
        UsageError: The format of a file is not known.
    """
    tables = []
    for file in match_inputs(patterns):
        kind = format_of(file.path)
        batches = _json_rows(file.path) if kind == "jsonl" else _ranges(file)
        tables += [pa.Table.from_batches([batch]) for batch in batches if batch.num_rows]
    if not tables:
        raise InputError(f"the sample is empty: {', '.join(patterns)} has no rows")
    try:
        return pa.concat_tables(tables, promote_options="permissive")
    except pa.ArrowException as error:
        raise InputError(
            f"sample {', '.join(patterns)}: the files have columns of the same name with types "
            "that do not go together: pass one of the files"
        ) from error


def _ranges(file: Any) -> Iterator[pa.RecordBatch]:
    """Yield the rows of a Parquet or CSV file."""
    for part in split_file(plan_file(file, None)):
        for decoded in read_range(part, _ALL, _BATCH_ROWS):
            if decoded.batch is not None:
                yield decoded.batch


def _json_rows(path: str) -> Iterator[pa.RecordBatch]:
    """Yield the rows of a JSON file that are objects."""
    found = read_json_values(list(row_texts(path)))
    rows = [row for row in found if isinstance(row, dict)]
    names = dict.fromkeys(name for row in rows for name in row)
    if rows:
        columns = {name: _column([row.get(name) for row in rows]) for name in names}
        yield pa.record_batch(columns)


def _column(values: Sequence[Any]) -> pa.Array:
    """Return values of JSON as a column; values of several types are text."""
    try:
        return pa.array(values)
    except (pa.ArrowException, OverflowError):
        return pa.array(list(map(to_text, values)), pa.string())


def read_query(cloud: Cloud, query: str) -> pa.Table:
    """Return the rows of a BigQuery query.

    Args:
        cloud: Makes the clients. Its project is billed.
        query: The SQL.

    Raises:
        InputError: The query cannot be run, or has no rows.
        CredentialsError: There are no valid credentials.
    """
    source = BigQuerySource(cloud=cloud, query=query, flag="--sample_query")
    schema = describe_source(source)
    table = run_query(source, query)
    with translate_errors(InputError, "the sample cannot be read"):
        client = cloud.bigquery_read()
        batches = [
            batch
            for stream in open_session(table, _ALL)
            for batch in read_stream(stream, client, cloud.retry_seconds)
        ]
    if not batches:
        raise InputError("the sample is empty: --sample_query has no rows")
    return pa.Table.from_batches(batches).select(schema.names)
