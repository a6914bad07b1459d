"""Tests of the samples that `millrace package` reads: files of each format, and queries."""

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from raw_model import model_bytes
from test_packaging import INPUTS, SPEC, sample

from common.errors import InputError, UsageError
from examples.local_cloud import LocalCloud
from millrace import column, fit, package, prepare
from millrace.command_line import run
from model_handlers.package import main, read_manifest
from transforms.samples import read_query, read_sample

COLUMNS = {
    "amount": "float64",
    "limit": "float64",
    "at": "timestamp",
    "kind": "string",
    "clicks": "list<int64>",
}


def as_json(table: pa.Table) -> list[str]:
    rows = table.to_pylist()
    return [json.dumps(row | {"at": row["at"].isoformat()}) for row in rows]


@pytest.mark.slow
def test_files_of_each_format_make_the_same_package(tmp_path: Path) -> None:
    table = sample(60)
    (tmp_path / "model.pt2").write_bytes(model_bytes())
    (tmp_path / "spec.toml").write_text(SPEC)
    pq.write_table(table.slice(0, 40), tmp_path / "a.parquet")
    pq.write_table(table.slice(40), tmp_path / "b.parquet")
    with gzip.open(tmp_path / "rows.jsonl.gz", "wt") as handle:
        handle.write("\n".join(as_json(table)))
    (tmp_path / "rows.json").write_text(f"[{','.join(as_json(table))}]")
    texts = []
    for name, paths in (
        ("parquet", f"{tmp_path}/a.parquet,{tmp_path}/b.parquet"),
        ("glob", f"{tmp_path}/?.parquet"),
        ("lines", f"{tmp_path}/rows.jsonl.gz"),
        ("array", f"{tmp_path}/rows.json"),
    ):
        arguments = ["--inputs", f"{tmp_path}/spec.toml", "--sample", paths]
        output = tmp_path / name
        assert run(["package", f"{tmp_path}/model.pt2", *arguments, "--output", str(output)]) == 0
        manifest = read_manifest(str(output))
        assert manifest.columns == COLUMNS
        texts.append((output / "model.json").read_text())
    assert len(set(texts)) == 1


def test_text_of_csv_files_is_read_as_a_run_reads_it(tmp_path: Path) -> None:
    lines = [
        "amount,limit,kind,at",
        "1.5,10,web,2026-01-02T03:00:00Z",
        ",20,shop,2026-01-02 04:00Z",
    ]
    lines += ["x,30,web,2026-01-02", "3,40,,2026-01-02T05:00:00Z"]
    (tmp_path / "rows.csv").write_text("\n".join(lines))
    inputs = {
        "amount": column("amount").fill("mean").divide("limit"),
        "kind": column("kind").fill("none").vocabulary(),
        "hour": column("at").time_part("hour", zone="UTC"),
    }
    fitted = fit(tmp_path / "rows.csv", inputs)
    assert fitted.columns == {
        "amount": "float64",
        "limit": "float64",
        "kind": "string",
        "at": "timestamp",
    }
    prepared = prepare([tmp_path / "rows.csv"], fitted)
    assert prepared.rows.tolist() == [0, 1, 3]
    assert prepared["hour"].tolist() == [3, 4, 5]
    assert prepared["amount"].tolist() == pytest.approx([0.15, 2.25 / 20, 3 / 40])


def test_values_of_several_types_are_text(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"a": 1}\n{"a": "x"}\nnot json\n{"b": [true]}\n')
    found = read_sample([str(tmp_path / "rows.jsonl")])
    assert found.to_pydict() == {"a": ["1", "x", None], "b": [None, None, [True]]}


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--sample", "{}/none.csv"], 1, "no input file matches"),
        (["--sample", "{}/empty.csv"], 1, "the sample is empty"),
        (["--sample", "{}/a.txt"], 2, "a.txt"),
        (["--sample", "{}/a", "--sample_query", "SELECT 1"], 2, "leave out one"),
    ],
)
def test_a_sample_that_cannot_be_read_is_reported_in_one_line(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    code: int,
    message: str,
) -> None:
    (tmp_path / "model.pt2").write_bytes(model_bytes())
    (tmp_path / "empty.csv").write_text("a,b\n")
    (tmp_path / "a.txt").write_text("a,b\n")
    options = ["--output", str(tmp_path / "p"), *(text.format(tmp_path) for text in arguments)]
    assert run(["package", str(tmp_path / "model.pt2"), *options]) == code
    printed = capsys.readouterr()
    assert message in printed.err
    assert len(printed.err.splitlines()) == 1


def test_the_module_reads_one_parquet_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "model.pt2").write_bytes(model_bytes())
    arguments = [str(tmp_path / "model.pt2"), "--output", str(tmp_path / "p")]
    assert main([*arguments, "--sample", "a.parquet,b.parquet"]) == 2
    assert "`millrace package` reads several files" in capsys.readouterr().err


def test_something_else_is_not_a_sample(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"sample: expected paths, .* got int"):
        fit(5, INPUTS)
    with pytest.raises(InputError, match=r"none\.csv"):
        package(tmp_path / "m.pt", tmp_path / "p", sample=tmp_path / "none.csv")


def test_a_query_is_a_sample(emulators: LocalCloud, tmp_path: Path) -> None:
    query = (
        "SELECT 1.5 AS amount, 10 AS `limit`, 'web' AS kind, "
        "TIMESTAMP '2026-01-02 03:00:00+00' AS at UNION ALL "
        "SELECT NULL, 20, 'shop', TIMESTAMP '2026-01-02 04:00:00+00'"
    )
    table = read_query(emulators.cloud, query)
    assert sorted(table.column("kind").to_pylist()) == ["shop", "web"]
    inputs = {
        "amount": column("amount").fill("mean").divide("limit"),
        "hour": column("at").time_part("hour", zone="UTC"),
    }
    fitted = fit(table, inputs)
    assert fitted.columns == {"amount": "float64", "limit": "int64", "at": "timestamp"}
    found = prepare(table.sort_by("kind"), fitted)
    assert found["amount"].tolist() == pytest.approx([1.5 / 20, 0.15])
    assert found["hour"].tolist() == [4, 3]
    with pytest.raises(InputError, match="--sample_query"):
        read_query(emulators.cloud, "SELECT")
