"""QueryTable: the table that holds the result of a query while a run reads it.

BigQuery's own table for a result takes about 10 GB. A table of the attempt takes any size.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from google.api_core import exceptions
from google.cloud import bigquery

from cloud.clients import Cloud
from cloud.errors import explain, lacks_role, retry, translate_errors
from cloud.owner import OWNER, QUERY_DATASETS
from common.errors import InputError, MillraceError
from transforms.bigquery.write_jobs import RUN_TABLE_LIFETIME
from transforms.provenance import utc_now


@dataclass(frozen=True, kw_only=True)
class QueryTable:
    """The table of one attempt at a run for the result of a query.

    Attributes:
        cloud: Makes the clients, and limits retries.
        dataset: The dataset, as `project.dataset`.
        location: The location of the data that the query reads.
        attempt: The token of the attempt, which names the table.
        given: Whether a user named the dataset. If not, it is created when it is missing.
    """

    cloud: Cloud
    dataset: str
    location: str
    attempt: str
    given: bool

    @classmethod
    def of(cls, cloud: Cloud, dataset: str | None, location: str, attempt: str) -> QueryTable:
        """Return the table for a result.

        Args:
            cloud: Makes the clients. Its project is billed.
            dataset: The dataset that a user named, or None for one of this location.
            location: The location of the data that the query reads.
            attempt: The token of the attempt.
        """
        own = f"{QUERY_DATASETS}{location.lower().replace('-', '_')}"
        name = own if dataset is None else dataset
        return cls(
            cloud=cloud,
            dataset=name if "." in name else f"{cloud.project}.{name}",
            location=location,
            attempt=attempt,
            given=dataset is not None,
        )

    @property
    def reference(self) -> bigquery.TableReference:
        """The name of the table for BigQuery's client."""
        return bigquery.TableReference.from_string(f"{self.dataset}.millrace_query_{self.attempt}")

    def prepare(self) -> None:
        """Check the dataset, and create it if it is missing and no user named it.

        Raises:
            InputError: The dataset does not exist, is in another location, or cannot be created.
        """
        client = self.cloud.bigquery()
        what = f"dataset {self.dataset} cannot hold the result of the query"
        with translate_errors(InputError, what):
            try:
                found = client.get_dataset(self.dataset, retry=self._retry)
            except exceptions.NotFound:
                if self.given:
                    raise InputError(
                        f"--query_dataset: dataset {self.dataset} does not exist: create it in "
                        f"{self.location}, or leave out --query_dataset"
                    ) from None
                found = self._create_dataset(client)
        if found.location.upper() != self.location.upper():
            raise InputError(
                f"dataset {self.dataset} is in {found.location}, and the query reads data in "
                f"{self.location}: pass --query_dataset with a dataset in {self.location}"
            )

    def _create_dataset(self, client: bigquery.Client) -> bigquery.Dataset:
        new = bigquery.Dataset(self.dataset)
        new.location = self.location
        new.labels = dict(OWNER)
        new.description = "Results of queries while Millrace reads them; its tables expire"
        new.default_table_expiration_ms = int(RUN_TABLE_LIFETIME.total_seconds() * 1000)
        try:
            return client.create_dataset(new, exists_ok=True, retry=self._retry)
        except exceptions.Forbidden as error:
            if not lacks_role(error):
                raise
            raise InputError(
                f"dataset {self.dataset} cannot be created: {explain(error)}, or pass "
                f"--query_dataset with a dataset in {self.location}"
            ) from error

    def create(self, schema: Sequence[bigquery.SchemaField]) -> None:
        """Create the table with an expiration time, unless it exists.

        Args:
            schema: The columns of the result, as a dry run names them.

        Raises:
            GoogleAPICallError: The table cannot be created.
        """
        table = bigquery.Table(self.reference, schema=schema)
        table.expires = utc_now() + RUN_TABLE_LIFETIME
        self.cloud.bigquery().create_table(table, exists_ok=True, retry=self._retry)

    def discard(self) -> None:
        """Delete the table; try once, and ignore errors, because the table expires anyway."""
        with contextlib.suppress(MillraceError), translate_errors(InputError, "the result"):
            client = self.cloud.bigquery()
            client.delete_table(self.reference, not_found_ok=True, retry=None, timeout=10.0)

    @property
    def _retry(self) -> Any:
        return retry(self.cloud.retry_seconds)
