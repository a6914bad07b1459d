"""Where the time goes, and what follows from the levels of a test."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from virtual_server import level, open_loop

from scale_tests.load.plan import Constant
from scale_tests.load.schedule import due_times
from scale_tests.measures.findings import bottleneck, confirm, sustainable_rate
from scale_tests.measures.knee import Knee, Probe
from scale_tests.measures.level import Judgement, Level, Verdict
from scale_tests.measures.stamps import AT_ENDPOINT, MOMENTS, Order, breakdown, refine

GOOD, BAD = Judgement(Verdict.SUSTAINED), Judgement(Verdict.FAILED, ("slow",))


def knee(rate: float | None, failed: float | None = None) -> Knee:
    return Knee(rate, failed, (Probe(rate or 1.0, GOOD if rate else BAD),))


@pytest.mark.parametrize("order", [MOMENTS, AT_ENDPOINT])
@given(data=st.data(), count=st.integers(1, 20))
def test_the_parts_add_up_to_the_latency(order: Order, data: st.DataObject, count: int) -> None:
    every = [name for name, _ in order]
    names = data.draw(st.sets(st.sampled_from(every), min_size=2))
    gaps = st.lists(st.floats(0, 10), min_size=count, max_size=count)
    times = np.cumsum([data.draw(gaps) for _ in every], axis=0)
    moments = {name: row for name, row in zip(every, times, strict=True) if name in names}
    ordered = [moments[name] for name in every if name in names]
    parts = breakdown(moments)
    assert sum(part.mean_ms for part in parts) == pytest.approx(
        float((ordered[-1] - ordered[0]).mean() * 1e3), abs=1e-6
    )
    assert len(parts) == len(names) - 1
    assert all(part.count == count and part.clock_ms <= 1e-6 for part in parts)


def test_parts_whose_moment_is_not_known_are_one_part() -> None:
    parts = breakdown({"due": np.zeros(2), "received_at": np.ones(2), "arrived": np.full(2, 3.0)})
    assert [(part.name, part.mean_ms) for part in parts] == [
        ("sender + publish + queue", 1_000),
        ("pipeline + encode + sink + delivery", 2_000),
    ]


def test_an_endpoint_is_a_part_of_its_own() -> None:
    times = {name: np.full(3, float(i)) for i, (name, _) in enumerate(AT_ENDPOINT)}
    names = [part.name for part in breakdown(times)]
    assert names == [part for _, part in AT_ENDPOINT[1:]]
    assert set(names) ^ {part for _, part in MOMENTS[1:]} == {"endpoint", "predict"}


def test_messages_without_a_moment_do_not_count_and_clocks_that_differ_are_reported() -> None:
    parts = breakdown(
        {"sent": np.array([0.0, 0.0, np.nan]), "event_time": np.array([0.5, -0.02, 1.0])}
    )
    assert [(part.name, part.count) for part in parts] == [("publish", 2)]
    assert parts[0].clock_ms == pytest.approx(20)
    assert breakdown({}) == ()
    assert breakdown({"sent": np.array([np.nan]), "arrived": np.array([1.0])}) == ()
    with pytest.raises(ValueError, match="got published"):
        breakdown({"published": np.zeros(1)})


def test_a_part_is_split_by_the_counters_of_the_pipeline() -> None:
    parts = breakdown({"received_at": np.zeros(4), "scored_at": np.ones(4)})
    finer = refine(parts, "pipeline", {"decode": 100.0, "predict": 600.0})
    assert [(part.name, part.mean_ms) for part in finer] == [
        ("decode", 100),
        ("predict", 600),
        ("other", 300),
    ]
    assert refine(parts, "queue", {"decode": 1.0}) == parts
    # More than the whole cannot be: the counters are those of other messages.
    assert refine(parts, "pipeline", {"predict": 1_500.0})[-1].clock_ms == 500


def served(rate: float, queue: float, sink: float) -> Level:
    """Return a level of a queue before a pipeline and a sink, which take these seconds each."""
    due = due_times(Constant(rate=rate, seconds=60), "poisson", (1,))
    scored = open_loop(due, np.full(len(due), queue))
    arrived = open_loop(scored, np.full(len(due), sink))
    moments = {
        "event_time": due,
        "received_at": scored - queue,
        "scored_at": scored,
        "encoded_at": scored,
        "arrived": arrived,
    }
    return replace(level(due, arrived, 60), parts=breakdown(moments))


@pytest.mark.parametrize(
    ("queue", "sink", "resource"), [(0.01, 0.001, "pipeline"), (0.001, 0.01, "sink")]
)
def test_the_bottleneck_is_where_messages_wait(queue: float, sink: float, resource: str) -> None:
    found = bottleneck(served(20, queue, sink), served(99, queue, sink))
    assert (found.value, found.confidence) == (resource, "medium")
    assert found.evidence[1].startswith(
        "pipeline takes 100% of the time" if resource == "pipeline" else "queue: "
    )
    assert len([text for text in found.evidence if " in flight at " in text]) == 4
    assert any("--row_timings" in text for text in found.evidence) == (resource == "pipeline")


def timed(rate: float, own: float, endpoint: float, sink: float) -> Level:
    """Return a level of a stream with --row_timings, which works for these seconds on a message."""
    due = due_times(Constant(rate=rate, seconds=60), "poisson", (1,))
    published = open_loop(due, np.full(len(due), own + endpoint + sink))
    moments = {
        "event_time": due,
        "received_at": published - sink - endpoint - own,
        "decoded_at": published - sink - endpoint,
        "requested_at": published - sink - endpoint,
        "scored_at": published - sink,
        "encoded_at": published - sink,
        "published_at": published,
        "arrived": published,
    }
    return replace(level(due, published, 60), parts=breakdown(moments))


@pytest.mark.parametrize(
    ("own", "endpoint", "sink", "resource"),
    [
        (0.001, 0.007, 0.002, "endpoint"),
        (0.001, 0.002, 0.007, "sink"),
        (0.007, 0.001, 0.002, "pipeline"),
        (0.004, 0.003, 0.003, "pipeline"),
    ],
)
def test_messages_in_the_queue_wait_for_what_the_pipeline_spends_its_time_on(
    own: float, endpoint: float, sink: float, resource: str
) -> None:
    found = bottleneck(timed(20, own, endpoint, sink), timed(99, own, endpoint, sink))
    assert (found.value, found.confidence) == (resource, "medium")
    assert found.evidence[0].startswith("queue has ")
    named = "takes 70% of the time that the pipeline needs" in found.evidence[1]
    assert named == (max(own, endpoint, sink) == 0.007)


def test_a_joined_part_names_all_its_resources() -> None:
    def of_table(rate: float) -> Level:
        one = served(rate, 0.001, 0.01)
        *others, encode, sink = one.parts
        joined = replace(sink, name="encode + sink + delivery")
        assert encode.mean_ms == 0
        return replace(one, parts=(*others, joined))

    found = bottleneck(of_table(20), of_table(99))
    assert (found.value, found.confidence) == ("pipeline or sink", "medium")


def test_a_bottleneck_needs_levels_that_show_one() -> None:
    quiet, busy = served(10, 1e-4, 1e-4), served(20, 1e-4, 1e-4)
    skewed = replace(quiet, parts=(replace(quiet.parts[0], clock_ms=7.0), *quiet.parts[1:]))
    for found, reason in (
        (bottleneck(busy, quiet), "two rates"),
        (bottleneck(replace(quiet, parts=()), busy), "two rates"),
        (bottleneck(quiet, busy), "no part waits more"),
        (bottleneck(skewed, busy), "the clocks differ by 7 ms"),
        (bottleneck(replace(quiet, parts=quiet.parts[1:]), busy), "different parts"),
    ):
        assert (found.value, found.confidence) == (None, "insufficient data")
        assert reason in found.evidence[0]


def test_increasing_a_resource_confirms_the_bottleneck_or_contradicts_it() -> None:
    found = bottleneck(served(20, 0.01, 0.001), served(99, 0.01, 0.001))
    assert (found.value, found.confidence) == ("pipeline", "medium")
    for resource, after, confidence in (
        ("pipeline", 190, "high"),
        ("pipeline", 101, "low"),
        ("sink", 190, "low"),
        ("sink", 101, "medium"),
    ):
        confirmed = confirm(found, resource, 100, after, 0.05)
        assert (confirmed.value, confirmed.confidence) == ("pipeline", confidence)
        assert confirmed.evidence[0].startswith(f"with more of {resource}, the largest")


def test_a_sustained_rate_is_sure_if_a_higher_one_failed() -> None:
    found = sustainable_rate(knee(100, 105))
    assert (found.value, found.unit, found.confidence) == (100, "messages/s", "high")
    assert not any("highest" in text for text in found.evidence)
    limit = sustainable_rate(knee(100))
    assert limit.confidence == "medium"
    assert limit.evidence[0] == "no rate failed: raise highest in the plan"
    none = sustainable_rate(replace(knee(None, 10), reason="1/s is invalid: late"))
    assert (none.value, none.confidence) == (None, "insufficient data")
    assert none.evidence == ("1/s is invalid: late", "1/s: not sustained; slow")
