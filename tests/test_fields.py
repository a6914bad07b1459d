"""Labels, decisions and best classes in every sink, and thresholds that a run overrides."""

import csv
import io
import json
import math
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from apache_beam.testing.util import assert_that, equal_to
from command_line import Result, RunCommand, assert_one_line_error
from google.cloud.bigquery import SchemaField
from hypothesis import given
from hypothesis import strategies as st
from pubsub_mailbox import Mailbox
from raw_model import GOOD, ROWS, batch_flags, write_raw_package

from common.command_line import parse_thresholds
from common.errors import UsageError
from examples.local_cloud import PROJECT, LocalCloud
from model_handlers.manifests.manifest import Manifest
from model_handlers.manifests.thresholds import thresholds_flag, thresholds_of, with_thresholds
from model_handlers.package import read_manifest
from model_handlers.packaged_steps import PackagedSteps
from model_handlers.steps.step import vectors
from pipelines.batch.report_text import decision_facts
from pipelines.batch_local import COMMAND
from pipelines.dataflow.facts import JobFacts, read_facts
from pipelines.options.lists import split_list
from pipelines.replay.command import COMMAND as REPLAY
from pipelines.stream_local import COMMAND as STREAM
from transforms.bigquery.append import conform_to_table
from transforms.bigquery.schema import arrow_schema, table_fields
from transforms.decisions import SHOWN_VALUES, count_decisions, report_decisions
from transforms.encode import output_schema
from transforms.files.sink.writers import OutputFormat, open_writer
from transforms.messages.publish import row_messages
from transforms.output_fields import choose_fields
from transforms.provenance import Provenance
from transforms.results import open_result
from transforms.row_schemas import default_schema
from transforms.rows import RecordBatchesToRows

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
BEST = pa.list_(pa.struct([("name", pa.string()), ("value", pa.float64())]))
TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\r\0"), max_size=5)
NUMBER = st.floats(-1e9, 1e9)
ENTRY = st.fixed_dictionaries({"name": TEXT, "value": NUMBER})
FIELDS: dict[str, tuple[pa.DataType, st.SearchStrategy[Any]]] = {
    "label": (pa.string(), st.none() | TEXT),
    "position": (pa.int64(), st.none() | st.integers(-(2**53), 2**53)),
    "flag": (pa.bool_(), st.none() | st.booleans()),
    "shares": (pa.list_(pa.float64(), 2), st.lists(NUMBER, min_size=2, max_size=2)),
    "best": (BEST, st.lists(ENTRY, max_size=2)),
}


@st.composite
def batches(draw: st.DrawFn) -> pa.RecordBatch:
    """Draw output rows with a field of every type."""
    count = draw(st.integers(1, 5))
    rows = {
        name: pa.array(draw(st.lists(values, min_size=count, max_size=count)), kind)
        for name, (kind, values) in FIELDS.items()
    }
    return pa.record_batch({"row_id": pa.array([f"r{i}" for i in range(count)])} | rows)


def written(rows: pa.RecordBatch, output_format: OutputFormat) -> bytes:
    handle = io.BytesIO()
    writer = open_writer(handle, rows.schema, output_format)
    writer.write(rows)
    writer.close()
    return handle.getvalue()


@given(batches())
def test_fields_of_every_type_survive_every_file_and_message(rows: pa.RecordBatch) -> None:
    expected = rows.to_pylist()
    assert pq.read_table(io.BytesIO(written(rows, "parquet"))).to_pylist() == expected
    assert list(map(json.loads, written(rows, "jsonl").splitlines())) == expected
    # A message lacks what is null.
    present = [{name: v for name, v in row.items() if v is not None} for row in expected]
    assert [json.loads(message.data) for message in row_messages(rows)] == present
    text = io.StringIO(written(rows, "csv").decode(), newline="")
    lines = [dict(zip(*pair, strict=True)) for pair in _lines(text)]
    for line, row in zip(lines, expected, strict=True):
        assert line["label"] == (row["label"] or "")
        assert line["position"] == ("" if row["position"] is None else str(row["position"]))
        assert line["flag"] == ("" if row["flag"] is None else str(row["flag"]).lower())
        assert [float(line[f"shares_{i}"]) for i in range(2)] == row["shares"]
        assert json.loads(line["best"]) == row["best"]


def _lines(text: io.StringIO) -> list[tuple[list[str], list[str]]]:
    header, *lines = csv.reader(text)
    return [(header, line) for line in lines]


