"""Tests the file benchmark: its gate, its statistics and its reports."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from benchmarks.contestant import Report, Task, read_report
from benchmarks.files.chart import draw
from benchmarks.files.millrace import command_line
from benchmarks.files.plain_loop import run, to_matrix
from benchmarks.gate import Scores, find_faults, read_scores, reference
from benchmarks.machine import describe_machine, versions
from benchmarks.measure import Measured, measure
from benchmarks.summary import ratios, spread, summarise
from benchmarks.two_outputs import load_two_outputs
from examples.transactions.data import FEATURES, generate, write_parquet
from examples.transactions.model import TransactionAutoencoder

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")


@pytest.fixture
def expected() -> Scores:
    rng = np.random.default_rng(3)
    ids = np.array([f"t{i:03d}" for i in range(50)])
    return Scores(ids, rng.random(50, dtype=np.float32), rng.random((50, 4), dtype=np.float32))


@pytest.fixture(scope="module")
def torchscript(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(5)
    path = tmp_path_factory.mktemp("model") / "model.pt"
    batch = pa.Table.from_batches(generate(5_000, seed=1))
    features = np.stack([batch[name].to_numpy() for name in FEATURES], axis=1)
    model = TransactionAutoencoder(features.mean(axis=0), features.var(axis=0)).eval()
    torch.jit.script(model).save(str(path))
    return path


def test_gate_passes_the_same_rows_in_another_order(expected: Scores) -> None:
    order = np.random.default_rng(0).permutation(50)
    found = Scores(expected.ids[order], expected.score[order], expected.encoded[order])
    assert find_faults(found, expected) == []


def test_gate_detects_a_wrong_score(expected: Scores) -> None:
    score = expected.score.copy()
    score[7] += 1e-3
    assert find_faults(replace(expected, score=score), expected) == [
        "score differs: 1 rows, the first is t007"
    ]


def test_gate_allows_rounding_relative_and_absolute(expected: Scores) -> None:
    large = replace(expected, score=expected.score * 1e4)
    assert find_faults(replace(large, score=large.score * (1 + 5e-6)), large) == []
    assert find_faults(replace(expected, score=expected.score + 5e-6), expected) == []


def test_gate_detects_a_nan(expected: Scores) -> None:
    score = expected.score.copy()
    score[0] = np.nan
    (fault,) = find_faults(replace(expected, score=score), expected)
    assert fault.startswith("score differs: 1 rows")


def test_gate_detects_a_wrong_latent_value(expected: Scores) -> None:
    encoded = expected.encoded.copy()
    encoded[9, 2] += 1e-3
    assert find_faults(replace(expected, encoded=encoded), expected) == [
        "encoded differs: 1 rows, the first is t009"
    ]


def test_gate_detects_a_missing_id(expected: Scores) -> None:
    found = Scores(expected.ids[1:], expected.score[1:], expected.encoded[1:])
    assert find_faults(found, expected) == ["id missing: 1 rows, the first is t000"]


def test_gate_detects_a_duplicate_id(expected: Scores) -> None:
    twice = np.append(np.arange(50), 4)
    found = Scores(expected.ids[twice], expected.score[twice], expected.encoded[twice])
    assert find_faults(found, expected) == ["id doubled: 1 rows, the first is t004"]


def test_gate_detects_an_unknown_id(expected: Scores) -> None:
    ids = expected.ids.copy()
    ids[-1] = "x"
    assert find_faults(replace(expected, ids=ids), expected) == [
        "id missing: 1 rows, the first is t049",
        "id unknown: 1 rows, the first is x",
    ]


def test_gate_detects_that_scores_are_swapped_between_rows(expected: Scores) -> None:
    ids = expected.ids.copy()
    ids[[3, 4]] = ids[[4, 3]]
    faults = find_faults(replace(expected, ids=ids), expected)
    assert [fault.split(":")[0] for fault in faults] == ["score differs", "encoded differs"]


def test_plain_loop_passes_the_gate(tmp_path: Path, torchscript: Path) -> None:
    data = tmp_path / "in.parquet"
    write_parquet(data, 3_000, seed=1, row_group_rows=1_000)
    (tmp_path / "out").mkdir()
    run(data, tmp_path / "out" / "part-00000.parquet", load_two_outputs(torchscript))
    assert find_faults(read_scores(tmp_path / "out"), reference(data, torchscript)) == []


def test_a_model_with_two_outputs_does_not_compute_the_others(torchscript: Path) -> None:
    model = load_two_outputs(torchscript)
    assert "log1p" in str(torch.jit.load(str(torchscript)).inlined_graph)
    assert "log1p" not in str(model.inlined_graph)


def test_plain_loop_refuses_rows_with_values_that_are_not_finite() -> None:
    (sound,) = generate(100, seed=1)
    assert to_matrix(sound).shape == (100, len(FEATURES))
    for row in range(3):
        (faulty,) = generate(3, seed=1, fault_share=1.0)
        with pytest.raises(ValueError, match="expected"):
            to_matrix(faulty.slice(row, 1))


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"score": pa.array([1.0])}, "float32"),
        ({"encoded": pa.array([[1, 2, 3]], pa.list_(pa.float32()))}, "4 values"),
        ({"row_id": pa.array([None], pa.string())}, "nulls"),
    ],
)
def test_scores_of_another_form_are_refused(
    tmp_path: Path, columns: dict[str, pa.Array], message: str
) -> None:
    good = {
        "row_id": pa.array(["a"]),
        "score": pa.array([1.0], pa.float32()),
        "encoded": pa.array([[1, 2, 3, 4]], pa.list_(pa.float32())),
    }
    pq.write_table(pa.table(good), tmp_path / "part-0.parquet")
    assert read_scores(tmp_path).ids.tolist() == ["a"]
    pq.write_table(pa.table(good | columns), tmp_path / "part-0.parquet")
    with pytest.raises(ValueError, match=message):
        read_scores(tmp_path)


def test_an_empty_output_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="found none"):
        read_scores(tmp_path)


def test_spread_is_minimum_median_and_maximum() -> None:
    assert spread([3.0, 1.0, 2.0]) == {"min": 1.0, "median": 2.0, "max": 3.0}
    assert spread([1.0, 2.0]) == {"min": 1.0, "median": 1.5, "max": 2.0}


def measured(rows: int, seconds: float) -> Measured:
    return Measured(
        process_seconds=seconds + 2,
        cpu_seconds=seconds + 3,
        peak_bytes=500_000_000,
        other_cpu_share=0.01,
        report=Report(rows=rows, run_seconds=seconds, run_cpu_seconds=seconds + 1),
    )


def rounds() -> dict[str, list[Measured]]:
    return {
        "millrace": [measured(1_000_000, seconds) for seconds in (1.0, 0.5, 2.0)],
        "stock_beam": [measured(200_000, seconds) for seconds in (10.0, 20.0, 8.0)],
        "plain_loop": [measured(1_000_000, 0.8)] * 3,
    }


def test_summary_has_rates_costs_and_ratios_of_medians() -> None:
    summary = summarise(rounds())
    ours = summary["contestants"]["millrace"]
    assert ours["rows_per_second"] == {"min": 5e5, "median": 1e6, "max": 2e6}
    assert ours["run_cpu_seconds_per_million_rows"]["median"] == 2.0
    assert ours["cpu_seconds_per_million_rows"]["median"] == 4.0
    assert ours["peak_mb"]["max"] == 500.0
    assert [one["run_seconds"] for one in ours["rounds"]] == [1.0, 0.5, 2.0]
    assert summary["ratios"] == {"millrace/stock_beam": 50.0, "millrace/plain_loop": 0.8}


def test_ratios_need_both_contestants() -> None:
    assert ratios({"stock_beam": {"rows_per_second": {"median": 1.0}}}) == {}


def test_summary_refuses_rounds_of_different_sizes() -> None:
    with pytest.raises(ValueError, match="unpack"):
        summarise({"millrace": [measured(1, 1.0), measured(2, 1.0)]})


def test_a_report_is_the_last_line() -> None:
    text = 'noise\n{"rows": 5, "run_seconds": 0.5, "run_cpu_seconds": 0.7}\n'
    assert read_report(text) == Report(5, 0.5, 0.7)


@pytest.mark.parametrize("text", ["", "noise", "{}", "[1]"])
def test_output_without_a_report_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected a report"):
        read_report(text)


def test_the_command_of_millrace_names_every_flag_once() -> None:
    flags = command_line(Task(Path("in.parquet"), Path("out"), Path("model")))
    names = flags[::2]
    assert all(name.startswith("--") for name in names)
    assert len(set(names)) == len(names)


def test_the_contestant_millrace_reports_how_many_rows_it_wrote(
    example: Path, tmp_path: Path
) -> None:
    rows = tmp_path / "rows.parquet"
    write_parquet(rows, 300, seed=4)
    command = [sys.executable, "-m", "benchmarks.files.millrace", "--input", str(rows)]
    command += ["--output", str(tmp_path / "out"), "--model", str(example / "model")]
    assert measure(command).report.rows == 300


def test_results_contain_versions_and_machine() -> None:
    assert versions()["torch"].startswith(torch.__version__.split("+")[0])
    assert describe_machine()["cores"] >= 1  # type: ignore[operator]


def test_chart_is_drawn(tmp_path: Path) -> None:
    machine = {"cores": 2, "cpu": "some CPU"}
    sizes = [{"rows": 1_000_000, **summarise(rounds())}]
    draw({"machine": machine, "latent": 4, "sizes": sizes}, tmp_path / "chart.png")
    assert (tmp_path / "chart.png").read_bytes().startswith(b"\x89PNG")
