"""Tables of Delta Lake and Iceberg are read through their logs, and never as plain Parquet."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from command_line import Result, RunCommand, assert_one_line_error
from lake_tables import DAYS, deletion_vector, parquet_deletes, rows, write_delta, write_iceberg
from libraries import need_library

from common.errors import InputError, UsageError
from model_handlers.manifests.manifest import Manifest
from pipelines.batch_local import COMMAND
from transforms.files.lake_folders import lake_at
from transforms.files.ranges import match_inputs
from transforms.lakes import table as lakes
from transforms.lakes.table import find_lake

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def delta(tmp_path: Path) -> Path:
    """A table whose versions hold xy, xyz, yz, and then yzw with another column."""
    write_delta(tmp_path / "delta")
    return tmp_path / "delta"


@pytest.fixture
def iceberg(tmp_path: Path) -> Path:
    """A table whose snapshots hold xy, y, and yz with a renamed column."""
    write_iceberg(str(tmp_path / "iceberg"))
    return tmp_path / "iceberg"


@pytest.fixture
def run(
    tmp_path: Path, run_command: RunCommand, tiny_package: tuple[str, Manifest]
) -> Callable[..., Result]:
    """A function that runs batch_local with a model of the columns a, b and c."""

    def call(**flags: Any) -> Result:
        own = {
            "model": tiny_package[0],
            "output_files": tmp_path / "out",
            "output_fields": "day",
            "id_column": "id",
            "run_id": "r",
            "direct_num_workers": 1,
        }
        return run_command(COMMAND, own | flags)

    return call


def scored(tmp_path: Path) -> tuple[dict[str, str], dict[str, Any]]:
    """Return the day of each scored row by its id, and the report."""
    report = json.loads((tmp_path / "out/r/report.json").read_text())
    table = pq.read_table(tmp_path / "out/r/scores")
    shutil.rmtree(tmp_path / "out")
    return dict(zip(table["row_id"].to_pylist(), table["day"].to_pylist(), strict=True)), report


@pytest.mark.slow
def test_a_delta_table_is_read_at_the_latest_or_another_version(
    run: Any, delta: Path, tmp_path: Path
) -> None:
    code, _, err = run(input_files=delta)
    assert (code, err) == (0, "")
    days, report = scored(tmp_path)
    assert days == {"y": DAYS[0], "z": DAYS[1], "w": DAYS[1]}
    assert (report["input"], report["table_version"]) == ([str(delta)], 3)
    assert (report["rows_in"], report["rows_expected"], report["files_read"]) == (3, 3, 3)
    assert run(input_files=f"{delta}/", table_version=1)[0] == 0
    days, report = scored(tmp_path)
    assert days == {"x": DAYS[0], "y": DAYS[0], "z": DAYS[1]}
    assert report["table_version"] == 1


def test_folders_of_a_delta_table_may_have_any_value(tmp_path: Path) -> None:
    need_library("deltalake")
    from deltalake import write_deltalake

    days = ["2026-11-20 12:00:00", "Neu Ulm", "a/b=c%20%C3%A4", ""]
    for day in days:
        write_deltalake(tmp_path / "delta", rows("x", day), partition_by=["day"], mode="append")
    named = find_lake(str(tmp_path / "delta"), None)
    assert named is not None
    table = named.open()
    found = [table.batches(file.path, ["day"], 10) for file in table.files()]
    values = [row["day"] for batches in found for batch in batches for row in batch.to_pylist()]
    assert sorted(value or "" for value in values) == sorted(days)


@pytest.mark.slow
def test_an_iceberg_table_is_read_at_the_latest_or_another_snapshot(
    run: Any, iceberg: Path, tmp_path: Path
) -> None:
    code, _, err = run(input_files=iceberg)
    assert (code, err) == (0, "")
    days, report = scored(tmp_path)
    assert days == {"y": DAYS[0], "z": DAYS[1]}
    assert report["rows_expected"] == 2
    metadata = sorted((iceberg / "metadata").glob("*.metadata.json"))
    snapshots = json.loads(metadata[-1].read_text())["snapshots"]
    assert report["table_version"] == snapshots[-1]["snapshot-id"]
    # The older snapshot has the older name of a column.
    first = snapshots[0]["snapshot-id"]
    table = find_lake(str(iceberg), first)
    assert table is not None
    opened = table.open()
    read = [
        row["id"]
        for file in opened.files()
        for batch in opened.batches(file.path, ["id", "old"], 100)
        for row in batch.to_pylist()
    ]
    assert read == ["x", "y"]
    # A metadata file names a state of the table.
    assert run(input_files=metadata[-1])[0] == 0
    assert scored(tmp_path)[0] == {"y": DAYS[0], "z": DAYS[1]}


@pytest.mark.parametrize("form", ["position deletes", "a deletion vector"])
@pytest.mark.slow
def test_rows_that_iceberg_removes_singly_are_not_scored(
    run: Any, iceberg: Path, tmp_path: Path, form: str
) -> None:
    table = find_lake(str(iceberg), None)
    assert table is not None
    (file, *_) = [f for f in table.open().files() if "y" in rows_in(table, f.path)]
    position = rows_in(table, file.path).index("y")
    if form == "position deletes":
        deleted = pa.table({"file_path": [file.path], "pos": [position]})
        parquet_deletes(iceberg, "POSITION_DELETES", deleted)
    else:
        deletion_vector(iceberg, file.path, [position])
    code, _, err = run(input_files=iceberg)
    assert (code, err) == (0, "")
    days, report = scored(tmp_path)
    assert days == {"z": DAYS[1]}
    assert report["rows_in"] == 1


def test_a_deletion_vector_removes_its_rows_only(tmp_path: Path) -> None:
    need_library("pyiceberg")
    from pyiceberg.catalog.sql import SqlCatalog

    catalog = SqlCatalog("local", uri="sqlite://", warehouse=str(tmp_path))
    catalog.create_namespace("n")
    table = catalog.create_table("n.t", rows("u").schema, location=str(tmp_path / "t"))
    table.append(rows("uvwxy"))
    table.append(rows("abc"))
    before = find_lake(str(tmp_path / "t"), None)
    assert before is not None
    (path,) = (file.path for file in before.open().files() if file.rows == 5)
    deletion_vector(tmp_path / "t", path, [0, 2])
    after = find_lake(str(tmp_path / "t"), None)
    assert after is not None
    for named, left in ((before, ["abc", "uvwxy"]), (after, ["abc", "vxy"])):
        found = [rows_in(named, file.path) for file in named.open().files()]
        assert sorted("".join(ids) for ids in found) == left


def rows_in(table: Any, path: str) -> list[str]:
    """Return the ids of the rows in a file of a table."""
    batches = table.open().batches(path, ["id"], 100)
    return [value for batch in batches for value in batch["id"].to_pylist()]


def test_an_iceberg_table_with_equality_deletes_is_refused(run: Any, iceberg: Path) -> None:
    deleted = pa.table({"id": ["y"]})
    parquet_deletes(iceberg, "EQUALITY_DELETES", deleted, equality_ids=[1])
    result = run(input_files=iceberg)
    assert_one_line_error(result, 1, "Apache Iceberg table", "does not yet support equality del")


@pytest.mark.slow
def test_columns_of_an_iceberg_table_are_those_of_now(tmp_path: Path) -> None:
    need_library("pyiceberg")
    from pyiceberg.catalog.sql import SqlCatalog
    from pyiceberg.types import StringType

    catalog = SqlCatalog("local", uri="sqlite://", warehouse=str(tmp_path / "warehouse"))
    catalog.create_namespace("n")
    root = tmp_path / "table"
    table = catalog.create_table("n.t", schema=rows("x").schema, location=str(root))
    table.append(rows("x", value=2.0))
    with table.update_schema() as update:
        update.rename_column("c", "amount")
        update.add_column("city", StringType())
    named = find_lake(str(root), None)
    assert named is not None
    opened = named.open()
    (file,) = opened.files()
    (batch,) = opened.batches(file.path, ["id", "amount", "city"], 10)
    assert batch.to_pylist() == [{"id": "x", "amount": 2.0, "city": None}]


@pytest.mark.parametrize("fixture", ["delta", "iceberg"])
def test_a_version_that_does_not_exist_is_an_error(
    run: Any, fixture: str, request: pytest.FixtureRequest
) -> None:
    root = request.getfixturevalue(fixture)
    result = run(input_files=root, table_version=99)
    assert_one_line_error(result, 1, "99: --table_version may be")


def test_metadata_files_with_the_same_number_are_an_error(iceberg: Path) -> None:
    newest = max((iceberg / "metadata").glob("*.metadata.json"))
    twin = newest.with_name(f"{newest.name[:5]}-other.metadata.json")
    shutil.copy(newest, twin)
    with pytest.raises(InputError, match=r"2 metadata files with the number 4.*such as"):
        find_lake(str(iceberg), None)
    hint = iceberg / "metadata/version-hint.text"
    hint.write_text(newest.name.removesuffix(".metadata.json"))
    found = find_lake(str(iceberg), None)
    assert found is not None
    assert found.metadata == str(newest)


def by_hand(root: Path, features: list[str], configuration: dict[str, str]) -> None:
    """Write a Delta table that needs features of its readers."""
    pq.write_table(rows("x"), root / "part-0.parquet")
    columns: list[dict[str, Any]] = [
        {"name": n, "type": "string", "nullable": True, "metadata": {}} for n in ("id", "day")
    ]
    columns += [{"name": n, "type": "double", "nullable": True, "metadata": {}} for n in "abc"]
    protocol: dict[str, Any] = {"minReaderVersion": 2, "minWriterVersion": 5}
    if features:
        protocol = {"minReaderVersion": 3, "minWriterVersion": 7}
        protocol |= {"readerFeatures": features, "writerFeatures": features}
    metadata = {
        "id": "t",
        "format": {"provider": "parquet", "options": {}},
        "schemaString": json.dumps({"type": "struct", "fields": columns}),
        "partitionColumns": [],
        "configuration": configuration,
    }
    size = (root / "part-0.parquet").stat().st_size
    add = {"path": "part-0.parquet", "partitionValues": {}, "size": size, "modificationTime": 0}
    if "deletionVectors" in features:
        # It removes the only row.
        place = {"storageType": "u", "pathOrInlineDv": "ab^-aqEH.-t@S}K{vb[*k^", "offset": 4}
        add["deletionVector"] = place | {"sizeInBytes": 40, "cardinality": 1}
    actions = [{"protocol": protocol}, {"metaData": metadata}, {"add": add | {"dataChange": True}}]
    (root / "_delta_log").mkdir()
    log = root / "_delta_log" / f"{0:020}.json"
    log.write_text("".join(json.dumps(action) + "\n" for action in actions))


@pytest.mark.parametrize(
    ("features", "configuration"),
    [
        (["deletionVectors"], {"delta.enableDeletionVectors": "true"}),
        ([], {"delta.columnMapping.mode": "name", "delta.columnMapping.maxColumnId": "5"}),
        (["columnMapping"], {"delta.columnMapping.mode": "id"}),
        (["aFeatureOfTomorrow"], {}),
    ],
)
def test_a_delta_table_that_needs_more_is_refused(
    run: Any, tmp_path: Path, features: list[str], configuration: dict[str, str]
) -> None:
    need_library("deltalake")
    root = tmp_path / "t"
    root.mkdir()
    by_hand(root, features, configuration)
    code, out, err = run(input_files=root)
    assert (code, out) == (1, "")
    assert err.startswith("error: Delta Lake table ")
    assert len(err.splitlines()) == 1
    assert all(feature in err for feature in features or ["columnMapping"])


def markers(root: Path) -> dict[str, Path]:
    """Create folders with the markers of each kind of table, and one Parquet file."""
    found = {}
    for kind, marker in {
        "Delta Lake": "_delta_log/0.json",
        "Apache Hudi": ".hoodie/hoodie.properties",
        "Apache Iceberg": "metadata/v1.metadata.json",
    }.items():
        folder = found[kind] = root / kind.split()[-1]
        (folder / marker).parent.mkdir(parents=True)
        (folder / marker).write_text("{}")
        (folder / "data/day=1").mkdir(parents=True)
        pq.write_table(rows("x"), folder / "data/day=1/part.parquet")
    return found


@pytest.mark.parametrize(
    "part", ["", "data", "data/day=1", "data/day=1/part.parquet", "data/*/*.parquet", "**"]
)
def test_files_of_a_table_are_never_read_as_files(tmp_path: Path, part: str) -> None:
    for kind, folder in markers(tmp_path).items():
        lake = lake_at(str(folder))
        assert lake is not None
        assert lake.kind == kind
        for base in (folder, tmp_path / "." / folder.name):
            with pytest.raises(InputError, match=f"a table of {kind}") as caught:
                match_inputs([f"{base}/{part}".rstrip("/")])
            assert "\n" not in str(caught.value)
            named = f"--input_files {base} and nothing else" in str(caught.value)
            assert named == (kind != "Apache Hudi")


@pytest.mark.parametrize("pattern", ["part.parquet", "./*.parquet", "."])
def test_files_of_a_table_are_refused_from_within_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pattern: str
) -> None:
    for folder in markers(tmp_path).values():
        monkeypatch.chdir(folder / "data/day=1")
        with pytest.raises(InputError, match=f"is in {folder}, a table of"):
            match_inputs([pattern])


def test_a_folder_around_tables_is_refused_and_others_are_not(tmp_path: Path) -> None:
    markers(tmp_path / "warehouse")
    with pytest.raises(InputError, match="a table of"):
        match_inputs([str(tmp_path / "warehouse")])
    for name in ("plain/metadata/rows.parquet", "plain/delta_log/day=1/rows.parquet"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(rows("x"), tmp_path / name)
    assert len(match_inputs([str(tmp_path / "plain")])) == 2
    assert lake_at(str(tmp_path / "plain")) is None
    assert lake_at(str(tmp_path / "*")) is None


def test_several_inputs_with_a_table_are_refused(run: Any, tmp_path: Path) -> None:
    folder = markers(tmp_path / "warehouse")["Delta Lake"]
    pq.write_table(rows("x"), tmp_path / "rows.parquet")
    result = run(input_files=f"{tmp_path / 'rows.parquet'},{folder}")
    assert_one_line_error(result, 1, "a table of Delta Lake")
    result = run(input_files=tmp_path / "rows.parquet", table_version=1)
    assert_one_line_error(result, 2, "--table_version needs one --input_files")


def test_a_library_that_is_not_installed_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(name: str, **_: Any) -> Any:
        raise ImportError(name)

    monkeypatch.setattr(lakes, "import_module", missing)
    folders = markers(tmp_path)
    for kind, extra in (("Delta Lake", "delta"), ("Apache Iceberg", "iceberg")):
        with pytest.raises(UsageError, match=rf"install millrace\[{extra}\]"):
            find_lake(str(folders[kind]), None)
    with pytest.raises(InputError, match="export the table to Parquet"):
        find_lake(str(folders["Apache Hudi"]), None)