@given(batches())
def test_fields_of_every_type_fit_a_table(rows: pa.RecordBatch) -> None:
    fields = table_fields(rows.schema)
    assert fields[1:] == [
        SchemaField("label", "STRING", "NULLABLE"),
        SchemaField("position", "INTEGER", "NULLABLE"),
        SchemaField("flag", "BOOLEAN", "NULLABLE"),
        SchemaField("shares", "FLOAT", "REPEATED"),
        SchemaField(
            "best",
            "RECORD",
            "REPEATED",
            fields=[
                SchemaField("name", "STRING", "NULLABLE"),
                SchemaField("value", "FLOAT", "NULLABLE"),
            ],
        ),
    ]
    assert conform_to_table(rows, arrow_schema(fields)).to_pylist() == rows.to_pylist()


def test_fields_become_dicts_of_plain_values() -> None:
    rows = {"label": ["a", None], "best": pa.array([[{"name": "a", "value": 0.5}], []], BEST)}
    with beam.Pipeline("FnApiRunner") as pipeline:
        found = pipeline | beam.Create([pa.record_batch(rows)]) | RecordBatchesToRows()
        assert_that(
            found,
            equal_to(
                [
                    {"label": "a", "best": [{"name": "a", "value": 0.5}]},
                    {"label": None, "best": []},
                ]
            ),
        )


# Runs


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("raw") / "package"
    write_raw_package(folder)
    return folder


@pytest.fixture(scope="module")
def manifest(package: Path) -> Manifest:
    return read_manifest(str(package))


@pytest.fixture
def run(package: Path, tmp_path: Path, run_command: RunCommand) -> Callable[..., Result]:
    """A function that runs batch_local: flags -> (exit code, standard output, standard error)."""
    source = tmp_path / "rows.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in ROWS))

    def call(**flags: Any) -> Result:
        own = batch_flags(package, tmp_path) | {"input_files": source}
        return run_command(COMMAND, own | flags)

    return call


def result(folder: Path, run_id: str = "r") -> dict[str, dict[str, Any]]:
    rows = open_result(str(folder / "out" / run_id)).to_table().to_pylist()
    return {row["row_id"]: row for row in rows}


def report(folder: Path, run_id: str = "r") -> dict[str, Any]:
    text = (folder / "out" / run_id / "report.json").read_text()
    found: dict[str, Any] = json.loads(text)
    return found


def decision_of(score: float, at: tuple[float, float]) -> str:
    return "manual" if score < at[0] else "check" if score < at[1] else "auto"


@pytest.mark.parametrize("output_format", ["parquet", "jsonl", "csv"])
@pytest.mark.exhaustive
@pytest.mark.slow
def test_a_result_has_the_same_fields_in_every_format(
    run: Any, tmp_path: Path, output_format: str
) -> None:
    code, out, err = run(
        output_format=output_format, output_fields="label,decision,best,probability,kind"
    )
    assert (code, err) == (0, ""), err
    found = result(tmp_path)
    assert sorted(found) == [ROWS[i]["id"] for i in GOOD]
    for row in found.values():
        best = json.loads(row["best"]) if output_format == "csv" else row["best"]
        assert [set(entry) for entry in best] == [{"name", "value"}] * 2
        assert best[0] == {"name": row["label"], "value": pytest.approx(row["probability"])}
        assert row["decision"] == decision_of(row["score"], (0.4, 0.6))
    counted: dict[str, int] = {}
    for row in found.values():
        counted[row["label"]] = counted.get(row["label"], 0) + 1
    facts = report(tmp_path)
    assert facts["decisions"]["label"] == {"rows": counted, "others": 0}
    assert facts["thresholds"] == {"decision": {"at": [0.4, 0.6], "packaged": [0.4, 0.6]}}
    assert "decisions     label: " in out
    assert "thresholds" not in out


@pytest.mark.slow
def test_thresholds_of_a_run_decide_and_are_reported(run: Any, tmp_path: Path) -> None:
    assert run()[0] == 0
    before = result(tmp_path)
    middle = sorted(row["score"] for row in before.values())[1]
    at = (0.01, middle + 1e-6)
    code, out, err = run(thresholds=f"decision={at[0]},{at[1]}", run_id="other")
    assert (code, err) == (0, "")
    after = result(tmp_path, "other")
    assert {i: row["score"] for i, row in after.items()} == {
        i: row["score"] for i, row in before.items()
    }
    decisions = {i: row["decision"] for i, row in after.items()}
    assert decisions == {i: decision_of(row["score"], at) for i, row in after.items()}
    assert decisions != {i: row["decision"] for i, row in before.items()}
    facts = report(tmp_path, "other")
    assert facts["thresholds"] == {"decision": {"at": list(at), "packaged": [0.4, 0.6]}}
    assert facts["decisions"]["decision"]["rows"] == {"check": 2, "auto": 1}
    assert f"decision: 0.01, {at[1]:g}, in place of 0.4, 0.6 in the package" in out
    assert "decision: check 2 (66.7%), auto 1 (33.3%)" in out


