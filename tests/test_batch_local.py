"""batch_local as a user runs it: real files, in-process Beam, the exit code and the output."""

import hashlib
import json
import os
import pickle
import re
import signal
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest
import torch
from command_line import Result, RunCommand, assert_one_line_error
from same_scores import assert_scores
from waiting import wait_for_staged

from cloud.endpoints import VARIABLES
from examples.transactions.data import FEATURES, generate
from model_handlers.read_package import MAR_MANIFEST
from pipelines.batch.in_process import quiet_workers
from pipelines.batch_local import COMMAND
from transforms.encode import output_schema
from transforms.files.sink.stage import StagedWriter
from transforms.files.sink.writers import open_writer

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
ROWS = 2_000  # in the fixture `example`


@pytest.fixture
def run(example: Path, tmp_path: Path, run_command: RunCommand) -> Callable[..., Result]:
    """A function that runs batch_local: flags -> (exit code, standard output, standard error)."""

    def call(**flags: Any) -> Result:
        own = {
            "input_files": example / "transactions.parquet",
            "model": example / "model",
            "output_files": tmp_path / "out",
            "run_id": "r",
            "direct_num_workers": 1,
        }
        return run_command(COMMAND, own | flags)

    return call


def scores(folder: Path, run_id: str = "r") -> pa.Table:
    return pq.read_table(folder / run_id / "scores")


def dead_letters(folder: Path, run_id: str = "r") -> list[dict[str, Any]]:
    files = sorted((folder / run_id / "dead_letters").glob("*.jsonl"))
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]


def nothing_written(folder: Path) -> None:
    assert not list(folder.rglob("*"))


def test_every_row_is_scored_or_dead_lettered_once(run: Any, example: Path, tmp_path: Path) -> None:
    code, out, err = run(id_column="transaction_id", direct_num_workers=2)
    assert (code, err) == (0, "")
    table, letters = scores(tmp_path / "out"), dead_letters(tmp_path / "out")
    ids = table["row_id"].to_pylist() + [letter["row_id"] for letter in letters]
    source = pq.read_table(example / "transactions.parquet")["transaction_id"].to_pylist()
    assert sorted(ids) == sorted(source)
    assert len(letters) == ROWS // 100
    assert {letter["reason"] for letter in letters} == {"null", "not_finite"}
    report = json.loads((tmp_path / "out/r/report.json").read_text())
    assert report["balanced"]
    assert report["rows_in"] == ROWS == report["rows_scored"] + report["rows_dead_lettered"]
    assert report["rows_scored"] == table.num_rows
    assert report["rows_written"] == {"scores": table.num_rows, "dead_letters": len(letters)}
    assert report["output"] == [str(tmp_path / "out/r/scores")]
    assert report["dead_letter_output"] == [str(tmp_path / "out/r/dead_letters")]
    assert f"{ROWS:,}" in out


def test_scores_are_those_of_the_model_and_name_the_model_and_the_run(
    run: Any, example: Path, tmp_path: Path
) -> None:
    run(id_column="transaction_id", output_fields="encoded,normalized_MAE,Amount,Class")
    table = scores(tmp_path / "out")
    source = {
        row["transaction_id"]: row
        for row in pq.read_table(example / "transactions.parquet").to_pylist()
    }
    rows = np.array(
        [[source[i][name] for name in FEATURES] for i in table["row_id"].to_pylist()], np.float32
    )
    with torch.inference_mode():
        expected = torch.jit.load(example / "model" / "model.pt")(torch.from_numpy(rows))
    assert_scores(table["score"], expected["denormalized_MAE"])
    assert_scores(table["normalized_MAE"], expected["normalized_MAE"])
    assert_scores(np.stack(table["encoded"].to_numpy()), expected["encoded"])
    assert table["Amount"].to_pylist() == [source[i]["Amount"] for i in table["row_id"].to_pylist()]
    manifest = json.loads((example / "model/model.json").read_text())
    for name, value in (
        ("model_name", manifest["name"]),
        ("model_version", manifest["version"]),
        ("model_digest", manifest["sha256"]),
        ("run_id", "r"),
    ):
        assert set(table[name].to_pylist()) == {value}
    assert table["scored_at"].null_count == 0


