"""What steps do in cases that a reference for one row does not show."""

import datetime as dt
import json
import zoneinfo
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from property_tests import examples
from raw_model import FAULTS, GOOD, KINDS, MANIFEST, ROWS
from steps_reference import seen

from common.errors import ManifestError
from common.record_batch import INPUTS, ROW_ID, source_batch, struct_columns
from model_handlers.manifests.manifest import Manifest
from model_handlers.manifests.model_json import parse_manifest
from model_handlers.preparation import Preparation
from model_handlers.steps.answers import Softmax, TopK
from model_handlers.steps.categories import Vocabulary, read_list
from model_handlers.steps.chain import Chain
from model_handlers.steps.general import Fill
from model_handlers.steps.lists import Pad
from model_handlers.steps.numeric import Add, Clip, Divide, Log1p
from model_handlers.steps.raw import become
from model_handlers.steps.step import Cells, Context, Step
from model_handlers.steps.times import AssumeZone, TimePart
from transforms.validate import validate

BERLIN = zoneinfo.ZoneInfo("Europe/Berlin")
CONTEXT = Context({"kinds.txt": "".join(f"{kind}\n" for kind in KINDS).encode()})


def run(columns: dict[str, Cells], *steps: Step) -> Cells:
    """Run steps on the column `x`."""
    return Chain("x", steps).bind(CONTEXT).run(columns)


def numbers(*values: float | None) -> Cells:
    return Cells(pa.array(values, pa.float64()))


def read(raw: str, *values: Any) -> Cells:
    return become(pa.array(values), raw)


def tiny(column: str, raw: str, *links: dict[str, Any], **changes: Any) -> Manifest:
    """Return a manifest of one column, one chain and the input `x`."""
    value = {
        "schema_version": 2,
        "name": "tiny",
        "version": "1",
        "format": "pt2",
        "file": "model.pt2",
        "sha256": "0" * 64,
        "columns": {column: raw},
        "inputs": [{"name": "x", "from": [[{"column": column}, *links]]}],
        "outputs": [{"name": "y"}],
    }
    return parse_manifest(json.dumps(value | changes))


def test_refusals_of_an_operand_keep_the_name_of_its_column() -> None:
    columns = {
        "x": read("float64", "1", "a", "3").of("x"),
        "y": read("float64", "1", "2", "b").of("y"),
    }
    cells = run(columns, Add("y"))
    assert [(r.column, r.rows.tolist()) for r in cells.refused] == [("x", [1]), ("y", [2])]
    assert seen(cells) == [2.0, ("wrong_type",), ("wrong_type",)]


def test_null_is_the_fault_of_the_column_that_is_null() -> None:
    links = {"step": "divide", "other": "limit"}
    manifest = tiny("amount", "float64", links, columns={"amount": "float64", "limit": "float64"})
    rows = [
        {"amount": 1, "limit": None},
        {"amount": None, "limit": 1},
        {"amount": None, "limit": 0},
    ]
    _, refused = Preparation(manifest, Context()).tensors(rows)
    assert [(r.reason, r.column, r.rows.tolist()) for r in refused] == [
        ("null", "amount", [1, 2]),
        ("null", "limit", [0]),
    ]


def test_a_division_by_zero_is_refused_or_has_a_value() -> None:
    columns = {"x": numbers(1, 0, None, 4), "y": numbers(0, -0.0, 0, 2)}
    assert seen(run(columns, Divide("y"))) == [("out_of_range",), ("out_of_range",), None, 2.0]
    assert seen(run(columns, Divide("y", by_zero=-1.0))) == [-1.0, -1.0, None, 2.0]


def test_fill_also_fills_what_arithmetic_could_not_compute() -> None:
    columns = {"x": numbers(1, None), "y": numbers(None, 2)}
    assert seen(run(columns, Add("y"), Fill(7.0))) == [7.0, 7.0]


def test_a_cell_that_was_refused_is_not_refused_by_a_later_step() -> None:
    cells = run({"x": read("float64", "a", "-5", "1")}, Log1p(), Clip(min=0.5))
    assert seen(cells) == [("wrong_type",), ("out_of_range",), np.log1p(1.0)]


def test_lists_that_are_refused_do_not_shift_others() -> None:
    lists = pa.array([[1, 2, 3, 4], [5], None, [6, None], [7, 8], [9, 9, 9]], pa.list_(pa.int64()))
    cells = run({"x": Cells(lists)}, Pad(2))
    assert seen(cells) == [("too_long",), [5, 0], None, ("null",), [7, 8], ("too_long",)]