@pytest.mark.slow
def test_a_replay_decides_with_other_thresholds(
    run: Any, package: Path, tmp_path: Path, run_command: RunCommand
) -> None:
    # The rows of the known faults are replayed with a package that fills what is not known.
    assert run()[0] == 0
    letters = tmp_path / "out/r/dead_letters"
    flags = {
        "input_files": letters,
        "model": package,
        "output_files": tmp_path / "replayed",
        "thresholds": "decision=0.1,0.2",
        "max_dead_letter_share": 1.0,
    }
    run_command(REPLAY, flags)
    (path,) = (tmp_path / "replayed").glob("*/report.json")
    facts = json.loads(path.read_text())
    assert facts["thresholds"] == {"decision": {"at": [0.1, 0.2], "packaged": [0.4, 0.6]}}
    assert facts["decisions"]["decision"] == {"rows": {}, "others": 0}


@pytest.mark.parametrize(
    ("flags", "parts"),
    [
        ({"thresholds": "dcision=0.1,0.2"}, ["no field 'dcision' with thresholds", "'decision'?"]),
        ({"thresholds": "label=0.1"}, ["no field 'label' with thresholds", "are decision"]),
        (
            {"thresholds": "decision=0.1"},
            ["--thresholds decision: expected 2 numbers, as in the package (0.4, 0.6), got 1"],
        ),
        ({"thresholds": "decision=0.2,0.1"}, ["in ascending order, got 0.2, 0.1"]),
        ({"thresholds": "decision=0.2,0.2"}, ["in ascending order, got 0.2, 0.2"]),
        ({"thresholds": "decision=low,0.1"}, ["--thresholds decision: expected a number, got"]),
        ({"thresholds": "decision=nan,0.1"}, ["--thresholds decision: expected a number, got"]),
        ({"thresholds": "0.1,0.2"}, ["expected FIELD=NUMBER,NUMBER,..., got '0.1'"]),
        (
            {"thresholds": "decision=0.1,0.2", "output_fields": "label"},
            ["--thresholds decision has no effect", "add it to --output_fields"],
        ),
        (
            {"output_fields": "labels"},
            [
                "none of the first 7 rows of the input has 'labels'",
                "(did you mean 'label' or 'best'?)",
            ],
        ),
        ({"output_fields": "score"}, ["outputs and fields logits, probabilities, label"]),
        (
            {"score_output": "label"},
            ["field 'label' has type string", "choose --score_output from probability"],
        ),
        ({"score_output": "nothing"}, ["no output or field 'nothing'", "outputs and fields are"]),
    ],
    ids=str,
)
def test_wrong_fields_and_thresholds_end_in_one_line(
    run: Any, flags: dict[str, str], parts: list[str]
) -> None:
    assert_one_line_error(run(**flags), 2, *parts)


@pytest.mark.slow
def test_a_score_may_be_a_position(run: Any, tmp_path: Path, package: Path) -> None:
    changed = tmp_path / "changed"
    position = {
        "name": "position",
        "from": [{"output": "logits"}, {"step": "argmax"}],
    }
    write_raw_package(changed, fields=[position], score_output=None, output_fields=["position"])
    assert run(model=changed, score_output="position")[0] == 0
    assert {row["score"] for row in result(tmp_path).values()} <= {0, 1, 2}
    assert "decisions" not in report(tmp_path)
    assert_one_line_error(
        run(model=changed, thresholds="position=0.5"), 2, "no field with the step cut"
    )


