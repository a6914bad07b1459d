"""The figures of a run's scores cover all its rows, however the rows are split."""

import math
from random import Random

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pytest
from apache_beam.testing.util import assert_that, equal_to
from hypothesis import given
from hypothesis import strategies as st

from transforms.score_figures import DescribeScores, Figures, as_report, describe_scores, merge

VALUES = st.lists(st.floats(-1e6, 1e6), max_size=40)


@given(st.lists(VALUES, max_size=6), st.randoms())
def test_merging_parts_in_any_order_gives_the_figures_of_the_whole(
    parts: list[list[float]], any_order: Random
) -> None:
    whole = as_report(describe_scores(np.array([v for part in parts for v in part])))
    figures = [describe_scores(np.array(part)) for part in parts]
    any_order.shuffle(figures)
    at = any_order.randint(0, len(figures))
    # Merge in two steps, as a runner does.
    found = as_report(merge([merge(figures[:at]), merge(figures[at:])]))
    assert (found is None) == (whole is None) == (not any(parts))
    if found is not None and whole is not None:
        for name, value in whole.items():
            assert math.isclose(found[name], value, rel_tol=1e-9, abs_tol=1e-5), name


def test_figures_are_the_usual_statistics() -> None:
    values = np.random.default_rng(1).normal(3, 2, 1_000).astype(np.float32)
    exact = values.astype(np.float64)
    found = as_report(describe_scores(values))
    assert found == {
        "mean": exact.mean(),
        "std": exact.std(ddof=1),
        "min": exact.min(),
        "max": exact.max(),
    }
    assert as_report(describe_scores(np.array([7]))) == {"mean": 7, "std": 0, "min": 7, "max": 7}


@pytest.mark.parametrize(
    ("batches", "expected"),
    [([], []), ([[1.0, 2.0]], [(2, 1.5, 0.5, 1, 2)]), ([[1, 2], [6]], [(3, 3.0, 14.0, 1, 6)])],
)
@pytest.mark.slow
def test_the_transform_returns_one_element_for_all_batches(
    batches: list[list[float]], expected: list[Figures]
) -> None:
    rows = [pa.record_batch({"score": pa.array(values, pa.float64())}) for values in batches]
    with beam.Pipeline(runner="FnApiRunner") as pipeline:
        figures = pipeline | beam.Create(rows) | DescribeScores("score")
        assert_that(figures, equal_to(expected))
    assert as_report(merge([])) is None