def test_an_unknown_item_refuses_its_list_only() -> None:
    lists = pa.array([["web", "fax", "fax"], [], ["shop"], None], pa.list_(pa.string()))
    assert seen(run({"x": Cells(lists)}, Vocabulary("kinds.txt"))) == [
        ("unknown_value",),
        [],
        [0],
        None,
    ]


def test_a_dictionary_gives_what_its_texts_give() -> None:
    texts = Cells(pa.array(["web", None, "fax", "web", "shop"]))
    indices, values = pa.array([0, None, 1, 0, 2], pa.int8()), ["web", "fax", "shop", "unused"]
    encoded = Cells(pa.DictionaryArray.from_arrays(indices, pa.array(values)))
    for cells in (texts, encoded):
        found = run({"x": cells}, Vocabulary("kinds.txt"))
        assert seen(found) == [1, None, ("unknown_value",), 1, 0]
        assert [refused.rows.tolist() for refused in found.refused] == [[2]]
        filled = run({"x": cells}, Fill("phone"), Vocabulary("kinds.txt"))
        assert seen(filled) == [1, 2, ("unknown_value",), 1, 0]


def test_a_long_list_gives_the_same_positions_in_batches_of_any_size() -> None:
    context = Context({"ids.txt": "".join(f"id{n}\n" for n in range(1000)).encode()})
    bound = Chain("x", (Vocabulary("ids.txt", unknown=-1),)).bind(context)
    texts = [f"id{n}" for n in range(990, 1010)] * 20
    whole = bound.run({"x": Cells(pa.array(texts))}).values.to_pylist()
    parts = [bound.run({"x": Cells(pa.array(texts[i : i + 7]))}) for i in range(0, len(texts), 7)]
    assert [v for part in parts for v in part.values.to_pylist()] == whole
    assert whole[:12] == [*range(990, 1000), -1, -1]


def test_text_of_a_megabyte_is_a_category_as_any_other() -> None:
    text = "ä" * 500_000
    cells = Cells(pa.array([text, "web"]))
    assert seen(run({"x": cells}, Vocabulary("kinds.txt"))) == [("unknown_value",), 1]
    assert seen(run({"x": cells}, Vocabulary(values=(text, "web")))) == [0, 1]


@pytest.mark.parametrize(
    ("clock", "wanted"),
    [
        # Clocks show 2:00 to 3:00 twice; the first time, which is summer time, is meant.
        ("2026-10-25 01:59:59", "2026-10-24 23:59:59"),
        ("2026-10-25 02:30:00", "2026-10-25 00:30:00"),
        ("2026-10-25 03:00:00", "2026-10-25 02:00:00"),
        # They never show 2:00 to 3:00, which counts as 3:00 to 4:00.
        ("2026-03-29 01:59:59", "2026-03-29 00:59:59"),
        ("2026-03-29 02:30:00", "2026-03-29 01:30:00"),
        ("2026-03-29 03:30:00", "2026-03-29 01:30:00"),
        ("2060-07-01 12:00:00", "2060-07-01 10:00:00"),
    ],
)
def test_a_time_of_clocks_that_were_changed(clock: str, wanted: str) -> None:
    cells = run({"x": read("datetime", clock)}, AssumeZone("Europe/Berlin"))
    assert cells.values.to_pylist() == [dt.datetime.fromisoformat(f"{wanted}+00:00")]


@settings(deadline=None, max_examples=examples(100))
@given(
    change=st.sampled_from(
        ["2026-03-29T01:00:00Z", "2026-10-25T01:00:00Z", "2061-03-27T01:00:00Z"]
    ),
    seconds=st.lists(st.integers(-7200, 7200), max_size=4),
)
def test_the_hour_is_that_of_clocks_around_a_change(change: str, seconds: list[int]) -> None:
    moment = dt.datetime.fromisoformat(change)
    times = [moment + dt.timedelta(seconds=some) for some in seconds]
    array = pa.array(times, pa.timestamp("us", "UTC"))
    cells = run({"x": Cells(array)}, TimePart("hour", "Europe/Berlin"))
    assert cells.values.to_pylist() == [time.astimezone(BERLIN).hour for time in times]


def test_the_last_hours_of_the_year_9999_have_a_next_day() -> None:
    time = pa.array(["9999-12-31T23:30:00Z"]).cast(pa.timestamp("us", "UTC"))
    parts = [TimePart(part, "Asia/Tokyo").apply(Cells(time)) for part in ("hour", "day", "year")]
    assert [cells.values.to_pylist() for cells in parts] == [[8], [1], [10_000]]


