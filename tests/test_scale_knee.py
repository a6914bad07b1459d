"""Levels are judged, and the search finds the capacity of a known server."""

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from libraries import need_library
from virtual_server import level, open_loop, results, sent

from scale_tests.load.plan import Bisection, Constant, Objective, Sender
from scale_tests.load.schedule import due_times, probe
from scale_tests.measures.accounts import Fate, settle
from scale_tests.measures.backlog import Growth, backlog, growth
from scale_tests.measures.knee import find_knee
from scale_tests.measures.level import Judgement, Level, Verdict, judge

OBJECTIVE = Objective(latency_ms=200)
SENDER = Sender()
SECONDS = 60.0
SEARCH = Bisection(lowest=10, highest=2_000, seconds=SECONDS, precision=0.01)


@pytest.fixture(autouse=True)
def _libraries() -> None:
    need_library("hdrh")
    need_library("scipy")


def server(
    capacity: float, servers: int = 1, arrivals: str = "constant"
) -> Callable[[float], Judgement]:
    """Return what a test of a server says that answers `capacity` messages a second at most."""

    def measure(rate: float) -> Judgement:
        phase = probe(SEARCH, rate)
        due = due_times(phase, arrivals, (1,))  # type: ignore[arg-type]
        answered = open_loop(due, np.full(len(due), servers / capacity), servers)
        return judge(level(due, answered, SECONDS), OBJECTIVE, SENDER)

    return measure


@pytest.mark.parametrize(("capacity", "servers"), [(100.0, 1), (100.0, 4), (437.0, 2)])
def test_the_capacity_of_a_known_server_is_recovered(capacity: float, servers: int) -> None:
    knee = find_knee(server(capacity, servers), SEARCH)
    # Above its capacity c, a server is behind by (rate/c - 1) * t after t seconds. So p99 meets the
    # objective up to this rate.
    waiting = OBJECTIVE.latency_ms / 1e3 - servers / capacity
    limit = capacity * (1 + waiting / (0.99 * SECONDS))
    assert knee.sustained is not None
    assert knee.failed is not None
    assert capacity * 0.98 <= knee.sustained <= limit * 1.001
    assert limit * 0.999 <= knee.failed <= knee.sustained * 1.01
    assert knee.probes[-1].rate == knee.sustained


def test_random_arrivals_leave_less_of_the_capacity() -> None:
    constant, random = (
        find_knee(server(100, arrivals=arrivals), SEARCH).sustained
        for arrivals in ("constant", "poisson")
    )
    assert constant is not None
    assert random is not None
    assert 70 < random < constant


def test_a_server_that_sustains_every_rate_has_no_failed_rate() -> None:
    knee = find_knee(server(1e6), SEARCH)
    assert (knee.sustained, knee.failed) == (SEARCH.highest, None)
    assert [probe.rate for probe in knee.probes] == [10, 2_000, 2_000]


def test_a_server_that_does_not_sustain_the_lowest_rate_has_no_knee() -> None:
    knee = find_knee(server(1), SEARCH)
    assert (knee.sustained, knee.failed, len(knee.probes)) == (None, 10, 1)


def scripted(verdicts: Iterator[Verdict]) -> Callable[[float], Judgement]:
    return lambda _: Judgement(next(verdicts), ("why",))


def test_a_rate_that_is_not_sustained_again_is_not_the_knee() -> None:
    search = Bisection(lowest=10, highest=40, seconds=1, precision=1)
    good, bad = Verdict.SUSTAINED, Verdict.FAILED
    # 10, 40, 20, then 20 again fails, so 10 is tried again.
    knee = find_knee(scripted(iter([good, bad, good, bad, good])), search)
    assert [round(probe.rate) for probe in knee.probes] == [10, 40, 20, 20, 10]
    assert (knee.sustained, knee.failed) == (10, 20)