def test_dead_letters_are_written_while_rows_are_scored(
    run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Otherwise the runner would hold all dead letters of the run in memory.
    written: list[str] = []
    write = StagedWriter.write

    def noted(writer: StagedWriter, batch: pa.RecordBatch) -> None:
        written.append(writer._destination.name)
        write(writer, batch)

    monkeypatch.setattr(StagedWriter, "write", noted)
    code, _, err = run(batch_rows=100, direct_num_workers=1)
    assert code == 0, err
    last = len(written) - 1 - written[::-1].index("scores")
    early = written[:last].count("dead_letters")
    assert early >= written.count("dead_letters") - 1 > 1


@pytest.mark.slow
def test_too_few_rows_fail_the_run_and_its_output_stays(run: Any, tmp_path: Path) -> None:
    code, _, err = run(min_rows=ROWS + 1)
    assert code == 1
    assert f"{ROWS:,} rows were read from" in err
    assert f"fewer than --min_rows {ROWS + 1:,}" in err
    report = json.loads((tmp_path / "out/r/report.json").read_text())
    assert (report["min_rows"], report["too_few_rows"]) == (ROWS + 1, True)
    assert scores(tmp_path / "out").num_rows == report["rows_scored"]
    assert run(min_rows=ROWS)[0] == 0


@pytest.mark.slow
def test_a_path_with_a_comma_is_read_in_quotes_and_an_error_says_so(
    run: Any, example: Path, tmp_path: Path
) -> None:
    path = tmp_path / "a,b.parquet"
    path.write_bytes((example / "transactions.parquet").read_bytes())
    result = run(input_files=path)
    assert_one_line_error(result, 1, "--input_files was split at commas: put a value that contains")
    assert run(input_files=f'"{path}" ')[0] == 0
    assert json.loads((tmp_path / "out/r/report.json").read_text())["rows_in"] == ROWS


@pytest.mark.slow
def test_the_three_packages_produce_equal_scores(run: Any, example: Path, tmp_path: Path) -> None:
    results = {}
    for name in ("model", "model_pt2", "pytorch_autoencoder.mar"):
        fields = "normalized_reconstruction,denormalized_MSLE,encoded"
        code, _, err = run(
            model=example / name, run_id=name, id_column="transaction_id", output_fields=fields
        )
        assert code == 0, err
        results[name] = scores(tmp_path / "out", name).sort_by("row_id")
    first = results["model"]
    for other in results.values():
        assert other["row_id"].equals(first["row_id"])
        for column in ("score", "normalized_reconstruction", "denormalized_MSLE", "encoded"):
            a, b = (np.stack(t[column].to_numpy()) for t in (first, other))
            assert_scores(a, b, column)


@pytest.mark.slow
def test_a_second_run_replaces_the_first_and_another_run_id_keeps_both(
    run: Any, tmp_path: Path
) -> None:
    for run_id, fmt in (("r", "parquet"), ("r", "jsonl"), ("other", "parquet")):
        assert run(run_id=run_id, output_format=fmt)[0] == 0
    assert {f.suffix for f in (tmp_path / "out/r/scores").iterdir()} == {".jsonl"}
    assert len(dead_letters(tmp_path / "out")) == ROWS // 100
    assert scores(tmp_path / "out", "other").num_rows == ROWS - ROWS // 100
    assert not (tmp_path / "out/.staging").exists()


@pytest.mark.slow
def test_json_summary_is_the_report(run: Any, tmp_path: Path) -> None:
    _, out, _ = run(json_summary="true")
    assert json.loads(out) == json.loads((tmp_path / "out/r/report.json").read_text())


@pytest.mark.slow
def test_the_report_has_the_statistics_of_the_scores(run: Any, tmp_path: Path) -> None:
    out = run(run_id="a")[1]
    found = json.loads((tmp_path / "out/a/report.json").read_text())["scores"]
    values = scores(tmp_path / "out", "a")["score"].to_numpy().astype(np.float64)
    exact = {"mean": values.mean(), "std": values.std(ddof=1)}
    assert found == pytest.approx(exact | {"min": values.min(), "max": values.max()}, rel=1e-12)
    assert f"mean {found['mean']:.4g}, std {found['std']:.4g}, from {found['min']:.4g} to" in out


@pytest.mark.slow
def test_dead_letters_can_have_another_folder(run: Any, tmp_path: Path) -> None:
    run(dead_letter_files=tmp_path / "bad")
    assert len(dead_letters(tmp_path / "bad")) == ROWS // 100
    assert not (tmp_path / "out/r/dead_letters").exists()
    report = json.loads((tmp_path / "out/r/report.json").read_text())
    assert report["dead_letter_output"] == [str(tmp_path / "bad/r/dead_letters")]


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
@pytest.mark.slow
def test_text_files_produce_the_same_scores_as_parquet(
    run: Any, example: Path, tmp_path: Path, suffix: str
) -> None:
    table = pq.read_table(example / "transactions.parquet")
    text = tmp_path / f"rows.{suffix}"
    if suffix == "csv":
        pa_csv.write_csv(table, text)
    else:
        lines = (json.dumps(row) for row in table.to_pylist())
        # NaN and Infinity are not valid JSON: these lines become dead letters of stage decode.
        text.write_text("".join(f"{line}\n" for line in lines))
    assert run(id_column="transaction_id", run_id="a")[0] == 0
    assert run(id_column="transaction_id", run_id="b", input_files=text)[0] == 0
    a, b = (scores(tmp_path / "out", r).sort_by("row_id") for r in "ab")
    assert a["row_id"].equals(b["row_id"])
    assert_scores(a["score"], b["score"])
    assert len(dead_letters(tmp_path / "out", "b")) == ROWS // 100


@pytest.mark.parametrize("output_format", ["csv", "jsonl"])
@pytest.mark.slow
def test_output_formats_hold_the_same_rows(run: Any, tmp_path: Path, output_format: str) -> None:
    run(run_id="p")
    run(run_id="t", output_format=output_format)
    (file,) = (tmp_path / "out/t/scores").iterdir()
    if output_format == "csv":
        other = pa_csv.read_csv(file)
        assert "encoded_3" in other.column_names
    else:
        other = pa.Table.from_pylist([json.loads(x) for x in file.read_text().splitlines()])
        assert len(other["encoded"][0]) == 4
    table = scores(tmp_path / "out", "p").sort_by("row_id")
    assert_scores(other.sort_by("row_id")["score"], table["score"])


@pytest.mark.slow
def test_bad_rows_of_a_text_file_become_dead_letters_one_by_one(run: Any, tmp_path: Path) -> None:
    good = dict.fromkeys(FEATURES, 0.5)
    lines = [
        json.dumps(good),
        json.dumps({"features": [0.5] * 30}),
        json.dumps(good | {"Amount": "twelve"}),
        json.dumps({"features": [0.5] * 31}),
        json.dumps({k: v for k, v in good.items() if k != "V3"}),
        json.dumps(good | {"V7": None}),
        "{not json",
        json.dumps(good | {"V9": 1e300}),
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    code, out, _ = run(input_files=tmp_path / "rows.jsonl", max_dead_letter_share=1)
    assert code == 0
    letters = dead_letters(tmp_path / "out")
    assert scores(tmp_path / "out").num_rows == 2
    assert sorted((x["reason"], x["payload"]) for x in letters) == sorted(
        zip(
            ("wrong_type", "wrong_width", "missing_feature", "null", "invalid_json", "not_finite"),
            lines[2:],
            strict=True,
        )
    )
    assert "column Amount" in next(x["message"] for x in letters if x["reason"] == "wrong_type")
    assert "missing_feature at" in out


@pytest.mark.slow
def test_a_run_that_scores_nothing_fails_and_keeps_its_dead_letters(
    run: Any, tmp_path: Path
) -> None:
    (tmp_path / "rows.jsonl").write_text('{"Time": 1}\n{"Time": 2}\n')
    code, out, err = run(input_files=tmp_path / "rows.jsonl")
    assert (code, len(dead_letters(tmp_path / "out"))) == (1, 2)
    assert (
        "2 of 2 rows (100.00 %) are dead letters, more than --max_dead_letter_share 0.5 allows;"
        in err
    )
    group = "the largest group is reason missing_feature, stage decode"
    assert re.search(rf"{group}, column \w+ \(2 rows\): see {tmp_path}/out/r/dead_letters", err)
    assert "out/r/scores" not in out


@pytest.mark.slow
def test_the_share_of_dead_letters_can_be_limited(run: Any) -> None:
    assert run(max_dead_letter_share=0.01)[0] == 0
    code, _, err = run(max_dead_letter_share=0.009)
    assert (code, "run again with --run_id r" in err) == (1, True)
    assert "(1.00 %) are dead letters, more than --max_dead_letter_share 0.009 allows;" in err
    assert_one_line_error(run(max_dead_letter_share=2), 2, "--max_dead_letter_share")


@pytest.mark.slow
def test_a_feature_of_a_csv_file_is_written_as_a_number_in_every_file(
    run: Any, tmp_path: Path
) -> None:
    row = ",".join(["0.5"] * len(FEATURES))
    for i, last in enumerate(("0.5", "no number")):
        bad = ",".join(["0.5"] * (len(FEATURES) - 1) + [last])
        (tmp_path / f"{i}.csv").write_text(f"{','.join(FEATURES)}\n{row}\n{bad}\n")
    assert run(input_files=tmp_path / "*.csv", output_fields="Amount,Time")[0] == 0
    table = scores(tmp_path / "out")
    assert {str(table.schema.field(name).type) for name in ("Amount", "Time")} == {"double"}
    assert table["Amount"].to_pylist() == [0.5] * 3


@pytest.mark.parametrize(
    ("suffix", "layout"),
    [("parquet", "default"), ("csv", "default"), ("jsonl", "default"), ("parquet", "reference")],
)
@pytest.mark.exhaustive
@pytest.mark.slow
def test_rows_have_the_schema_that_was_determined_before_the_run(
    run: Any,
    example: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    suffix: str,
    layout: str,
) -> None:
    table = pq.read_table(example / "transactions.parquet").slice(0, 100)
    rows = tmp_path / f"rows.{suffix}"
    if suffix == "parquet":
        pq.write_table(table, rows)
    elif suffix == "csv":
        pa_csv.write_csv(table, rows)
    else:
        rows.write_text("".join(f"{json.dumps(row)}\n" for row in table.to_pylist()))
    planned, written = [], []

    def plan(*args: Any) -> pa.Schema:
        planned.append(output_schema(*args))
        return planned[-1]

    def write(handle: Any, schema: pa.Schema, kind: Any) -> Any:
        written.append((kind, schema))
        return open_writer(handle, schema, kind)

    monkeypatch.setattr("pipelines.batch.run.output_schema", plan)
    monkeypatch.setattr("transforms.files.sink.stage.open_writer", write)
    fields = "encoded,normalized_reconstruction,Time,Amount,Class" if layout == "default" else None
    assert run(input_files=rows, output_schema=layout, output_fields=fields)[0] == 0
    (schema,) = [schema for kind, schema in written if kind == "parquet"]
    assert schema.equals(planned[0]), f"{schema}\n\n{planned[0]}"


@pytest.mark.slow
def test_rows_of_the_reference_pipeline_have_the_ids_of_the_source(
    run: Any, example: Path, tmp_path: Path
) -> None:
    assert run(run_id="own", id_column="transaction_id", output_fields="encoded")[0] == 0
    assert run(run_id="its", id_column="transaction_id", output_schema="reference")[0] == 0
    own, its = scores(tmp_path / "out", "own"), scores(tmp_path / "out", "its")
    assert its.schema.equals(
        pa.schema(
            [
                ("instance_id", pa.string()),
                ("anomaly_score", pa.float64()),
                ("encoded", pa.list_(pa.float64())),
                ("timestamp", pa.timestamp("us", tz="UTC")),
            ]
        )
    )
    own, its = own.sort_by("row_id"), its.sort_by("instance_id")
    assert its["instance_id"].equals(own["row_id"])
    assert_scores(its["anomaly_score"], own["score"])
    assert_scores(its["encoded"].to_pylist(), own["encoded"].to_pylist())
    assert its["timestamp"].null_count == 0
    assert len(dead_letters(tmp_path / "out", "its")) == ROWS // 100


@pytest.mark.slow
def test_ids_of_reference_rows_are_the_same_in_every_run(run: Any, tmp_path: Path) -> None:
    for run_id in ("a", "b"):
        assert run(run_id=run_id, output_schema="reference")[0] == 0
    first, second = (scores(tmp_path / "out", name)["instance_id"].to_pylist() for name in "ab")
    assert len(set(first)) == len(first)
    assert sorted(first) == sorted(second)


def test_rows_of_the_reference_need_a_model_and_flags_that_fit(run: Any, tmp_path: Path) -> None:
    assert_one_line_error(
        run(output_schema="reference", output_fields="encoded"), 2, "leave out --output_fields"
    )
    bare = save_script(RefusesNegativeAmounts(), tmp_path / "m.pt")
    result = run(output_schema="reference", model=bare, feature_columns=",".join(FEATURES))
    assert_one_line_error(result, 2, "--output_schema reference", "'encoded'", "outputs output")
    nothing_written(tmp_path / "out")


class RefusesNegativeAmounts(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if bool((x[:, 29] < 0).any()):
            raise ValueError("negative amount")
        return x.sum(dim=1)


class DropsTheLastRow(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.size(0) > 4:
            return x.sum(dim=1)[:-1]
        return x.sum(dim=1)


def save_script(module: torch.nn.Module, path: Path) -> Path:
    torch.jit.save(torch.jit.script(module), path)
    return path


def test_if_the_model_raises_on_some_rows_only_these_rows_are_dead_letters(
    run: Any, tmp_path: Path
) -> None:
    (batch,) = generate(500, seed=1, batch_rows=500)
    amounts = batch.column("Amount").to_numpy().copy()
    negative = [3, 4, 77, 499]
    amounts[negative] = -1
    table = pa.table(batch).set_column(
        batch.schema.get_field_index("Amount"), "Amount", pa.array(amounts)
    )
    pq.write_table(table, tmp_path / "rows.parquet")
    code, out, err = run(
        input_files=tmp_path / "rows.parquet",
        model=save_script(RefusesNegativeAmounts(), tmp_path / "m.pt"),
        feature_columns=",".join(FEATURES),
        id_column="transaction_id",
    )
    assert code == 0, err
    letters = dead_letters(tmp_path / "out")
    ids = batch.column("transaction_id").to_pylist()
    assert sorted(x["row_id"] for x in letters) == [ids[i] for i in negative]
    assert {(x["stage"], x["reason"]) for x in letters} == {("infer", "model_error")}
    assert all("negative amount" in x["message"] for x in letters)
    assert scores(tmp_path / "out").num_rows == 496
    assert "model_error at infer" in out


@pytest.mark.slow
def test_a_model_that_raises_on_most_rows_fails_the_run_and_each_row_is_a_dead_letter(
    run: Any, tmp_path: Path
) -> None:
    (batch,) = generate(3_000, seed=1, batch_rows=3_000)
    amounts = -1 - batch.column("Amount").to_numpy()
    amounts[::5] = 1
    table = pa.table(batch).set_column(
        batch.schema.get_field_index("Amount"), "Amount", pa.array(amounts)
    )
    pq.write_table(table, tmp_path / "rows.parquet")
    code, _, err = run(
        input_files=tmp_path / "rows.parquet",
        model=save_script(RefusesNegativeAmounts(), tmp_path / "m.pt"),
        feature_columns=",".join(FEATURES),
        id_column="transaction_id",
        direct_num_workers=1,
    )
    letters = dead_letters(tmp_path / "out")
    share = f"({len(letters) / 30:.2f} %) are dead letters, more than "
    share += "--max_dead_letter_share 0.5 allows;"
    assert (code, share in err) == (1, True)
    assert f"{tmp_path}/out/r/dead_letters" in err
    report = json.loads((tmp_path / "out/r/report.json").read_text())
    assert report["too_many_dead_letters"]
    assert report["max_dead_letter_share"] == 0.5
    assert report["balanced"]
    assert scores(tmp_path / "out").num_rows + len(letters) == 3_000
    assert {letter["reason"] for letter in letters} == {"model_error"}
    by_id = {letter["row_id"]: letter for letter in letters}
    assert by_id.keys() >= set(
        batch.column("transaction_id").filter(pa.array(amounts < 0)).to_pylist()
    )
    left = [
        x for x in letters if x["message"].startswith("not tried on its own, because most rows")
    ]
    assert len(left) > 2_000
    # Each can be replayed, because it holds its whole row.
    assert all(json.loads(letter["payload"]).keys() >= set(FEATURES) for letter in left)


def test_a_model_that_returns_fewer_rows_fails_the_run(run: Any, tmp_path: Path) -> None:
    result = run(
        model=save_script(DropsTheLastRow(), tmp_path / "m.pt"), feature_columns=",".join(FEATURES)
    )
    assert_one_line_error(result, 1, "output 'output'", "expected float32", "got float32")
    nothing_written(tmp_path / "out")


def test_missing_and_unknown_flags(run: Any, tmp_path: Path) -> None:
    assert_one_line_error(
        run(model=None, input_files=None), 2, "--model", "--input_files", "python -m"
    )
    assert_one_line_error(run(input_file="x"), 2, "--input_file (did you mean '--input_files")
    assert_one_line_error(run(batch_rows=0), 2, "--batch_rows")
    assert_one_line_error(run(score_output="normalised_MAE"), 2, "did you mean 'normalized_MAE")
    assert_one_line_error(run(score_output="encoded"), 2, "encoded", "choose --score_output from")
    assert_one_line_error(run(output_fields="Amout"), 2, "did you mean 'Amount")
    assert_one_line_error(run(output_fields="run_id"), 2, "always written")
    nothing_written(tmp_path / "out")


def test_flags_that_do_not_agree(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in VARIABLES.values():
        monkeypatch.delenv(variable, raising=False)
    # No server listens on this port: every error is found before the first request.
    nowhere = {"api_endpoints": "bigquery=http://localhost:1"}
    table = {"input_files": None, "input_table": "project.data.rows"}
    query = {"input_files": None, "input_query": "SELECT 1"}
    assert_one_line_error(
        run(input_table="d.t"),
        2,
        "--input_files and --input_table cannot be combined: use only one",
    )
    assert_one_line_error(
        run(**table, input_query="SELECT 1"),
        2,
        "--input_table and --input_query cannot be combined",
    )
    assert_one_line_error(
        run(row_restriction="a > 1"), 2, "--row_restriction has no effect without --input_table"
    )
    assert_one_line_error(
        run(**query, row_restriction="a > 1"),
        2,
        "--row_restriction has no effect without --input_table",
    )
    assert_one_line_error(run(cluster_by="score"), 2, "--cluster_by", "--output_table")
    assert_one_line_error(
        run(write_disposition="truncate"), 2, "--write_disposition", "--output_table"
    )
    assert_one_line_error(run(**query, **nowhere), 2, "--billing_project", "--project")
    assert_one_line_error(
        run(**table, **nowhere, read_method="export"), 2, "--read_method", "--temp_location"
    )
    assert_one_line_error(
        run(output_table="project.data.scores", **nowhere), 2, "--temp_location gs://"
    )
    nowhere["billing_project"] = "project"
    assert_one_line_error(run(dead_letter_table="data.bad", **nowhere), 2, "--temp_location gs://")
    nothing_written(tmp_path / "out")


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("given", "near"),
    [
        ("bigqury=http://localhost:1", "did you mean 'bigquery"),
        ("gcs=http://localhost:1", "bigquery, bigquerystorage, storage"),
        ("bigquery", "expected SERVICE=ADDRESS"),
        ("storage=", "expected SERVICE=ADDRESS"),
    ],
)
def test_a_malformed_api_endpoint_is_reported(
    run: Any, tmp_path: Path, given: str, near: str
) -> None:
    assert_one_line_error(run(api_endpoints=given), 2, "--api_endpoints", repr(given), near)
    nothing_written(tmp_path / "out")


@pytest.fixture
def without_credentials(tmp_path: Path) -> dict[str, str]:
    """The environment of a child that finds no credentials and no emulators."""
    (tmp_path / "home").mkdir()
    removed = ("GOOGLE_", "CLOUDSDK_", *VARIABLES.values())
    kept = {name: value for name, value in os.environ.items() if not name.startswith(removed)}
    # On a machine of Google Cloud, the metadata server would provide the machine's account.
    return {**kept, "HOME": str(tmp_path / "home"), "NO_GCE_CHECK": "true"}


def test_missing_credentials_are_reported_whichever_flag_names_the_bucket(
    example: Path, tmp_path: Path, without_credentials: dict[str, str]
) -> None:
    rows, query = str(example / "transactions.parquet"), {"input_files": None}
    flags: list[dict[str, str | None]] = [
        {"input_files": f"{rows},gs://bucket/rows.parquet"},
        {"model": "gs://bucket/model"},
        {"output_files": "gs://bucket/out"},
        {"dead_letter_files": "gs://bucket/out"},
        {"temp_location": "gs://bucket/tmp"},
        {**query, "input_query": "@gs://bucket/query.sql", "billing_project": "project"},
        {**query, "input_query": "SELECT 1", "billing_project": "project"},
    ]
    given = {"input_files": rows, "model": str(example / "model"), "output_files": str(tmp_path)}
    calls = [
        [text for name, value in (given | more).items() if value for text in (f"--{name}", value)]
        for more in flags
    ]
    code = (
        "import json, sys\n"
        "from pipelines.batch_local import COMMAND\n"
        "from pipelines.command import main\n"
        "print([main(COMMAND, argv) for argv in json.load(sys.stdin)])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        input=json.dumps(calls),
        env=without_credentials,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == f"{[1] * len(calls)}\n", done.stderr
    errors = done.stderr.splitlines()
    assert len(errors) == len(calls)
    for line in errors:
        assert "no usable Google Cloud credentials" in line
        assert "gcloud auth application-default login" in line
    assert sorted(path.name for path in tmp_path.iterdir()) == ["home"]


def test_without_credentials_the_command_ends_with_one_line(
    example: Path, without_credentials: dict[str, str]
) -> None:
    flags = ["--input_files", "gs://bucket/rows.parquet", "--model", str(example / "model")]
    done = subprocess.run(
        [sys.executable, "-m", "pipelines.batch_local", *flags, "--output_files", "gs://bucket/o"],
        env=without_credentials,
        capture_output=True,
        text=True,
        check=False,
    )
    assert_one_line_error(
        (done.returncode, done.stdout, done.stderr), 1, "no usable Google Cloud credentials"
    )


def test_input_that_cannot_be_read(run: Any, example: Path, tmp_path: Path) -> None:
    assert_one_line_error(run(input_files=tmp_path / "none/*.parquet"), 1, "no input file matches")
    empty = tmp_path / "empty.parquet"
    empty.write_bytes(b"")
    assert_one_line_error(run(input_files=empty), 1, "empty.parquet", "0 bytes")
    header = tmp_path / "header.csv"
    header.write_text(",".join(FEATURES) + "\n")
    found = run(input_files=header)
    assert_one_line_error(found, 1, "the input is empty: ", "header.csv has no rows [")
    (tmp_path / "header_2.csv").write_bytes(header.read_bytes())
    found = run(input_files=tmp_path / "header*.csv")
    assert_one_line_error(found, 1, "none of the 2 files has rows (the first is ", "header.csv)")
    cut = tmp_path / "cut.parquet"
    cut.write_bytes((example / "transactions.parquet").read_bytes()[:-2000])
    assert_one_line_error(run(input_files=cut), 1, "cut.parquet", "truncated")
    table = pq.read_table(example / "transactions.parquet")
    pq.write_table(table.rename_columns({"Amount": "Amout"}), tmp_path / "lacks.parquet")
    assert_one_line_error(
        run(input_files=tmp_path / "lacks.parquet"), 1, "'Amount'", "did you mean 'Amout"
    )
    pq.write_table(
        table.set_column(1, "Time", pa.array([None] * ROWS, pa.timestamp("us"))),
        tmp_path / "typed.parquet",
    )
    assert_one_line_error(run(input_files=tmp_path / "typed.parquet"), 1, "'Time'", "timestamp")
    assert_one_line_error(
        run(id_column="transactionid"), 2, "--id_column", "did you mean 'transaction_id"
    )
    assert_one_line_error(run(input_files=example / "model/model.pt"), 2, "--input_format")
    nothing_written(tmp_path / "out")


def test_a_damaged_page_is_an_error_not_a_score(run: Any, example: Path, tmp_path: Path) -> None:
    table = pq.read_table(example / "transactions.parquet")
    path = tmp_path / "rows.parquet"
    pq.write_table(table, path, write_page_checksum=True, compression="none", use_dictionary=False)
    column = pq.ParquetFile(path).metadata.row_group(0).column(5)
    data = bytearray(path.read_bytes())
    data[column.data_page_offset + 500] ^= 0xFF
    path.write_bytes(data)
    assert_one_line_error(run(input_files=path), 1, "rows.parquet", "damaged")
    nothing_written(tmp_path / "out")


def test_output_that_cannot_be_written(run: Any, tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    assert_one_line_error(
        run(output_files=blocked / "out"), 1, str(blocked), "choose another folder"
    )
    assert blocked.read_text() == "not a folder"


def copy_package(example: Path, target: Path, **changes: Any) -> Path:
    target.mkdir()
    manifest = json.loads((example / "model/model.json").read_text()) | changes
    (target / "model.json").write_text(json.dumps(manifest))
    (target / "model.pt").write_bytes((example / "model/model.pt").read_bytes())
    return target


@pytest.mark.slow
def test_unusable_models_are_reported(run: Any, example: Path, tmp_path: Path) -> None:
    assert_one_line_error(run(model=tmp_path / "none"), 1, "no model at")
    assert_one_line_error(run(model_digest="0" * 64), 1, "--model_digest", "0" * 64)
    wrong = copy_package(example, tmp_path / "wrong", sha256="1" * 64)
    assert_one_line_error(run(model=wrong), 1, "model.json", "1" * 64)
    data = (example / "model/model.pt").read_bytes()[:-3000]
    cut = copy_package(example, tmp_path / "cut", sha256=hashlib.sha256(data).hexdigest())
    (cut / "model.pt").write_bytes(data)
    assert_one_line_error(run(model=cut), 1, "truncated")
    disagrees = copy_package(example, tmp_path / "disagrees", format="pt2")
    assert_one_line_error(run(model=disagrees), 1, "'pt2'", "model.pt is")
    golden = json.loads((example / "model/model.json").read_text())["golden"]
    golden["outputs"]["denormalized_MAE"][2] += 1
    drifted = copy_package(example, tmp_path / "drifted", golden=golden)
    assert_one_line_error(
        run(model=drifted),
        1,
        "does not reproduce the answers recorded in its model.json",
        "for known-good row 2, output denormalized_MAE is ",
        ", expected ",
    )
    unknown = copy_package(example, tmp_path / "unknown", score_outputs="x")
    assert_one_line_error(
        run(model=unknown), 1, "got 'score_outputs': unknown member (", "did you mean 'score_output"
    )
    assert_one_line_error(
        run(model=example / "model/model.pt", feature_columns="A,B"), 2, "--feature_columns"
    )
    nothing_written(tmp_path / "out")


class Payload:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.marker,))


def test_a_pickle_that_claims_to_be_a_model_is_not_executed(run: Any, tmp_path: Path) -> None:
    marker = tmp_path / "executed"
    raw = tmp_path / "raw.pt"
    raw.write_bytes(pickle.dumps(Payload(marker)))
    saved = tmp_path / "saved.pt"
    torch.save(Payload(marker), saved)
    for model in (raw, saved):
        assert_one_line_error(run(model=model, feature_columns="A"), 1, "pickle", "torch.export")
    assert not marker.exists()


def write_mar(path: Path, entries: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return path


@pytest.mark.slow
def test_hostile_archives_are_rejected(run: Any, example: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(example / "pytorch_autoencoder.mar") as archive:
        good = {name: archive.read(name) for name in archive.namelist()}
    up = write_mar(tmp_path / "up.mar", good | {"../../evil.py": b""})
    assert_one_line_error(run(model=up), 1, "'../../evil.py'", "outside")
    bomb = write_mar(tmp_path / "bomb.mar", good | {"zeros": bytes(200 << 20)})
    assert_one_line_error(run(model=bomb), 1, "expand")
    link = tmp_path / "link.mar"
    with zipfile.ZipFile(link, "w") as archive:
        entry = zipfile.ZipInfo("model.pt")
        entry.external_attr = 0o120777 << 16
        archive.writestr(MAR_MANIFEST, good[MAR_MANIFEST])
        archive.writestr(entry, "/etc/passwd")
    assert_one_line_error(run(model=link), 1, "link")
    cut = tmp_path / "cut.mar"
    cut.write_bytes((example / "pytorch_autoencoder.mar").read_bytes()[:-100])
    assert_one_line_error(run(model=cut), 1, "truncated")
    nothing_written(tmp_path / "out")


def test_an_unexpected_error_is_one_line_and_a_traceback_with_debug(
    run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise LookupError("something unexpected")

    monkeypatch.setattr("pipelines.handlers.read_manifest", fail)
    assert_one_line_error(run(), 1, "unexpected LookupError", "something unexpected", "--debug")
    with pytest.raises(LookupError):
        run(debug="true")


@pytest.mark.parametrize("given", [{"csv_delimiter": ";"}, {"csv_multiline": "true"}])
def test_csv_flags_without_csv_files_are_rejected(run: Any, given: dict[str, str]) -> None:
    expected = "the --csv_* flags have no effect: no input file is CSV"
    assert_one_line_error(run(**given), 2, expected)
    assert_one_line_error(run(**given, input_format="parquet"), 2, expected)


def test_range_rows_without_parquet_files_are_rejected(run: Any, tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("a\n1\n")
    result = run(input_files=tmp_path / "rows.csv", range_rows=9)
    assert_one_line_error(result, 2, "--range_rows has no effect: no input file is Parquet")
    assert_one_line_error(run(range_rows=0), 2, "--range_rows must be at least 1, got 0")


@pytest.mark.slow
def test_ctrl_c_ends_a_run_whose_workers_never_end(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    committing, end = threading.Event(), threading.Event()

    def wait_in_commit(*_: Any) -> None:
        committing.set()
        end.wait(120)

    def interrupt() -> None:
        committing.wait(120)
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr("transforms.run_report.commit", wait_in_commit)
    # Beam's runner closes its workers when a run ends.
    manager = "apache_beam.runners.portability.fn_api_runner.worker_handlers.WorkerHandlerManager"
    monkeypatch.setattr(f"{manager}.close_all", lambda _: end.wait(120))
    threading.Thread(target=interrupt).start()
    started = time.monotonic()
    code, out, err = run()
    waited = time.monotonic() - started
    end.set()
    assert waited < 100
    assert (code, out, err.strip()) == (130, "", "interrupted: nothing was written")
    nothing_written(tmp_path / "out")


def test_after_ctrl_c_only_the_main_thread_prints(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # The stream is restored after the test.
    monkeypatch.setattr(sys, "stderr", sys.stderr)

    def fail(error: type[BaseException] | None = None) -> None:
        print("a traceback", file=sys.stderr)
        if error is not None:
            raise error

    with pytest.raises(KeyboardInterrupt), quiet_workers():
        fail(KeyboardInterrupt)
    worker = threading.Thread(target=fail)
    worker.start()
    worker.join()
    print("interrupted", file=sys.stderr)
    assert capsys.readouterr().err == "interrupted\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_the_run_and_leaves_no_files(
    example: Path, tmp_path: Path, number: int
) -> None:
    table = pq.read_table(example / "transactions.parquet")
    pq.write_table(pa.concat_tables([table] * 400), tmp_path / "many.parquet")
    flags = ["--input_files", str(tmp_path / "many.parquet"), "--model", str(example / "model")]
    flags += ["--output_files", str(tmp_path / "out"), "--run_id", "r", "--batch_rows", "16"]
    process = subprocess.Popen(
        [sys.executable, "-m", "pipelines.batch_local", *flags],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_for_staged(process, tmp_path / "out")
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    code = 128 + number
    assert (process.returncode, out, err.strip()) == (code, "", "interrupted: nothing was written")
    nothing_written(tmp_path / "out")


def in_parts(example: Path, folder: Path, **columns: list[pa.Array]) -> Path:
    """Write the first rows of the example to one file for each array of a column."""
    folder.mkdir()
    rows = pq.read_table(example / "transactions.parquet")
    for name, arrays in columns.items():
        for i, array in enumerate(arrays):
            part = rows.slice(10 * i, len(array)).append_column(name, array)
            pq.write_table(part, folder / f"{i}.parquet")
    return folder


@pytest.mark.exhaustive
@pytest.mark.parametrize("output_format", ["parquet", "jsonl"])
@pytest.mark.parametrize(
    ("parts", "kind", "values"),
    [
        ([pa.nulls(1), pa.array(["x"]), pa.nulls(1)], pa.string(), ["x"]),
        ([pa.array([7]), pa.array([1.5])], pa.float64(), [1.5, 7.0]),
        ([pa.array(["x"]).dictionary_encode(), pa.array(["y"])], pa.string(), ["x", "y"]),
    ],
    ids=["null", "number", "dictionary"],
)
@pytest.mark.slow
def test_a_result_has_one_schema_however_the_files_differ(
    run: Any,
    example: Path,
    tmp_path: Path,
    parts: list[pa.Array],
    kind: pa.DataType,
    values: list[Any],
    output_format: str,
) -> None:
    folder = in_parts(example, tmp_path / "in", note=parts)
    code, _, err = run(input_files=folder, output_fields="note", output_format=output_format)
    assert (code, err) == (0, "")
    files = sorted((tmp_path / "out/r/scores").iterdir())
    if output_format == "parquet":
        assert {pq.read_schema(file).field("note").type for file in files} == {kind}
        found = pa.concat_tables(map(pq.read_table, files))["note"].to_pylist()
    else:
        lines = [line for file in files for line in file.read_text().splitlines()]
        found = [json.loads(line)["note"] for line in lines]
    assert sorted(value for value in found if value is not None) == values
    assert len(found) == len(parts)


@pytest.mark.parametrize(
    "parts",
    [[pa.array([1]), pa.array(["x"])], [pa.array([2**53 + 1]), pa.array([1.5])]],
    ids=["before the run", "at the row"],
)
@pytest.mark.slow
def test_files_that_no_type_can_hold_are_named_and_nothing_is_written(
    run: Any, example: Path, tmp_path: Path, parts: list[pa.Array]
) -> None:
    folder = in_parts(example, tmp_path / "in", note=parts)
    named = [f"in {folder / name}" for name in ("0.parquet", "1.parquet")]
    assert_one_line_error(run(input_files=folder, output_fields="note"), 1, "'note'", *named)
    assert not list((tmp_path / "out").rglob("*.parquet"))