def test_softmax_of_logits_below_all_floats_is_zero_and_of_infinity_is_refused() -> None:
    vectors = pa.array(
        [[0.0, -np.inf], [np.inf, 0.0], [-np.inf, -np.inf]], pa.list_(pa.float32(), 2)
    )
    cells = run({"x": Cells(vectors)}, Softmax())
    assert seen(cells) == [[1.0, 0.0], ("not_finite_score",), ("not_finite_score",)]


def test_the_largest_of_equal_and_unsigned_numbers_are_in_order() -> None:
    vectors = pa.array([[3, 250, 3, 0]], pa.list_(pa.uint8(), 4))
    cells = run({"x": Cells(vectors)}, TopK(values=("a", "b", "c", "d"), k=4))
    assert [one["name"] for one in cells.values.to_pylist()[0]] == ["b", "a", "c", "d"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "file k.txt: expected a value in each line, got an empty file"),
        (b"a\n\nb\n", "file k.txt: expected a value in each line, got none in line 2"),
        (b"a\nb\na\n", "file k.txt: expected each value once, got 'a' as value 1 and as value 3"),
        (b"a\n\xff\n", "file k.txt: expected UTF-8, got other bytes at 2: save it as UTF-8"),
        ("a\n".encode("utf-16"), "file k.txt: expected UTF-8"),
    ],
)
def test_a_bad_list_is_refused_in_one_line(content: bytes, message: str) -> None:
    manifest = tiny(
        "kind",
        "string",
        {"step": "vocabulary", "file": "k.txt"},
        files={"k.txt": "0" * 64},
        inputs=[
            {
                "name": "x",
                "dtype": "int64",
                "from": [[{"column": "kind"}, {"step": "vocabulary", "file": "k.txt"}]],
            }
        ],
    )
    with pytest.raises(ManifestError) as caught:
        Preparation(manifest, Context({"k.txt": content}))
    assert str(caught.value).startswith(message)
    assert len(str(caught.value).splitlines()) == 1


def test_a_list_may_end_in_any_way_and_start_with_a_byte_order_mark() -> None:
    for content in (b"a\nb\n", b"a\nb", b"a\r\nb\r\n", b"\xef\xbb\xbfa\nb\n"):
        assert read_list("k.txt", {"k.txt": content}) == ["a", "b"]


def raw_preparation() -> tuple[Manifest, Preparation]:
    """Return the manifest of raw_model.py and its steps."""
    manifest = parse_manifest(
        json.dumps(MANIFEST | {"sha256": "0" * 64, "files": {"kinds.txt": "0" * 64}})
    )
    return manifest, Preparation(manifest, CONTEXT)


def as_batch(rows: list[dict[str, Any]]) -> pa.RecordBatch:
    """Return rows as a file has them: amounts as text, kinds as a dictionary."""
    text = [None if r["amount"] is None else json.dumps(r["amount"]).strip('"') for r in rows]
    columns = {
        "amount": pa.array(text, pa.string()),
        "limit": pa.array([row["limit"] for row in rows], pa.float32()),
        "kind": pa.array([row["kind"] for row in rows], pa.string()).dictionary_encode(),
        "at": pa.array([row["at"] for row in rows], pa.large_string()),
        "clicks": pa.array([row["clicks"] for row in rows], pa.large_list(pa.int32())),
    }
    return source_batch(
        pa.array([row["id"] for row in rows], pa.string()), pa.record_batch(columns)
    )


@settings(deadline=None, max_examples=examples(50))
@given(chosen=st.lists(st.sampled_from(ROWS), max_size=40), data=st.data())
def test_a_batch_and_its_slices_have_the_same_tensors_and_dead_letters(
    chosen: list[dict[str, Any]], data: st.DataObject
) -> None:
    manifest, preparation = raw_preparation()
    start, stop = sorted(data.draw(st.tuples(*[st.integers(0, len(chosen))] * 2)))
    whole = as_batch(chosen)
    of_json, refused = preparation.tensors([ROWS[number] for number in GOOD])
    assert not refused
    place = {ROWS[number]["id"]: i for i, number in enumerate(GOOD)}
    for batch, rows in ((whole, chosen), (whole.slice(start, stop - start), chosen[start:stop])):
        good, bad, faults = validate(batch, manifest, None, preparation)
        ids = [row["id"] for row in rows]
        assert good.column(ROW_ID).to_pylist() == [one for one in ids if one in place]
        assert bad.column(ROW_ID).to_pylist() == [one for one in ids if one in FAULTS]
        assert [(f.reason, f.column) for f in faults] == [
            FAULTS[one] for one in ids if one in FAULTS
        ]
        places = [place[one] for one in ids if one in place]
        for spec, tensor in zip(manifest.inputs, of_json, strict=True):
            column = struct_columns(good, INPUTS)[spec.name]
            assert column.to_pylist() == tensor[places].tolist()