def test_the_search_goes_on_below_a_rate_that_cannot_be_judged() -> None:
    def measure(rate: float) -> Judgement:
        return Judgement(Verdict.INVALID if rate > 100 else Verdict.SUSTAINED, ("late",))

    knee = find_knee(measure, SEARCH)
    assert knee.sustained is not None
    assert 99 <= knee.sustained <= 100
    # The sender has a limit. That of the system is not known.
    assert knee.failed is None
    assert knee.reason.endswith("/s is invalid: late")
    good, bad, invalid = Verdict.SUSTAINED, Verdict.FAILED, Verdict.INVALID
    search = Bisection(lowest=10, highest=40, seconds=1, precision=1)
    # 10, 40 twice, 20 fails, so the limit is known, and 10 is tried again.
    knee = find_knee(scripted(iter([good, invalid, invalid, bad, good])), search)
    assert (knee.sustained, round(knee.failed or 0), knee.reason) == (10, 20, "")


def test_a_rate_that_cannot_be_judged_is_tried_twice() -> None:
    good, invalid = Verdict.SUSTAINED, Verdict.INVALID
    knee = find_knee(scripted(iter([good, invalid, good, good])), SEARCH)
    assert (knee.sustained, knee.reason) == (2_000, "")
    knee = find_knee(scripted(iter([invalid, invalid])), SEARCH)
    assert (knee.sustained, knee.failed, knee.reason) == (None, None, "10/s is invalid: why")


def test_the_search_ends_if_its_result_cannot_be_judged_again() -> None:
    search = Bisection(lowest=10, highest=20, seconds=1, precision=1)
    good, bad, invalid = Verdict.SUSTAINED, Verdict.FAILED, Verdict.INVALID
    knee = find_knee(scripted(iter([good, bad, invalid, invalid])), search)
    assert (knee.sustained, knee.failed, knee.reason) == (10, None, "10/s is invalid: why")


def test_an_incomplete_rate_ends_the_search() -> None:
    knee = find_knee(scripted(iter([Verdict.SUSTAINED, Verdict.INCOMPLETE])), SEARCH)
    assert (knee.sustained, knee.reason) == (10, "2,000/s is incomplete: why")


def test_a_limit_of_requests_in_flight_shows_that_a_rate_is_too_high() -> None:
    due = due_times(Constant(rate=100, seconds=10), "constant", ())
    slow = level(due, due + 0.3, 10)
    slow.ledger.sent.at[500:] = np.nan
    slow.ledger.fate[500:] = Fate.UNSENT
    full = replace(slow, refused_by_limit=500)
    # At 100 requests a second, 20 wait while answers take 200 ms.
    for limit, overloaded in ((21, True), (20, False)):
        found = judge(full, OBJECTIVE, Sender(in_flight=limit))
        assert (found.verdict, found.overloaded) == (Verdict.INVALID, overloaded)
        assert found.reasons == (
            f"500 of 1,000 messages were not sent, because {limit} waited for answers",
        )
    # A sender that is late may itself be the reason.
    late = replace(full, cpu=0.9)
    assert not judge(late, OBJECTIVE, Sender(in_flight=21)).overloaded


def test_the_search_goes_on_below_a_rate_that_reached_the_limit_in_flight() -> None:
    def measure(rate: float) -> Judgement:
        if rate > 100:
            return Judgement(Verdict.INVALID, ("full",), overloaded=True)
        return Judgement(Verdict.SUSTAINED)

    knee = find_knee(measure, SEARCH)
    assert knee.reason == ""
    assert knee.sustained is not None
    assert knee.failed is not None
    assert knee.sustained <= 100 < knee.failed <= knee.sustained * 1.01


@given(
    st.lists(
        st.sampled_from([Verdict.SUSTAINED, Verdict.FAILED, Verdict.INVALID]),
        min_size=400,
        max_size=400,
    ),
    st.floats(0.01, 1),
)
def test_the_search_ends_whatever_the_system_does(verdicts: list[Verdict], share: float) -> None:
    search = Bisection(lowest=1, highest=100, seconds=1, precision=share)
    knee = find_knee(scripted(iter(verdicts)), search)
    if knee.sustained and knee.failed:
        assert knee.sustained < knee.failed


