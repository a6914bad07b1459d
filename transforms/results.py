"""Readers of a run's result: the files that its report lists, never a mixture of two attempts'.

    open_result("gs://bucket/scored/RUN_ID").to_table()

While a second run with the same id puts its result in place, for some seconds the folders hold
the files of both; the report always lists those of one. Who has opened a result and reads on
after it was replaced gets an error that a file is gone, and opens it again.
"""

from __future__ import annotations

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.fs as pa_fs

from cloud.clients import credentials
from cloud.endpoints import Endpoints, is_plain, rest_url
from common.errors import InputError
from transforms.files.listing import read_listing
from transforms.files.run_folder import SCORES, is_part_file
from transforms.files.store import entries, is_remote

_FORMATS = {"parquet": "parquet", "csv": "csv", "jsonl": "json"}


def result_files(run_folder: str, part: str = SCORES) -> list[str]:
    """A run's folder and a part -> the paths of the files of its result.

    Of a run of an earlier version, whose report lists none, those in the part's folder. Raises
    InputError where no run is complete, or where the part went to a table.
    """
    place = run_folder.rstrip("/")
    listing = read_listing(place)
    if listing.attempt is None:
        raise InputError(f"{place} has no report.json: expected the folder of a complete run")
    if listing.parts is None:
        names = sorted(entry.name for entry in entries(f"{place}/{part}"))
        return [f"{place}/{part}/{name}" for name in names if is_part_file(name)]
    if part not in listing.parts:
        raise InputError(
            f"{place} lists no files of {part}, only of {', '.join(listing.parts) or 'nothing'}: "
            "look at output and dead_letter_output in its report.json"
        )
    return [file.path for file in listing.parts[part]]


def open_result(run_folder: str, part: str = SCORES) -> ds.Dataset:
    """A run's folder, local or gs://, and a part -> its rows, read when they are asked for.

    A part without rows has no columns. Raises InputError.
    """
    paths = result_files(run_folder, part)
    if not paths:
        return ds.dataset(pa.table({}))
    kind = _FORMATS[paths[0].rsplit(".", 1)[-1]]
    if not is_remote(paths[0]):
        return ds.dataset(paths, format=kind)
    names = [path.removeprefix("gs://") for path in paths]
    return ds.dataset(names, format=kind, filesystem=_cloud_storage())


def external_table(run_folder: str, table: str, part: str = SCORES) -> str:
    """A run's folder in Cloud Storage, a table's name, a part -> the SQL that makes it BigQuery's.

    The table reads the result that is in place now: run the SQL again after the run was run
    again. Raises InputError.
    """
    paths = result_files(run_folder, part)
    if not paths or not paths[0].startswith("gs://"):
        raise InputError(f"{run_folder}: expected a run in Cloud Storage with rows in {part}")
    kind = {"parquet": "PARQUET", "csv": "CSV", "jsonl": "JSON"}[paths[0].rsplit(".", 1)[-1]]
    uris = ", ".join(f"'{path}'" for path in paths)
    options = f"format = '{kind}', uris = [{uris}]"
    return f"CREATE OR REPLACE EXTERNAL TABLE `{table}` OPTIONS ({options});"


def _cloud_storage() -> pa_fs.FileSystem:
    address = Endpoints.resolve().storage
    if not is_plain(address):
        credentials(address)
        return pa_fs.GcsFileSystem()
    scheme, _, host = rest_url(address or "").partition("://")
    return pa_fs.GcsFileSystem(anonymous=True, scheme=scheme, endpoint_override=host)
