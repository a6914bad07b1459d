"""A test has the tier of the most expensive thing that it uses, and may not exceed its tier."""

import subprocess
import sys
import threading
from contextlib import suppress
from multiprocessing import Process

import apache_beam as beam
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiers import FAST, confined, tier_of


def starts_a_process() -> None:
    subprocess.run([sys.executable, "-c", ""], check=True)


class Scores:
    """A helper of a test that runs a pipeline in a property."""

    @property
    def total(self) -> int:
        with beam.Pipeline("FnApiRunner") as pipeline:
            _ = pipeline | beam.Create([1])
        return 1


def test_a_test_of_values_is_pure(request: pytest.FixtureRequest) -> None:
    assert tier_of(request.node) == "pure"


def test_a_pipeline_in_a_helper_of_the_test_counts(request: pytest.FixtureRequest) -> None:
    assert tier_of(request.node) == "beam"
    assert isinstance(Scores, type)


def test_a_command_that_runs_in_this_process_counts(
    request: pytest.FixtureRequest, run_command: object
) -> None:
    assert tier_of(request.node) == "beam"


def test_a_process_in_a_helper_of_the_test_counts(request: pytest.FixtureRequest) -> None:
    assert tier_of(request.node) == "process"
    starts_a_process()


@given(number=st.integers())
def test_what_a_property_test_uses_counts(request: pytest.FixtureRequest, number: int) -> None:
    assert tier_of(request.node) == "process"
    if number == 0:
        starts_a_process()


@pytest.mark.parametrize("tier", FAST)
def test_a_process_in_a_fast_tier_fails_the_test(tier: str) -> None:
    with confined(tier) as tried:
        with pytest.raises(pytest.fail.Exception, match=f"starts a process, .* to be `{tier}`"):
            starts_a_process()
        with pytest.raises(pytest.fail.Exception, match="starts a process"):
            Process(target=print).start()
    assert len(tried) == 2
    starts_a_process()


def test_a_pipeline_in_a_pure_test_fails_the_test() -> None:
    pipeline = beam.Pipeline("FnApiRunner")
    _ = pipeline | beam.Create([1])
    with confined("pure"), pytest.raises(pytest.fail.Exception, match="runs a pipeline"):
        pipeline.run()
    with confined("beam") as tried:
        pipeline.run()
    assert tried == []


def test_a_pipeline_for_which_beam_would_choose_the_runner_fails_the_test() -> None:
    pipeline = beam.Pipeline()
    _ = pipeline | beam.Create([1])
    with confined("beam"), pytest.raises(pytest.fail.Exception, match="names no runner"):
        pipeline.run()


def test_a_process_that_a_thread_starts_ends_the_wait_for_the_thread() -> None:
    def quietly() -> None:
        with suppress(pytest.fail.Exception):
            starts_a_process()

    def wait_in_vain() -> None:
        threading.Thread(target=quietly, daemon=True).start()
        threading.Event().wait()

    with confined("pure"), pytest.raises(pytest.fail.Exception, match="starts a process"):
        wait_in_vain()
