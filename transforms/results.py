"""Read the result of a run: the files that its report lists, all from the same attempt.

    open_result("gs://bucket/scored/RUN_ID").to_table()

While another attempt at the run puts its result in place, the folders hold the files of both
attempts for some seconds. The report always lists the files of exactly one. If you have opened a
result and it is replaced while you read it, reading fails because a file is missing: open the
result again.
"""

from __future__ import annotations

import pyarrow as pa
import pyarrow.dataset as ds

from common.errors import InputError
from transforms.files.sink.listing import read_listing
from transforms.files.sink.run_folder import SCORES, is_part_file
from transforms.files.store import arrow_storage, entries, is_remote

_FORMATS = {"parquet": "parquet", "csv": "csv", "jsonl": "json"}


def result_files(run_folder: str, part: str = SCORES) -> list[str]:
    """Return the paths of the files of a run's result.

    The report of a run of an earlier version lists no files. Then the files in the folder of the
    part are returned.

    Args:
        run_folder: The folder of the run, local or `gs://`.
        part: `scores` or `dead_letters`.

    Raises:
        InputError: The folder holds no complete run, or the part was written to a table.
        OutputError: The report.json in the folder is not the report of a run.
    """
    place = run_folder.rstrip("/")
    listing = read_listing(place)
    if listing.attempt is None:
        raise InputError(
            f"{place} has no report.json: expected the folder of a complete run; check the path, "
            "or wait until the run is complete"
        )
    if listing.parts is None:
        names = sorted(entry.name for entry in entries(f"{place}/{part}"))
        return [f"{place}/{part}/{name}" for name in names if is_part_file(name)]
    if part not in listing.parts:
        raise InputError(
            f"the report of {place} lists files of {', '.join(listing.parts) or 'nothing'}, but "
            f"not of {part}: output and dead_letter_output in its report.json say where the rows "
            "are"
        )
    return [file.path for file in listing.parts[part]]


def open_result(run_folder: str, part: str = SCORES) -> ds.Dataset:
    """Open the result of a run as a dataset, which reads the rows on demand.

    Args:
        run_folder: The folder of the run, local or `gs://`.
        part: `scores` or `dead_letters`.

    Returns:
        The dataset; it has no columns if the part has no rows.

    Raises:
        InputError: The folder holds no complete run, or the part was written to a table.
        OutputError: The report.json in the folder is not the report of a run.
    """
    paths = result_files(run_folder, part)
    if not paths:
        return ds.dataset(pa.table({}))
    kind = _FORMATS[paths[0].rsplit(".", 1)[-1]]
    if not is_remote(paths[0]):
        return ds.dataset(paths, format=kind)
    names = [path.removeprefix("gs://") for path in paths]
    return ds.dataset(names, format=kind, filesystem=arrow_storage())


def external_table(run_folder: str, table: str, part: str = SCORES) -> str:
    """Return the SQL that creates an external BigQuery table over the result of a run.

    The table reads the current files of the result: run the SQL again after you rerun the run.

    Args:
        run_folder: The folder of the run in Cloud Storage.
        table: The name of the table to create.
        part: `scores` or `dead_letters`.

    Raises:
        InputError: The folder holds no complete run, is not in Cloud Storage, or holds no rows of
            the part.
        OutputError: The report.json in the folder is not the report of a run.
    """
    paths = result_files(run_folder, part)
    if not paths or not paths[0].startswith("gs://"):
        raise InputError(
            f"{run_folder}: expected a run in Cloud Storage (gs://) with rows in {part}"
        )
    kind = {"parquet": "PARQUET", "csv": "CSV", "jsonl": "JSON"}[paths[0].rsplit(".", 1)[-1]]
    uris = ", ".join(f"'{path}'" for path in paths)
    options = f"format = '{kind}', uris = [{uris}]"
    if kind == "PARQUET":
        # Without it, a list would be a struct that contains an array of structs.
        options += ", enable_list_inference = TRUE"
    return f"CREATE OR REPLACE EXTERNAL TABLE `{table}` OPTIONS ({options});"
