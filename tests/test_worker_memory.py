"""A run estimates the memory of its workers, and says before the start what does not fit."""

from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
from apache_beam.options.pipeline_options import DebugOptions, PipelineOptions
from hypothesis import given
from hypothesis import strategies as st

from common.errors import UsageError
from common.machine_memory import machine_memory
from model_handlers.manifests.manifest import Format
from pipelines.batch import memory
from pipelines.batch.memory import check_memory_needed
from pipelines.dataflow.machine_types import ONE_PROCESS, larger_types, machine_type
from pipelines.worker_memory import LOADED_TIMES, PROCESS_BYTES, Work, memory_needed

GB = 1 << 30
SMALL = Work(
    package_bytes=1 << 20,
    loaded_times=2,
    batch_rows=32_768,
    batch_bytes=256 << 20,
    source_row=248,
    input_row=120,
    output_row=100,
)


def on_dataflow(machine: str, *more: str) -> PipelineOptions:
    return PipelineOptions(["--runner", "DataflowRunner", "--machine_type", machine, *more])


def test_the_estimate_is_the_sum_of_its_formula() -> None:
    need = memory_needed(replace(SMALL, processes=2, threads=3, ahead_rows=10, writers=2))
    assert need.processes == 2 * PROCESS_BYTES
    assert need.models == 2 * 2 * (1 << 20)
    assert memory_needed(replace(SMALL, loaded_times=4)).models == 4 * (1 << 20)
    assert need.batches == 6 * (32_768 * 2 * (248 + 120 + 100) + 10 * 248)
    assert need.writers == 6 * 2 * 2 * (131_072 + 32_768) * 100
    assert need.total == need.processes + need.models + need.batches + need.writers


def test_every_format_has_the_memory_that_loading_it_takes() -> None:
    assert LOADED_TIMES.keys() == {*get_args(Format)}


@given(
    st.integers(1, 1 << 20),
    st.integers(1, 1 << 30),
    st.sampled_from(
        ["package_bytes", "batch_rows", "source_row", "output_row", "ahead_rows", "threads"]
    ),
)
def test_more_of_anything_never_needs_less_memory(rows: int, size: int, name: str) -> None:
    work = replace(SMALL, batch_rows=rows, batch_bytes=size)
    more = replace(work, **{name: getattr(work, name) * 2 + 1})
    if name != "source_row":
        assert memory_needed(more).total >= memory_needed(work).total
    assert memory_needed(work).batches <= 2 * max(size, 248) * 2


@pytest.mark.parametrize(
    ("name", "vcpus", "gb"),
    [
        ("n1-standard-4", 4, 15.0),
        ("n1-highmem-8", 8, 52.0),
        ("e2-standard-2", 2, 8.0),
        ("n2-highmem-16", 16, 128.0),
        ("custom-4-8192", 4, 8.0),
        ("n2-custom-6-20480-ext", 6, 20.0),
    ],
)
def test_a_machine_type_has_the_memory_of_its_family(name: str, vcpus: int, gb: float) -> None:
    found = machine_type(name)
    assert found is not None
    assert (found.vcpus, found.memory / GB) == (vcpus, gb)
    assert all(larger.memory > found.memory for larger in larger_types(found))


@pytest.mark.parametrize("name", ["None", "n1-standard-5", "x9-mega-4", "n1-standard-"])
def test_an_unknown_machine_type_is_not_judged(name: str) -> None:
    assert machine_type(name) is None
    check_memory_needed(replace(SMALL, package_bytes=500 * GB), on_dataflow(name))


def test_a_model_that_fits_once_runs_in_one_process(capsys: pytest.CaptureFixture[str]) -> None:
    options = on_dataflow("n1-standard-4")
    check_memory_needed(replace(SMALL, package_bytes=4 * GB), options)
    assert options.view_as(DebugOptions).experiments == [ONE_PROCESS]
    assert "one process with 4 threads" in capsys.readouterr().err
    small = on_dataflow("n1-standard-4")
    check_memory_needed(SMALL, small)
    assert not small.view_as(DebugOptions).experiments
    assert capsys.readouterr().err.startswith("memory: about ")


def test_what_does_not_fit_a_machine_type_is_refused_with_the_next_one() -> None:
    with pytest.raises(UsageError) as caught:
        check_memory_needed(replace(SMALL, package_bytes=7 * GB), on_dataflow("n1-standard-4"))
    text = str(caught.value)
    assert "\n" not in text
    assert "--machine_type n1-standard-4 has 15.0 GB: use --machine_type n1-highmem-4" in text
    assert "model 14.0 GB" in text
    with pytest.raises(UsageError, match="use a machine type with more memory"):
        check_memory_needed(replace(SMALL, package_bytes=900 * GB), on_dataflow("n1-standard-4"))


def test_a_model_that_does_not_fit_this_machine_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(memory, "machine_memory", lambda: 4 * GB)
    here = PipelineOptions(["--runner", "FnApiRunner"])
    with pytest.raises(UsageError, match=r"the model does not fit: .* has 4\.0 GB"):
        check_memory_needed(replace(SMALL, package_bytes=2 * GB), here)
    wide = replace(SMALL, source_row=100_000, batch_rows=1 << 20, batch_bytes=8 * GB)
    check_memory_needed(wide, here)
    assert capsys.readouterr().err.startswith("warning: memory: about ")
    check_memory_needed(SMALL, here)
    assert capsys.readouterr().err == ""


def test_the_limit_of_a_container_counts_if_it_is_less(tmp_path: Path) -> None:
    machine = machine_memory(())
    assert machine > 1 << 20
    for text, expected in (("max\n", machine), ("1048576\n", 1 << 20), (str(1 << 62), machine)):
        (tmp_path / "limit").write_text(text)
        assert machine_memory((str(tmp_path / "limit"), "/no/such/file")) == expected