@pytest.mark.slow
def test_a_field_that_is_not_written_does_not_cost_a_row(run: Any, tmp_path: Path) -> None:
    changed = tmp_path / "changed"
    fields = [
        {"name": "probabilities", "from": [{"output": "logits"}, {"step": "softmax"}]},
        {"name": "probability", "from": [{"field": "probabilities"}, {"step": "max"}]},
        {
            "name": "wrong",
            "from": [
                {"field": "probabilities"},
                {"step": "argmax"},
                {"step": "scale", "mean": -7.0, "std": 1.0},
                {"step": "names", "values": ["a", "b"]},
            ],
        },
    ]
    write_raw_package(changed, fields=fields, output_fields=["probability"])
    assert run(model=changed)[0] == 0
    assert len(result(tmp_path)) == len(GOOD)
    code, _, err = run(model=changed, output_fields="wrong", run_id="with")
    assert code == 1
    assert "no row" in err or "dead letters" in err
    files = (tmp_path / "out/with/dead_letters").glob("*.jsonl")
    letters = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    of_field = [one for one in letters if one["stage"] == "infer"]
    assert [one["reason"] for one in of_field] == ["out_of_range"] * len(GOOD)
    assert {json.loads(one["attributes"])["column"] for one in of_field} == {"wrong"}
    assert {one["message"].partition(":")[0] for one in of_field} == {"field wrong"}


def test_a_field_is_finite_unless_an_output_is_not(run: Any, tmp_path: Path) -> None:
    package = tmp_path / "changed"
    twice = [{"step": "multiply", "other": 1e300}] * 2
    fields = [
        {"name": "first", "from": [{"output": "logits"}, {"step": "element", "at": 0}]},
        {"name": "large", "from": [{"field": "first"}, *twice]},
        {"name": "again", "from": [{"field": "large"}, {"step": "subtract", "other": "large"}]},
    ]
    manifest = write_raw_package(
        package, fields=fields, score_output="first", output_fields=["first"]
    )
    preparation = PackagedSteps(manifest, str(package)).load()
    width = manifest.output("logits").shape[0]
    logits = np.ones((4, width), np.float32)
    logits[1], logits[2], logits[3] = 0, np.inf, np.nan
    outputs = {"logits": vectors(logits)}
    found, refused = preparation.derive(outputs)
    assert found["first"].to_pylist()[:3] == [1.0, 0.0, math.inf]
    assert found["large"].to_pylist()[:3] == [None, 0.0, math.inf]
    assert {name: pc.is_nan(found[name])[3].as_py() for name in found} == dict.fromkeys(found, True)
    faults = {(one.column, one.reason, *one.rows.tolist()) for one in refused}
    assert faults == {("large", "not_finite", 0), ("again", "not_finite", 0)}


# Tables


def test_the_table_that_setup_creates_holds_what_a_run_writes(manifest: Manifest) -> None:
    fields = choose_fields(manifest)
    rows = output_schema(fields, manifest, Provenance.of(manifest), pa.schema([]))
    assert table_fields(default_schema(manifest)) == table_fields(rows)
    assert [f.field_type for f in table_fields(default_schema(manifest))][:5] == [
        "STRING",
        "FLOAT",
        "STRING",
        "STRING",
        "RECORD",
    ]


