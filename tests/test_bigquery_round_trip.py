"""Random tables of all types are read from a source and written to a sink unchanged."""

import json
import math
import string
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, time
from decimal import Decimal
from io import BytesIO
from itertools import count
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from apache_beam.internal.gcp import auth
from google.cloud import bigquery
from google.cloud.bigquery import SchemaField
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from property_tests import examples

from examples.local_cloud import LocalCloud
from model_handlers.manifests.manifest import InputSpec, Manifest, OutputSpec
from transforms.bigquery.destination import TableDestination
from transforms.bigquery.schema import TableName, arrow_schema, without_json
from transforms.bigquery.session import open_session, read_stream
from transforms.bigquery.source import BigQuerySource, describe_source
from transforms.files.columns import Columns
from transforms.files.sink.run_folder import SCORES, RunFolder
from transforms.files.sink.stage import StagedWriter
from transforms.provenance import Provenance

LARGEST = (1 << 63) - 1
# NUMERIC has 29 digits before and 9 digits after the point. BIGNUMERIC has 20 and 18 in the
# emulator, and 38 and 38 in the service.
NUMERIC = Decimal("99999999999999999999999999999.999999999")
BIGNUMERIC = Decimal("99999999999999999999.999999999999999999")


def decimals(limit: Decimal, scale: int) -> st.SearchStrategy[Decimal]:
    """Return decimals between a limit and its negative, with all digits."""
    largest = int(str(limit).replace(".", ""))
    # Build them from text, because arithmetic would round to 28 digits.
    return st.integers(-largest, largest).map(lambda n: Decimal(f"{n}E-{scale}"))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 53), 1 << 53) | st.text(string.printable),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab\u00e9"), inner),
    max_leaves=5,
)
VALUES: dict[str, st.SearchStrategy[Any]] = {
    "INTEGER": st.sampled_from([-LARGEST - 1, LARGEST]) | st.integers(-LARGEST - 1, LARGEST),
    "FLOAT": st.sampled_from([-0.0, 5e-324, 1.7976931348623157e308]) | st.floats(),
    "NUMERIC": st.sampled_from([NUMERIC, NUMERIC.copy_negate()]) | decimals(NUMERIC, 9),
    "BIGNUMERIC": st.sampled_from([BIGNUMERIC, BIGNUMERIC.copy_negate()])
    | decimals(BIGNUMERIC, 18),
    "BOOLEAN": st.booleans(),
    "STRING": st.text(),
    "BYTES": st.binary(),
    "DATE": st.dates(),
    "DATETIME": st.datetimes(),
    "TIMESTAMP": st.datetimes(timezones=st.just(UTC)),
    "TIME": st.times(),
    "JSON": JSON.map(json.dumps),
}
SCALARS = st.sampled_from(list(VALUES))


@st.composite
def fields(draw: st.DrawFn, name: str, depth: int = 0) -> SchemaField:
    """Draw a column of any type: a scalar, a struct, or an array of either."""
    kind = draw(SCALARS if depth > 1 else SCALARS | st.just("RECORD"))
    # The emulator's Read API returns an array of JSON as an array of structs.
    mode = draw(st.sampled_from(["NULLABLE", "REPEATED"])) if kind != "JSON" else "NULLABLE"
    if kind != "RECORD":
        return SchemaField(name, kind, mode)
    inner = [draw(fields(f"{name}_{i}", depth + 1)) for i in range(draw(st.integers(1, 3)))]
    return SchemaField(name, kind, mode, fields=inner)


def values(field: SchemaField) -> st.SearchStrategy[Any]:
    """Return values of a column, including nulls."""
    if field.field_type == "RECORD":
        one = st.fixed_dictionaries({child.name: values(child) for child in field.fields})
    else:
        one = VALUES[field.field_type]
    return st.lists(one, max_size=3) if field.mode == "REPEATED" else st.none() | one


@dataclass
class Rows:
    """The columns and rows of a table."""

    fields: Sequence[SchemaField]
    rows: list[dict[str, Any]]


