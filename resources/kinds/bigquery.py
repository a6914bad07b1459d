"""Datasets and tables of BigQuery."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from google.api_core import exceptions

from common.errors import UsageError
from resources.declaration import Resource, shown
from resources.kinds.base import Found, Kept, Kind, is_ours
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
        """The client of all resources of the kind."""
        return self.cloud.bigquery()


class Datasets(_Kind):
    """Datasets. Only an empty one is removed."""

    def look(self, resource: Resource) -> Found | None:
        """Return the dataset with its location, None if it does not exist."""
        try:
            dataset = self.client.get_dataset(resource.name, retry=self._retry)
        except exceptions.NotFound:
            return None
        return Found.labelled(dataset.labels, {"location": dataset.location.lower()})

    def create(self, resource: Resource) -> None:
        """Create an empty dataset in its location."""
        from google.cloud import bigquery

        dataset = bigquery.Dataset(resource.name)
        dataset.location = resource.properties["location"]
        dataset.labels = dict(self.labels)
        self.client.create_dataset(dataset, retry=self._retry)

    def relabel(self, resource: Resource, labels: Mapping[str, str | None]) -> None:
        """Change the labels in one update."""
        dataset = self.client.get_dataset(resource.name, retry=self._retry)
        # The client removes labels whose value is None.
        dataset.labels = {**dataset.labels, **labels}
        self.client.update_dataset(dataset, ["labels"], retry=self._retry)

    def holds(self, resource: Resource) -> tuple[str, ...]:
        """Return the names of its tables and views."""
        tables = self.client.list_tables(resource.name, retry=self._retry)
        return tuple(f"{t.project}.{t.dataset_id}.{t.table_id}" for t in tables)

    def delete(self, resource: Resource) -> None:
        """Delete the dataset, or raise Kept if it contains a table or a view."""
        for name in self.holds(resource):
            raise Kept(self.held_by(name))
        self.client.delete_dataset(resource.name, retry=self._retry)


class QueryDatasets(_Kind):
    """The datasets of all locations in which runs keep results of queries while they read them.

    Runs create them, whatever the configuration, so a configuration's label does not protect them.
    They are removed together, when none holds a table: a run may still read it.
    """

    held: ClassVar = "it contains {}, which a run may still read and which expires within a day"

    def look(self, resource: Resource) -> Found | None:
        """Return the datasets as one resource, None if there are none."""
        found = self._found(resource)
        if not found:
            return None
        names = ", ".join(dataset.dataset_id for dataset in found)
        return Found(ours=all(is_ours(dataset.labels) for dataset in found), details=names)

    def holds(self, resource: Resource) -> tuple[str, ...]:
        """Return the names of all their tables."""
        return tuple(
            f"{table.project}.{table.dataset_id}.{table.table_id}"
            for dataset in self._found(resource)
            for table in self.client.list_tables(dataset.reference, retry=self._retry)
        )

    def delete(self, resource: Resource) -> None:
        """Delete the datasets, or raise Kept if one of them contains a table."""
        for name in self.holds(resource):
            raise Kept(self.held_by(name))
        for dataset in self._found(resource):
            self.client.delete_dataset(dataset.reference, not_found_ok=True, retry=self._retry)

    def _found(self, resource: Resource) -> list[Any]:
        project, _, pattern = resource.name.rpartition(".")
        return [
            dataset
            for dataset in self.client.list_datasets(project, retry=self._retry)
            if dataset.dataset_id.startswith(pattern.removesuffix("*"))
        ]


class Tables(_Kind):
    """Tables with the columns that the pipelines write."""

    def look(self, resource: Resource) -> Found | None:
        """Return the table with its columns and rows, including the streaming buffer."""
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
                # The pipelines do not write such a column, so BigQuery would reject their rows. The
                # source table declares no type, so its columns never count as a difference.
                properties["type"] += f" with the required column {f.name}"
        return Found.labelled(table.labels, properties, rows=rows, size=size)

    def create(self, resource: Resource) -> None:
        """Create an empty table, partitioned by day, or one with example rows."""
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
        """Return whether the property is a missing column, or the number of example rows."""
        return (name.startswith(_COLUMN) and found is None) or name == EXAMPLE_ROWS

    def repair(self, resource: Resource, names: list[str]) -> None:
        """Add missing columns at the end, or load the example rows again."""
        if EXAMPLE_ROWS in names:
            return self._load(resource)
        table = self.client.get_table(resource.name, retry=self._retry)
        wanted = {f"{_COLUMN}{f.name}": f for f in _fields(resource)}
        table.schema = [*table.schema, *(wanted[name] for name in names)]
        self.client.update_table(table, ["schema"], retry=self._retry)

    def relabel(self, resource: Resource, labels: Mapping[str, str | None]) -> None:
        """Change the labels in one update."""
        table = self.client.get_table(resource.name, retry=self._retry)
        table.labels = {**table.labels, **labels}
        self.client.update_table(table, ["labels"], retry=self._retry)

    def delete(self, resource: Resource) -> None:
        """Delete the table with its rows."""
        self.client.delete_table(resource.name, retry=self._retry)

    def truncate(self, resource: Resource) -> None:
        """Remove all rows. DELETE would not do, because it refuses rows in the streaming buffer."""
        job = self.client.query(f"TRUNCATE TABLE `{resource.name}`", retry=self._retry)
        job.result(retry=self._retry)

    def _load(self, resource: Resource) -> None:
        """Replace the rows of the source table with the example's transactions."""
        from google.cloud import bigquery

        try:
            from examples.transactions.data import SCHEMA, write_parquet
        except ModuleNotFoundError as error:
            raise UsageError(
                "--load_example: the installed package does not contain the examples: run the "
                "command in a checkout of the repository"
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
    """Return the columns that the properties of a table declare."""
    from google.cloud.bigquery import SchemaField

    found = []
    for name, kind in resource.properties.items():
        if name.startswith(_COLUMN):
            mode, _, plain = kind.rpartition(" ")
            found.append(SchemaField(name.removeprefix(_COLUMN), plain, mode or "NULLABLE"))
    return found