def test_the_backlog_is_what_is_due_and_not_answered() -> None:
    due, arrived = np.array([0.0, 1, 2, 3]), np.array([0.5, np.nan, 2.0, 9.0])
    assert backlog(due, arrived, np.array([0, 0.5, 2.0, 10])).tolist() == [1, 0, 1, 1]


def grown(rate: float, seed: int) -> Growth:
    due = due_times(Constant(rate=rate, seconds=SECONDS), "poisson", (seed,))
    return growth(due, open_loop(due, np.full(len(due), 0.01)), 0.0, SECONDS)


@pytest.mark.parametrize(("rate", "grows"), [(80, 0), (120, 20), (200, 100)])
def test_a_backlog_grows_by_what_the_server_cannot_answer(rate: float, grows: float) -> None:
    found = [grown(rate, seed) for seed in range(40)]
    assert np.mean([one.low <= grows <= one.high for one in found]) >= 0.85
    assert all((one.low > 0.01 * rate) == (grows > 0) for one in found)


def sent_level(late: float = 0.0, cpu: float = 0.1, shift: float = 0.0, **lost: int) -> Level:
    due = due_times(Constant(rate=100, seconds=10), "constant", ())
    answered = due + 0.01 + late + shift
    messages = sent(due, late=late)
    if "unsent" in lost:
        messages.at[: lost["unsent"]] = np.nan
    missing = lost.get("lost", 0) + lost.get("unsent", 0)
    found = results(answered[missing:], first=missing)
    closed = 1e6 if "early_end" not in lost else 9.0
    ledger = settle(messages, found, closed, 30.0)
    return Level(name="constant", start=0, seconds=10, ledger=ledger, cpu=cpu)


def test_a_level_whose_load_was_not_as_planned_is_not_judged() -> None:
    for made, reason in (
        (sent_level(late=0.06), "sent 60 ms late, expected at most 50 ms"),
        (sent_level(cpu=0.9), "a sender used 90% of a core, expected at most 80%"),
        (sent_level(unsent=3), "3 of 1,000 messages were not sent"),
        (sent_level(shift=-0.1), "the clocks of sender and collector differ"),
    ):
        found = judge(made, Objective(latency_ms=0.001), SENDER)
        assert found.verdict is Verdict.INVALID
        assert reason in found.reasons[0]


def test_a_level_that_ended_early_shows_no_percentile() -> None:
    made = sent_level(lost=5, early_end=1)
    assert made.latencies() is None
    found = judge(made, OBJECTIVE, SENDER)
    assert found == Judgement(Verdict.INCOMPLETE, ("5 messages had no result when the test ended",))


def test_a_level_fails_for_each_reason() -> None:
    found = judge(sent_level(lost=20), Objective(latency_ms=5), SENDER)
    assert found.verdict is Verdict.FAILED
    assert found.reasons == (
        "20 messages were lost",
        "0.00% were answered rightly in time, expected 99.00%",
    )
    found = judge(sent_level(), Objective(latency_ms=5, goodput=0), SENDER)
    assert found.reasons == ("p99 is 10 ms, expected at most 5 ms",)
    overloaded = server(100)(150)
    assert "the backlog grew by 50.0 messages/s" in overloaded.reasons


def test_a_level_with_few_messages_is_not_judged() -> None:
    due = due_times(Constant(rate=10, seconds=10), "constant", ())
    found = judge(level(due, due + 0.01, 10), OBJECTIVE, SENDER)
    assert found == Judgement(Verdict.INSUFFICIENT, ("100 messages are too few for p99",))


def test_a_burst_is_judged_without_a_rate() -> None:
    due = np.zeros(1_000)
    burst = level(due, open_loop(due, np.full(1_000, 1e-4)), 0)
    assert np.isnan(burst.rate)
    assert np.isnan(burst.throughput)
    assert judge(burst, OBJECTIVE, SENDER).verdict is Verdict.SUSTAINED
