"""A scale test of a batch that reads and writes tables, or files in a bucket, on the emulators."""

import json
from pathlib import Path
from typing import Any

import pytest
from command_line import assert_one_line_error
from libraries import need_library

from examples.local_cloud import LocalCloud
from scale_tests import __main__ as scale_command

PLAN = """\
target = "batch"
send_to = "{dataset}"

[batch]
flags = [
    "--model", "{model}", "--temp_location", "gs://bucket/tmp", "--billing_project", "{project}",
    "--retry_seconds", "5", "--direct_num_workers", "1",
]

[rows]
faulty = 0.05

[[phases]]
kind = "offline"
rows = [300, 1_000]
"""


class Stand:
    """A plan of a test of tables."""

    def __init__(self, on: LocalCloud, dataset: str, folder: Path, model: Path) -> None:
        self.client, self.dataset = on.cloud.bigquery(), dataset
        self.plan, self.out = folder / "plan.toml", folder / "out"
        values = {"dataset": dataset, "model": model, "project": on.cloud.project}
        self.plan.write_text(PLAN.format(**values))

    def run(self, *more: str) -> int:
        command = ["batch", "--plan", str(self.plan), "--output", str(self.out), *more]
        return scale_command.main(command)

    def tables(self) -> set[str]:
        return {table.table_id for table in self.client.list_tables(self.dataset)}


@pytest.fixture
def stand(
    emulators: LocalCloud,
    dataset: str,
    example: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Stand:
    for library in ("hdrh", "psutil", "scipy", "vl_convert"):
        need_library(library)
    for variable, address in emulators.environment.items():
        monkeypatch.setenv(variable, address)
    return Stand(emulators, dataset, tmp_path, example / "model")


def test_every_row_of_a_table_is_accounted_for_and_only_own_tables_are_removed(
    stand: Stand, emulators: LocalCloud
) -> None:
    stand.client.query(f"CREATE TABLE `{stand.dataset}.other` (x INT64)").result()
    assert stand.run() == 0
    result: dict[str, Any] = json.loads((stand.out / "result.json").read_text())
    assert [level["rows"] for level in result["levels"]] == [300, 1_000]
    for level in result["levels"]:
        assert level["verdict"] == "passed", level["reasons"]
        accounts = level["accounts"]
        assert accounts["planned"] == accounts["scored"] + accounts["dead_lettered"]
        assert accounts["dead_lettered"] > 0
        assert level["start_seconds"] > 0
    assert stand.tables() == {"other"}
    left = emulators.cloud.storage().list_blobs("bucket", prefix="tmp/millrace/")
    assert not [blob.name for blob in left if result["test_id"] in blob.name]


def test_every_row_of_files_in_a_bucket_is_accounted_for(
    stand: Stand, emulators: LocalCloud
) -> None:
    bucket = emulators.cloud.storage().bucket("bucket")
    folder = f"scale-{stand.dataset.rpartition('.')[2]}"
    bucket.blob(f"{folder}/other").upload_from_string("of the user")
    text = stand.plan.read_text().replace(f'"{stand.dataset}"', f'"gs://bucket/{folder}"')
    stand.plan.write_text(text.replace("rows = [300, 1_000]", "rows = 1_000"))
    assert stand.run() == 0
    (level,) = json.loads((stand.out / "result.json").read_text())["levels"]
    assert level["verdict"] == "passed", level["reasons"]
    assert level["accounts"]["scored"] + level["accounts"]["dead_lettered"] == 1_000
    assert level["written_bytes"] > 0
    found = emulators.cloud.storage().list_blobs("bucket", prefix=f"{folder}/")
    assert [blob.name for blob in found] == [f"{folder}/other"]


def test_a_dataset_that_does_not_exist_is_one_line(
    stand: Stand, capsys: pytest.CaptureFixture[str]
) -> None:
    stand.plan.write_text(stand.plan.read_text().replace(stand.dataset, f"{stand.dataset}_no"))
    assert_one_line_error(
        (stand.run(), *capsys.readouterr()), 1, "rows cannot be written to ", "_no.millrace_scale_"
    )


def test_a_dataset_without_a_project_needs_the_flag(
    stand: Stand, capsys: pytest.CaptureFixture[str]
) -> None:
    project, _, name = stand.dataset.rpartition(".")
    stand.plan.write_text(stand.plan.read_text().replace(stand.dataset, name))
    result = (stand.run(), *capsys.readouterr())
    assert_one_line_error(result, 2, f"pass --project, or write ./{name} for a folder")
    assert project
