"""Readers of a result follow its report: pyarrow, DuckDB, BigQuery, and Millrace's sources."""

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from apache_beam.internal.gcp import auth
from docs_pages import blocks
from google.cloud.bigquery import LoadJobConfig

from common.errors import InputError
from examples.local_cloud import INSTALLED, LocalCloud, is_installed
from transforms.files.ranges import match_files
from transforms.files.sink.commit import commit
from transforms.files.sink.destination import FolderDestination
from transforms.files.sink.run_folder import DEAD_LETTERS, SCORES, RunFolder, StagedFile
from transforms.files.sink.staging import hold
from transforms.files.sink.writers import OutputFormat, open_writer
from transforms.files.store import create_file
from transforms.results import external_table, open_result, result_files

FIRST, SECOND = "aaaaaaaa", "bbbbbbbb"


@pytest.fixture
def cloud(emulators: LocalCloud, monkeypatch: pytest.MonkeyPatch) -> LocalCloud:
    """The emulators, with Cloud Storage configured for Beam and the reader."""
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", emulators.endpoints.storage or "")
    monkeypatch.setattr(auth._Credentials, "_credentials_init", True)
    return emulators


def score(root: str, token: str, values: list[int], kind: OutputFormat = "parquet") -> str:
    """Commit a run with one file per score and no dead letters, and return its folder."""
    folder = RunFolder(root, "r", token)
    hold(folder, create=True)
    files = []
    for i, value in enumerate(values):
        batch = pa.record_batch({"a": pa.array([value], pa.int64())})
        path = folder.staged(f"scores-{i}.{kind}")
        with create_file(path) as handle:
            writer = open_writer(handle, batch.schema, kind)
            writer.write(batch)
            writer.close()
        files.append(StagedFile(SCORES, path, 1))
    parts = [FolderDestination(SCORES, folder, kind), FolderDestination(DEAD_LETTERS, folder, kind)]
    commit(parts, files, folder, lambda listing: json.dumps({"rows_in": 1, **listing}).encode())
    return folder.place


def stray(place: str) -> str:
    """Write a file of an unfinished attempt into a run's folder, and return its path."""
    path = f"{place}/scores/part-00000-of-00001-{SECOND}.parquet"
    with create_file(path) as handle:
        pq.write_table(pa.table({"a": [99]}), handle)
    return path


@pytest.mark.parametrize("kind", ["parquet", "csv", "jsonl"])
def test_a_result_consists_of_the_listed_files(tmp_path: Path, kind: OutputFormat) -> None:
    place = score(str(tmp_path / "out"), FIRST, [1, 2, 3], kind)
    stray(place)
    assert open_result(place).to_table().to_pydict() == {"a": [1, 2, 3]}
    assert open_result(f"{place}/", DEAD_LETTERS).to_table().num_rows == 0
    moved = (tmp_path / "out").rename(tmp_path / "elsewhere") / "r"
    assert open_result(str(moved)).count_rows() == 3


def test_a_result_in_cloud_storage_consists_of_the_listed_files(
    cloud: LocalCloud, tmp_path: Path
) -> None:
    place = score(f"gs://bucket/{tmp_path.name}", FIRST, [1, 2, 3])
    stray(place)
    assert open_result(place).to_table().to_pydict() == {"a": [1, 2, 3]}


def test_a_result_of_an_earlier_version_consists_of_all_files_in_its_folder(
    tmp_path: Path,
) -> None:
    place = score(str(tmp_path), FIRST, [1, 2, 3])
    Path(place, "report.json").write_text('{"run_id": "r", "rows_in": 3}')
    assert open_result(place).count_rows() == 3
    assert len(match_files([f"{place}/scores"])) == 3


def test_a_folder_without_a_result_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has no report\.json: expected the folder of a complete"):
        open_result(str(tmp_path))
    place = score(str(tmp_path), FIRST, [1])
    report = json.loads(Path(place, "report.json").read_text())
    del report["files"]["dead_letters"]
    Path(place, "report.json").write_text(json.dumps(report))
    words = r"lists files of scores, but not of dead_letters: output and dead_letter_output in its"
    with pytest.raises(InputError, match=words):
        open_result(place, DEAD_LETTERS)


@pytest.mark.parametrize("pattern", ["r/scores", "r/scores/*.parquet", "r", "*/scores/part-*"])
def test_a_source_leaves_out_unlisted_files(tmp_path: Path, pattern: str) -> None:
    place = score(str(tmp_path), FIRST, [1, 2])
    other = stray(place)
    (tmp_path / "r/report.json").rename(tmp_path / "kept.json")
    before = {file.path for file in match_files([f"{tmp_path}/{pattern}"])}
    (tmp_path / "kept.json").rename(tmp_path / "r/report.json")
    after = {file.path for file in match_files([f"{tmp_path}/{pattern}"])}
    assert before - after == {other}
    assert set(result_files(place)) <= after


PAGE = "docs/how-to/read-results.md"


def block_of(language: str, word: str) -> str:
    """Return the only block of the page on results that is in a language and contains a word."""
    (block,) = [text for page, text in blocks(language) if page == PAGE and word in text]
    return block


def test_the_lines_for_duckdb_read_the_listed_files(tmp_path: Path) -> None:
    if not is_installed():
        pytest.skip("DuckDB is installed with the emulators, which are missing")
    place = score(str(tmp_path), FIRST, [1, 2, 3])
    stray(place)
    sql = block_of("sql", "getvariable").replace("OUTPUT/RUN_ID", place)
    program = "import duckdb, sys; print(duckdb.connect().execute(sys.argv[1]).fetchall())"
    command = [str(INSTALLED / "bin/python"), "-c", program, sql]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout == "[(1,), (2,), (3,)]\n", done.stderr


def test_the_lines_for_python_read_the_listed_files(tmp_path: Path) -> None:
    place = score(str(tmp_path), FIRST, [1, 2, 3])
    source = block_of("python", "open_result").replace("gs://BUCKET/OUTPUT/RUN_ID", place)
    names: dict[str, Any] = {}
    # This result has no dead letters.
    exec(source.split("letters =")[0], names)
    assert names["table"].num_rows == 3


def test_the_sql_of_an_external_table_names_the_listed_files(
    cloud: LocalCloud, dataset: str, tmp_path: Path
) -> None:
    place = score(f"gs://bucket/{tmp_path.name}", FIRST, [1, 2, 3])
    stray(place)
    sql = external_table(place, f"{dataset}.t")
    form = r"CREATE OR REPLACE EXTERNAL TABLE `(.*)` OPTIONS \(format = '(\w+)', uris = \[(.*)\]"
    found = re.fullmatch(form + r", enable_list_inference = TRUE\);", sql)
    assert found is not None
    # The emulator has no external tables, but its load jobs can read the same list.
    client, uris = cloud.cloud.bigquery(), re.findall("'(.*?)'", found[3])
    config = LoadJobConfig(source_format=found[2])
    client.load_table_from_uri(uris, found[1], job_config=config).result()
    rows = client.query(f"SELECT a FROM `{dataset}.t`").result()
    assert sorted(row["a"] for row in rows) == [1, 2, 3]


def test_an_external_table_needs_files_in_cloud_storage(tmp_path: Path) -> None:
    words = r"expected a run in Cloud Storage \(gs://\) with rows in scores"
    with pytest.raises(InputError, match=words):
        external_table(score(str(tmp_path), FIRST, [1]), "p.d.t")
