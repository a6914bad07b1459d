"""Datasets and tables."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from google.api_core import exceptions

from common.errors import UsageError
from resources.declaration import Resource, shown
from resources.kinds.base import Found, Kept, Kind
from transforms.bigquery.schema import type_name

if TYPE_CHECKING:
    from google.cloud import bigquery

EXAMPLE_ROWS = "example rows"
_EXAMPLE_SEED = 7
_COLUMN = "column "


class _Kind(Kind):
    role: ClassVar = "roles/bigquery.dataOwner"

    @functools.cached_property
    def client(self) -> bigquery.Client:
        """One for all resources of the kind."""
        return self.cloud.bigquery()


class Datasets(_Kind):
    """Datasets, which are removed only when nothing is in them."""

    def look(self, resource: Resource) -> Found | None:
        """Its location."""
        try:
            dataset = self.client.get_dataset(resource.name, retry=self._retry)
        except exceptions.NotFound:
            return None
        return Found.labelled(dataset.labels, {"location": dataset.location.lower()})

    def create(self, resource: Resource) -> None:
        """Empty, in its location."""
        from google.cloud import bigquery

        dataset = bigquery.Dataset(resource.name)
        dataset.location = resource.properties["location"]
        dataset.labels = dict(self.labels)
        self.client.create_dataset(dataset, retry=self._retry)

    def relabel(self, resource: Resource, labels: Mapping[str, str | None]) -> None:
        """In one change."""
        dataset = self.client.get_dataset(resource.name, retry=self._retry)
        # What is None goes.
        dataset.labels = {**dataset.labels, **labels}
        self.client.update_dataset(dataset, ["labels"], retry=self._retry)

    def holds(self, resource: Resource) -> tuple[str, ...]:
        """Its tables and views."""
        tables = self.client.list_tables(resource.name, retry=self._retry)
        return tuple(f"{t.project}.{t.dataset_id}.{t.table_id}" for t in tables)

    def delete(self, resource: Resource) -> None:
        """The dataset, unless something is in it."""
        for name in self.holds(resource):
            raise Kept(self.held_by(name))
        self.client.delete_dataset(resource.name, retry=self._retry)


class Tables(_Kind):
    """Tables with the columns that the pipelines write."""

    def look(self, resource: Resource) -> Found | None:
        """Its columns and rows, those in the streaming buffer too."""
        try:
            table = self.client.get_table(resource.name, retry=self._retry)
        except exceptions.NotFound:
            return None
        buffer = table.streaming_buffer
        rows = (table.num_rows or 0) + ((buffer.estimated_rows or 0) if buffer else 0)
        size = (table.num_bytes or 0) + ((buffer.estimated_bytes or 0) if buffer else 0)
        properties = {
            "type": table.table_type,
            EXAMPLE_ROWS: str(rows),
            **{f"{_COLUMN}{f.name}": shown(type_name(f), f.mode) for f in table.schema},
        }
        wanted = {name.lower() for name in resource.properties}
        for f in table.schema:
            if f.mode == "REQUIRED" and f"{_COLUMN}{f.name}".lower() not in wanted:
                # Of the source table nothing is written, so its columns are its own affair.
                properties["type"] += f" that requires {f.name}"
        return Found.labelled(table.labels, properties, rows=rows, size=size)

    def create(self, resource: Resource) -> None:
        """Empty, partitioned by the day of its first time; or with example rows."""
        from google.cloud import bigquery

        if EXAMPLE_ROWS in resource.properties:
            return self._load(resource)
        fields = _fields(resource)
        table = bigquery.Table(resource.name, schema=fields)
        day = next(field.name for field in fields if field.field_type == "TIMESTAMP")
        table.time_partitioning = bigquery.TimePartitioning(field=day)
        table.labels = dict(self.labels)
        self.client.create_table(table, retry=self._retry)

    def repairs(self, name: str, found: str | None) -> bool:
        """Columns can be added, example rows be loaded anew."""
        return (name.startswith(_COLUMN) and found is None) or name == EXAMPLE_ROWS

    def repair(self, resource: Resource, names: list[str]) -> None:
        """Columns that are missing are added at the end."""
        if EXAMPLE_ROWS in names:
            return self._load(resource)
        table = self.client.get_table(resource.name, retry=self._retry)
        wanted = {f"{_COLUMN}{f.name}": f for f in _fields(resource)}
        table.schema = [*table.schema, *(wanted[name] for name in names)]
        self.client.update_table(table, ["schema"], retry=self._retry)

    def relabel(self, resource: Resource, labels: Mapping[str, str | None]) -> None:
        """In one change."""
        table = self.client.get_table(resource.name, retry=self._retry)
        table.labels = {**table.labels, **labels}
        self.client.update_table(table, ["labels"], retry=self._retry)

    def delete(self, resource: Resource) -> None:
        """The table with its rows."""
        self.client.delete_table(resource.name, retry=self._retry)

    def truncate(self, resource: Resource) -> None:
        """Its rows. Not DELETE, which refuses rows that are in the streaming buffer."""
        job = self.client.query(f"TRUNCATE TABLE `{resource.name}`", retry=self._retry)
        job.result(retry=self._retry)

    def _load(self, resource: Resource) -> None:
        """The source table -> holding the example's transactions, and nothing else."""
        from google.cloud import bigquery

        try:
            from examples.transactions.data import SCHEMA, write_parquet
        except ModuleNotFoundError as error:
            raise UsageError(
                "--load_example: the examples are in the project's repository, not in the "
                "installed package: run it there"
            ) from error
        from transforms.bigquery.schema import table_fields

        fields = table_fields(SCHEMA)
        table = bigquery.Table(resource.name, schema=fields)
        table.labels = dict(self.labels)
        self.client.create_table(table, exists_ok=True, retry=self._retry)
        config: Any = bigquery.LoadJobConfig(
            source_format="PARQUET", write_disposition="WRITE_TRUNCATE", schema=fields
        )
        with tempfile.NamedTemporaryFile(suffix=".parquet") as file:
            write_parquet(file.name, int(resource.properties[EXAMPLE_ROWS]), seed=_EXAMPLE_SEED)
            job = self.client.load_table_from_file(file, resource.name, job_config=config)
            job.result(retry=self._retry)


def _fields(resource: Resource) -> list[bigquery.SchemaField]:
    """A table -> the columns that its properties say."""
    from google.cloud.bigquery import SchemaField

    found = []
    for name, kind in resource.properties.items():
        if name.startswith(_COLUMN):
            mode, _, plain = kind.rpartition(" ")
            found.append(SchemaField(name.removeprefix(_COLUMN), plain, mode or "NULLABLE"))
    return found