def test_a_table_has_labels_decisions_and_best_classes(
    run: Any,
    emulators: LocalCloud,
    dataset: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in emulators.environment.items():
        monkeypatch.setenv(name, value)
    code, _, err = run(
        output_table=f"{dataset}.scores",
        temp_location="gs://bucket/tmp",
        billing_project=PROJECT,
        output_fields="label,decision,best,probabilities",
    )
    assert (code, err) == (0, "")
    client = emulators.cloud.bigquery()
    table = client.get_table(f"{dataset}.scores")
    kinds = {f.name: (f.field_type, f.mode) for f in table.schema}
    assert kinds["label"] == kinds["decision"] == ("STRING", "NULLABLE")
    assert kinds["best"] == ("RECORD", "REPEATED")
    rows = client.query(f"SELECT * FROM `{dataset}.scores`").result()
    found = {row["row_id"]: dict(row) for row in rows}
    for row_id, expected in result(tmp_path).items():
        for name in ("label", "decision", "best", "probabilities"):
            assert found[row_id][name] == expected[name]


# Streams


def test_a_stream_writes_fields_to_every_sink_and_counts_its_decisions(
    stream_emulators: LocalCloud,
    package: Path,
    tmp_path: Path,
    run_command: RunCommand,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in stream_emulators.environment.items():
        monkeypatch.setenv(name, value)
    cloud, own = stream_emulators.cloud, uuid.uuid4().hex[:12]
    boxes = [Mailbox(cloud, f"{kind}-{own}").create() for kind in ("in", "out", "dead")]
    source, output, letters = boxes
    source.publish([json.dumps(row).encode() for row in ROWS])
    table = f"{cloud.project}.streams.t{own}"
    code, out, err = run_command(
        STREAM,
        {
            "input_subscription": source.subscription,
            "model": package,
            "id_column": "id",
            "output_topic": output.topic,
            "output_table": table,
            "output_files": tmp_path / "files",
            "file_seconds": 2,
            "dead_letter_topic": letters.topic,
            "thresholds": "decision=0.001,0.002",
            "stop_after_seconds": 2,
            "retry_seconds": 20,
        },
    )
    assert (code, out) == (0, ""), err
    messages = [json.loads(message.data) for message in output.take(len(GOOD))]
    found = {row["row_id"]: row for row in messages}
    assert sorted(found) == [ROWS[i]["id"] for i in GOOD]
    rows = [dict(row) for row in cloud.bigquery().query(f"SELECT * FROM `{table}`").result()]
    files = (tmp_path / "files" / "scores").glob("*/*.parquet")
    rows += [row for path in files for row in pq.read_table(path).to_pylist()]
    assert len(rows) == 2 * len(GOOD)
    for row in rows:
        assert row["decision"] == "auto"
        for name in ("label", "decision", "best"):
            assert row[name] == found[row["row_id"]][name]
    assert len(letters.take(len(ROWS) - len(GOOD))) == len(ROWS) - len(GOOD)
    assert "decisions     decision: auto 3 (100.0%)" in err


def test_a_job_carries_its_thresholds(provenance: Provenance) -> None:
    facts = JobFacts.of(provenance, thresholds=thresholds_flag({"decision": (0.5, 0.25)}))
    options = facts.options()
    assert options["millrace_thresholds"] == "decision=0.5,0.25"
    assert read_facts(options) == facts


# Thresholds


@given(
    st.dictionaries(
        st.text("abc_=", min_size=1, max_size=4),
        st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=3),
        max_size=3,
    )
)
def test_thresholds_are_read_as_they_are_written(given: dict[str, list[float]]) -> None:
    thresholds = {name: tuple(at) for name, at in given.items()}
    words = (thresholds_flag(thresholds) or "").split()
    assert parse_thresholds(split_list(words)) == thresholds
    # The console passes one text.
    assert parse_thresholds(split_list([",".join(words)])) == thresholds


def test_a_field_has_thresholds_once() -> None:
    with pytest.raises(UsageError, match="names the field 'a' twice"):
        parse_thresholds(["a=1", "b=2", "a=3"])


@given(st.lists(st.floats(-1e9, 1e9), min_size=2, max_size=2, unique=True).map(sorted))
def test_other_thresholds_change_nothing_else(manifest: Manifest, at: list[float]) -> None:
    changed = with_thresholds(manifest, {"decision": tuple(at)})
    assert thresholds_of(changed) == {"decision": tuple(at)}
    assert with_thresholds(changed, thresholds_of(manifest)) == manifest
    assert with_thresholds(manifest, {}) is manifest


# Decisions


@given(st.lists(st.lists(st.none() | st.text("abcdefg", max_size=2), max_size=30), max_size=4))
def test_decisions_are_counted_over_batches(parts: list[list[str | None]]) -> None:
    sums: dict[tuple[str, ...], int] = {}
    for part in parts:
        rows = pa.record_batch({"label": pa.array(part, pa.string())})
        for key, n in count_decisions(rows, ("label",)):
            sums[key] = sums.get(key, 0) + n
    found = report_decisions(sums, ("label",))["label"]
    values = [value for part in parts for value in part]
    assert sum(found["rows"].values()) + found["others"] == len(values)
    assert len(found["rows"]) == min(SHOWN_VALUES, len({*values} - {None}))
    assert all(values.count(value) == n for value, n in found["rows"].items())
    least = min(found["rows"].values(), default=0)
    assert all(values.count(v) <= least for v in {*values} - {None} - found["rows"].keys())


def test_decisions_are_shown_with_their_shares() -> None:
    decisions = {
        "d": {"rows": {"a": 1500, "b": 400}, "others": 100},
        "e": {"rows": {}, "others": 0},
    }
    assert decision_facts(decisions) == [
        ("decisions", "d: a 1,500 (75.0%), b 400 (20.0%), others 100 (5.0%)"),
        ("decisions", "e: no rows"),
    ]


def test_a_misspelt_field_is_found_among_typed_columns(run: Any, tmp_path: Path) -> None:
    pq.write_table(pa.table({"id": ["a"], "amount": [1.0]}), tmp_path / "rows.parquet")
    assert_one_line_error(
        run(input_files=tmp_path / "rows.parquet", output_fields="labels"),
        2,
        "'labels' is neither an output nor a field of model raw nor a column of the source",
        "did you mean 'label' or 'best'?",
    )