@st.composite
def tables(draw: st.DrawFn) -> Rows:
    chosen = [draw(fields(f"c{i}")) for i in range(draw(st.integers(1, 8)))]
    row = st.fixed_dictionaries({field.name: values(field) for field in chosen})
    return Rows(chosen, draw(st.lists(row, max_size=12)))


def plain(value: Any, field: SchemaField) -> Any:
    """Convert a value to a form in which only unchanged values are equal."""
    if field.mode == "REPEATED":
        single = SchemaField(field.name, field.field_type, fields=field.fields)
        # In a table an array is never null.
        return [plain(item, single) for item in value or []]
    if value is None:
        return None
    if field.field_type == "RECORD":
        return {child.name: plain(value[child.name], child) for child in field.fields}
    if field.field_type == "FLOAT":
        return "NaN" if math.isnan(value) else struct.pack("<d", value)
    if field.field_type == "JSON":
        return ["JSON", json.loads(value)]
    return value


def plain_rows(table: Rows) -> list[Any]:
    rows = sorted(table.rows, key=lambda row: row["id"])
    return [{f.name: plain(row[f.name], f) for f in table.fields} for row in rows]


def narrow(kind: pa.DataType) -> pa.DataType:
    """Narrow decimals of more than 38 digits, which the emulator would load as floats."""
    if pa.types.is_struct(kind):
        return pa.struct([f.with_type(narrow(f.type)) for f in kind])
    if pa.types.is_list(kind):
        return pa.list_(narrow(kind.value_type))
    return pa.decimal128(38, 18) if pa.types.is_decimal256(kind) else kind


ID = SchemaField("id", "STRING")
FEATURE = SchemaField("x", "FLOAT")


@dataclass
class RoundTrip:
    """A round trip of tables through the source and the sink."""

    emulators: LocalCloud
    dataset: str
    numbers: Any

    def __call__(self, table: Rows) -> tuple[list[Any], list[Any]]:
        """Return the rows of a table and the rows of the destination, in comparable form."""
        table = Rows(
            [ID, FEATURE, *table.fields],
            [{"id": f"{i:03}", "x": 0.5} | row for i, row in enumerate(table.rows)],
        )
        number = next(self.numbers)
        source = TableName.parse(f"{self.dataset}.source_{number}", "input_table")
        target = source.sibling(f"target_{number}")
        self._create(source, table)
        schema, batches = self._read(source, table)
        self._write(target, schema, batches)
        found_schema, found = self._read(target, table)
        for name in (source, target):
            self.emulators.cloud.bigquery().delete_table(str(name))
        assert found_schema.equals(schema, check_metadata=True)
        rows = [row for batch in found for row in batch.to_pylist()]
        return plain_rows(table), plain_rows(replace(table, rows=rows))

    def _create(self, name: TableName, table: Rows) -> None:
        client = self.emulators.cloud.bigquery()
        client.create_table(bigquery.Table(str(name), schema=table.fields))
        # The emulator loads JSON from text. The service does not load Parquet files into JSON
        # columns; there a query would be needed.
        texts = arrow_schema([without_json(field) for field in table.fields])
        texts = pa.schema([f.with_type(narrow(f.type)) for f in texts])
        buffer = BytesIO()
        pq.write_table(pa.Table.from_pylist(table.rows, texts), buffer)
        buffer.seek(0)
        config = bigquery.LoadJobConfig(source_format="PARQUET")
        config.parquet_options = bigquery.ParquetOptions()
        config.parquet_options.enable_list_inference = True
        client.load_table_from_file(buffer, str(name), job_config=config).result()

    def _read(self, name: TableName, table: Rows) -> tuple[pa.Schema, list[pa.RecordBatch]]:
        """Return the columns of a table, and its rows from the Storage Read API."""
        cloud = self.emulators.cloud
        manifest = Manifest(
            name="m",
            version="1",
            format="torchscript",
            file="m.pt",
            sha256="0" * 64,
            inputs=(InputSpec("x", ("x",)),),
            outputs=(OutputSpec("y"),),
        )
        source = BigQuerySource(cloud=cloud, table=name)
        columns = Columns(manifest, "id", tuple(field.name for field in table.fields))
        batches = [
            batch
            for stream in open_session(source, columns)
            for batch in read_stream(stream, cloud.bigquery_read(), 5.0)
        ]
        return describe_source(source), batches

    def _write(self, name: TableName, schema: pa.Schema, batches: list[pa.RecordBatch]) -> None:
        """Stage batches like StageFiles does, and commit them to a new table."""
        folder = RunFolder("gs://bucket/round_trip", "r", name.table)
        own = Provenance(
            run_id="r",
            pipeline="batch",
            model_name="tiny",
            model_version="1",
            model_digest="0" * 64,
        )
        destination = TableDestination(
            part=SCORES,
            folder=folder,
            cloud=self.emulators.cloud,
            table=name,
            schema=schema,
            provenance=own,
        )
        destination.prepare()
        files = []
        for batch in batches:
            file = StagedWriter(destination, batch.schema)
            file.write(batch)
            files.append(file.close())
        destination.commit(files)


