"""Folders NAME=VALUE: their keys are columns of the files in them."""

import datetime
import json
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from command_line import Result, RunCommand, assert_one_line_error
from hypothesis import given
from hypothesis import strategies as st

from common.cells import cast_column
from common.errors import InputError, UsageError
from model_handlers.manifests.manifest import Manifest
from pipelines.batch.input_files import key_types, passed_on
from pipelines.batch_local import COMMAND
from transforms.files.hive import Condition, add_keys, add_to_lines, keys_of
from transforms.files.ranges import format_of
from transforms.output_fields import choose_fields

UTC = pa.timestamp("us", "UTC")
MOMENT = datetime.datetime(2026, 11, 20, 7, 8, 9, tzinfo=datetime.UTC)
SUFFIXES = ("parquet", "csv", "jsonl", "json")


def put(path: Path, columns: dict[str, Any]) -> None:
    """Write a file in the format of its suffix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table(columns)
    if path.suffix == ".parquet":
        pq.write_table(table, path)
    elif path.suffix == ".csv":
        rows = [[str(value) for value in row.values()] for row in table.to_pylist()]
        path.write_text("\n".join(map(",".join, [list(columns), *rows])) + "\n")
    elif path.suffix == ".json":
        path.write_text(json.dumps(table.to_pylist(), indent=1))
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in table.to_pylist()))


@pytest.fixture
def run(
    tmp_path: Path, run_command: RunCommand, tiny_package: tuple[str, Manifest]
) -> Callable[..., Result]:
    """A function that runs batch_local with a model of the columns a, b and c."""

    def call(**flags: Any) -> Result:
        own = {
            "input_files": tmp_path / "in",
            "model": tiny_package[0],
            "output_files": tmp_path / "out",
            "run_id": "r",
            "direct_num_workers": 1,
        }
        return run_command(COMMAND, own | flags)

    return call


def scores(tmp_path: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(tmp_path / "out/r/scores").to_pylist()
    return rows


@pytest.mark.exhaustive
@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.slow
def test_keys_are_features_ids_and_output_fields(run: Any, tmp_path: Path, suffix: str) -> None:
    for c, day in ((3, "2026-11-19"), (4, "__HIVE_DEFAULT_PARTITION__"), (5, "a%2Fb %3D")):
        rows = {"a": [1.0], "b": [2.0], "id": ["x"]}
        put(tmp_path / f"in/c={c}/day={day}/rows.{suffix}", rows)
    code, _, err = run(output_fields="day,id", id_column="c")
    assert (code, err) == (0, "")
    found = {row["row_id"]: (row["day"], row["id"]) for row in scores(tmp_path)}
    assert found == {"3": ("2026-11-19", "x"), "4": (None, "x"), "5": ("a/b =", "x")}
    plain = {"a": [1.0] * 3, "b": [2.0] * 3, "c": [3.0, 4.0, 5.0], "id": ["3", "4", "5"]}
    by_folder = {row["row_id"]: row["score"] for row in scores(tmp_path)}
    put(tmp_path / f"plain/rows.{suffix}", plain)
    assert run(input_files=tmp_path / "plain", id_column="id")[0] == 0
    assert {row["row_id"]: row["score"] for row in scores(tmp_path)} == by_folder


@pytest.mark.exhaustive
@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.slow
def test_a_key_that_is_also_a_column_must_agree(run: Any, tmp_path: Path, suffix: str) -> None:
    rows = {"a": [1.0, 1.0], "b": [2.0, 2.0], "c": [3.0, 3.0], "n": [7, 7]}
    put(tmp_path / f"in/n=7/c=3.0/rows.{suffix}", rows)
    assert run(output_fields="n")[0] == 0
    assert {str(row["n"]) for row in scores(tmp_path)} == {"7"}
    put(tmp_path / f"in/n=8/c=3.0/rows.{suffix}", rows)
    assert run()[0] == 0  # The column n is not read.
    assert_one_line_error(run(output_fields="n"), 1, f"n=8/c=3.0/rows.{suffix}: column 'n' differs")


def test_a_missing_key_is_reported_with_similar_names(run: Any, tmp_path: Path) -> None:
    put(tmp_path / "in/day=1/rows.parquet", {name: [1.0] for name in "abc"})
    assert_one_line_error(run(output_fields="dya"), 2, "dya", "did you mean 'day'")


@pytest.mark.slow
def test_files_are_chosen_by_their_keys(run: Any, tmp_path: Path) -> None:
    for day in ("2026-10-31", "2026-11-01", "2026-11-02", "__HIVE_DEFAULT_PARTITION__"):
        for hour in (9, 10):
            rows = {name: [1.0] for name in "abc"}
            put(tmp_path / f"in/day={day}/hour={hour}/rows.parquet", rows)
    code, _, err = run(output_fields="day,hour", partition_filter="day>=2026-11-01,hour > 9")
    assert (code, err) == (0, "")
    found = {(row["day"], row["hour"]) for row in scores(tmp_path)}
    assert found == {("2026-11-01", "10"), ("2026-11-02", "10")}
    report = json.loads((tmp_path / "out/r/report.json").read_text())
    assert report["files_read"] == 2
    assert run(output_fields="hour", partition_filter="hour > 9")[0] == 0
    assert {row["hour"] for row in scores(tmp_path)} == {"10"}
    result = run(partition_filter="day>2027")
    assert_one_line_error(result, 1, "none of the 8 input files fulfils --partition_filter")
    assert_one_line_error(run(partition_filter="dya>1"), 2, "dya=VALUE", "did you mean 'day'")
    result = run(partition_filter="day = New York")
    assert_one_line_error(result, 2, "'York'", "was split at spaces")
    assert_one_line_error(run(partition_filter="day"), 2, "conditions such as day>=2026-11-01")


@pytest.mark.parametrize(
    ("condition", "value", "accepted"),
    [
        ("n>9", "10", True),
        ("n > 9.5", "10", True),
        ("n>9", "x", True),  # as text
        ("n=01", "1", True),
        ("n==a", "a", True),
        ("n != a", "a", False),
        ("n!=a", "b", True),
        ("n<2026-11-02", "2026-11-01", True),
        ("n<=2026-11-02", "2026-11-02", True),
        ("n=", "", True),
        ("n!=a", None, False),
        ("n > '2026-11-20'", "2026-11-20", False),
        ('n > "2026-11-20"', "2026-11-21", True),
        ("n = '10'", "10", True),
        ("n = '10'", "10.0", True),
        ("n=''", "", True),
        ("n='", "'", True),
        ("n='a\"", "'a\"", True),
    ],
)
def test_conditions_compare_numbers_or_text(
    condition: str, value: str | None, accepted: bool
) -> None:
    assert Condition.parse(condition).accepts({"n": value}) == accepted


@pytest.mark.parametrize("text", ["", "n", ">1", "n~1", "n>>", "n>>3", "n=>3"])
def test_other_conditions_are_rejected(text: str) -> None:
    with pytest.raises(UsageError, match="expected conditions such as"):
        Condition.parse(text)


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize(
    ("text", "kind", "value"),
    [
        ("2026-11-20", pa.date32(), datetime.date(2026, 11, 20)),
        ("2026-11-20 07:08:09", UTC, MOMENT),
        ("2026-11-20T07:08:09Z", UTC, MOMENT),
        ("2026-11-20", UTC, MOMENT.replace(hour=0, minute=0, second=0)),
        ("2026-11-20 07:08:09", pa.timestamp("us"), MOMENT.replace(tzinfo=None)),
        ("07", pa.int64(), 7),
        ("1.5", pa.decimal128(38, 9), Decimal("1.5")),
        ("true", pa.bool_(), True),
        (None, pa.date32(), None),
    ],
)
def test_a_key_has_the_type_that_a_table_asks_for(
    tmp_path: Path,
    tiny_package: tuple[str, Manifest],
    suffix: str,
    text: str | None,
    kind: pa.DataType,
    value: Any,
) -> None:
    spec = tiny_package[1]
    fields = choose_fields(spec, ("Day",))
    path = tmp_path / f"Day={quote(text or '__HIVE_DEFAULT_PARTITION__', '')}/rows.{suffix}"
    put(path, {name: [1.0] for name in "abc"})
    files = [(str(path), format_of(str(path)))]
    keys = key_types(files, spec, fields, pa.schema([("day", kind), ("a", pa.date32())]))
    assert keys == {"Day": kind}
    schema, _ = passed_on(files, spec, fields, keys)
    assert schema == pa.schema([("Day", kind)])
    column = pa.array([text], pa.string())
    assert cast_column(column, kind).to_pylist() == [value]
    # Without a table, it is text.
    assert key_types(files, spec, fields, pa.schema([])) == {}


def test_a_key_that_cannot_have_its_type_is_one_error_before_the_run(
    tmp_path: Path, tiny_package: tuple[str, Manifest]
) -> None:
    spec = tiny_package[1]
    fields = choose_fields(spec, ("day",))
    files = []
    for day in ("2026-11-20", "SECRET"):
        put(tmp_path / f"day={day}/rows.parquet", {name: [1.0] for name in "abc"})
        files.append((str(tmp_path / f"day={day}/rows.parquet"), format_of("x.parquet")))
    with pytest.raises(InputError, match=r"folder day=VALUE: expected date32\[day\], which the"):
        key_types(files, spec, fields, pa.schema([("day", pa.date32())]))


NAMES = st.text(min_size=1, max_size=5)


@given(st.dictionaries(NAMES, st.text(max_size=5), max_size=3))
def test_escapes_in_folders_are_undone(keys: dict[str, str]) -> None:
    folders = [f"{quote(name, '')}={quote(value, '')}" for name, value in keys.items()]
    assert keys_of("/".join(["gs://b/plain", *folders, "a=b.parquet"])) == keys


def test_other_folders_are_no_keys() -> None:
    assert keys_of("in/=x/day=1/y/z=2.parquet") == {"day": "1"}
    assert keys_of("day=1/a=b=c/r.csv") == {"day": "1", "a": "b=c"}


@given(
    st.lists(st.dictionaries(st.sampled_from(["a", "b", "x", "k"]), st.integers(0, 2)), max_size=4),
    st.dictionaries(
        st.sampled_from(["x", "k", 'q"']), st.sampled_from(["0", "1", "v", None]), min_size=1
    ),
)
def test_lines_get_the_keys_that_they_lack(
    rows: list[dict[str, int]], keys: dict[str, str | None]
) -> None:
    lines = [json.dumps(row).encode() for row in rows]
    differs = any(name in row and str(row[name]) != keys[name] for row in rows for name in keys)
    if differs:
        with pytest.raises(InputError, match="differs from the folder"):
            add_to_lines(lines, keys, set(), "f")
        return
    read = [json.loads(line) for line in add_to_lines(lines, keys, set(), "f")]
    assert read == [{**keys, **row} for row in rows]


def test_lines_that_are_no_objects_stay_as_they_are() -> None:
    lines = [b"[1]", b"5", b'{"day', b"{", b"{ }"]
    assert add_to_lines(lines, {"day": "1"}, set(), "f") == [
        b"[1]",
        b"5",
        b'{"day":"1",' + b'"day',
        b'{"day":"1",',
        b'{"day":"1"}',
    ]


@pytest.mark.parametrize("text", ["nan", "inf", "1_0", "0x1", "1e400", "9" * 21])
def test_keys_that_are_no_plain_numbers_stay_text(text: str) -> None:
    (line,) = add_to_lines([b'{"a":1}'], {"x": text}, {"x"}, "f")
    assert json.loads(line) == {"x": text, "a": 1}
    assert Condition.parse(f"x={text}").accepts({"x": text})
    assert not Condition("x", "=", "10").accepts({"x": text})


def test_a_line_with_constants_gets_the_keys_that_it_lacks() -> None:
    keys = {"day": "1", "hour": "7"}
    (line,) = add_to_lines([b'{"day":"1","b":NaN}'], keys, set(), "f")
    assert line == b'{"hour":"7","day":"1","b":NaN}'
    with pytest.raises(InputError, match="column 'day' differs"):
        add_to_lines([b'{"day":"2","b":NaN}'], keys, set(), "f")


@pytest.mark.parametrize(
    ("column", "value", "same"),
    [
        (pa.array([5, 5], pa.int8()), "5", True),
        (pa.array([5, None], pa.int8()), "5", False),
        (pa.array([5, 5], pa.int8()), "x", False),
        (pa.array([5, 5], pa.int8()), None, False),
        (pa.array([None, None], pa.int8()), None, True),
        (pa.array(["05"]), "5", False),
        (pa.array([1.5]), "1.50", True),
        (pa.array([20_000], pa.date32()), "2024-10-04", True),
        (pa.array([], pa.date32()), "x", True),
        (pa.array([[1]]), "1", False),
    ],
)
def test_columns_agree_with_a_key_as_values_of_their_type(
    column: pa.Array, value: str | None, same: bool
) -> None:
    batch = pa.record_batch({"k": column})
    if same:
        assert add_keys(batch, ["k"], {"k": value}, "f").equals(batch)
    else:
        with pytest.raises(InputError, match="f: column 'k' differs from the folder"):
            add_keys(batch, ["k"], {"k": value}, "f")