@pytest.fixture
def round_trip(
    emulators: LocalCloud, dataset: str, monkeypatch: pytest.MonkeyPatch
) -> Callable[[Rows], tuple[list[Any], list[Any]]]:
    for variable, address in emulators.environment.items():
        monkeypatch.setenv(variable, address)
    # Give Beam access to the bucket, as pipelines/cloud_access.py does for a run.
    monkeypatch.setattr(auth._Credentials, "_credentials_init", True)
    return RoundTrip(emulators, dataset, count())


@settings(
    max_examples=examples(6),
    deadline=None,
    # An example takes a second, so shrinking a failing one would take minutes.
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(table=tables())
def test_random_tables_survive_unchanged(
    round_trip: Callable[[Rows], tuple[list[Any], list[Any]]], table: Rows
) -> None:
    before, after = round_trip(table)
    assert after == before


EXTREMES: dict[str, list[Any]] = {
    "INTEGER": [-LARGEST - 1, LARGEST, 0],
    "FLOAT": [float("nan"), float("inf"), float("-inf"), -0.0, 5e-324],
    "NUMERIC": [NUMERIC, NUMERIC.copy_negate(), Decimal("0.000000001")],
    "BIGNUMERIC": [BIGNUMERIC, BIGNUMERIC.copy_negate(), Decimal("1E-18")],
    "BOOLEAN": [True, False],
    "STRING": ["", "\x00", "\U0001f4b3\u00e9", "NULL", "x" * 100_000],
    "BYTES": [b"", b"\x00\xff", bytes(range(256))],
    "DATE": [date.min, date.max, date(1969, 12, 31)],
    "DATETIME": [datetime.min, datetime.max, datetime(1582, 10, 10, 1, 2, 3, 4)],
    "TIMESTAMP": [datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)],
    "TIME": [time.min, time.max, time(12, 0, 0, 1)],
    "JSON": ["null", '""', "[]", '{"a": {"b": [1, 2.5, null, "\\u00e9"]}}'],
}


def test_the_smallest_and_largest_values_of_every_type_survive_unchanged(
    round_trip: Callable[[Rows], tuple[list[Any], list[Any]]],
) -> None:
    every = [SchemaField(f"one_{kind}", kind) for kind in EXTREMES]
    lists = [SchemaField(f"many_{kind}", kind, "REPEATED") for kind in EXTREMES if kind != "JSON"]
    records = [
        SchemaField("one", "RECORD", fields=every),
        SchemaField("many", "RECORD", "REPEATED", fields=every),
    ]
    rows: list[dict[str, Any]] = []
    for i in range(6):
        one = {
            f"one_{kind}": values[i] if i < len(values) else None
            for kind, values in EXTREMES.items()
        }
        many = {f"many_{kind}": values[:i] for kind, values in EXTREMES.items()}
        rows.append(one | many | {"one": one if i % 2 else None, "many": [one] * (i % 3)})
    before, after = round_trip(Rows([*every, *lists, *records], rows))
    assert after == before
