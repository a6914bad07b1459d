"""The progress of a stream: counts add up, and nothing is recorded unless it is reported."""

import datetime
import pickle
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from cloud.clients import Cloud
from cloud.endpoints import Endpoints
from common import measures
from common.errors import BalanceError
from common.interrupts import Background
from common.measures import MESSAGES, ROWS, TIMES, Seen, seen
from common.record_batch import MESSAGE
from pipelines.options import StreamRunOptions
from pipelines.stream import progress as stream_progress
from pipelines.stream.in_process import STOPPING, Reading, watch
from pipelines.stream.latencies import LEAST, MOST, Latencies
from pipelines.stream.progress import (
    Tally,
    check_balance,
    count_dead_letters,
    count_received,
    report_line,
    start_tally,
    summary,
    take_latencies,
)
from transforms.dead_letters import Fault, failure_batch
from transforms.messages.message import Message, message_column
from transforms.provenance import Provenance

NOW = datetime.datetime(2026, 11, 20, 12, tzinfo=datetime.UTC)


@pytest.fixture(autouse=True)
def no_tally(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream_progress, "_tally", None)
    monkeypatch.setattr(measures, "_seen", None)


def batch(rows: int, age_ms: float = 0.0) -> pa.RecordBatch:
    """Return rows of messages that were published `age_ms` milliseconds ago."""
    published = round((time.time() * 1e3 - age_ms) * 1e3)
    messages = [Message(b"", {}, f"m{i}", published, "") for i in range(rows)]
    return pa.record_batch({MESSAGE: message_column(messages, NOW)})


def measured(latencies: np.ndarray) -> Latencies:
    made = Latencies()
    made.add(latencies)
    return made


def letters(provenance: Provenance, stage: Any, rows: int) -> pa.RecordBatch:
    ids, faults = [f"m{i}" for i in range(rows)], [Fault("r", "m")] * rows
    return failure_batch(
        ids, [b""] * rows, faults, stage=stage, provenance=provenance, failed_at=NOW
    )


def measure(*batches: pa.RecordBatch) -> None:
    dofn = stream_progress.MeasureLatency()
    for one in batches:
        assert list(dofn.process(one)) == [one]


def test_nothing_is_recorded_unless_a_tally_was_started(provenance: Provenance) -> None:
    # On the workers of a service, records would grow for as long as a job runs.
    count_received(batch(3))
    count_dead_letters(letters(provenance, "decode", 1))
    measure(batch(3), batch(0))
    assert stream_progress._tally is None


def test_take_latencies_returns_each_row_since_the_last_call() -> None:
    tally = start_tally()
    measure(batch(300, 50.0), batch(1, 5_000.0))
    found = take_latencies(tally)
    assert (len(found), tally.scored) == (301, 301)
    p50, p99, most = found.percentiles([50, 99.6, 100])
    assert 49 < p50 <= p99 < 5_000 <= most * 1.01
    assert len(take_latencies(tally)) == 0


@given(arrays(np.float64, st.integers(1, 200), elements=st.floats(LEAST, MOST)))
def test_percentiles_of_latencies_are_at_most_half_a_percent_off(values: np.ndarray) -> None:
    found = measured(values)
    assert len(found) == len(values)
    percents = [0, 50, 95, 99, 100]
    exact = np.percentile(values, percents, method="inverted_cdf")
    assert found.percentiles(percents) == pytest.approx(exact, rel=0.00501)


def test_latencies_of_any_size_are_counted() -> None:
    found = measured(np.array([-1e12, -1.0, 0.0, 1e-9, 1e300]))
    assert found.percentiles([50, 100]) == [LEAST, pytest.approx(MOST, rel=0.01)]
    with pytest.raises(ValueError, match="no latencies"):
        Latencies().percentiles([50])


def test_latencies_need_the_same_memory_however_many_there_are() -> None:
    found = Latencies()
    before = len(pickle.dumps(found))
    for _ in range(100):
        found.add(np.linspace(1.0, 1e4, 10_000))
    assert len(found) == 1_000_000
    assert len(pickle.dumps(found)) == before


def test_the_balance_holds_if_an_output_refuses_rows(provenance: Provenance) -> None:
    tally = start_tally()
    count_received(batch(10))
    measure(batch(8))
    count_dead_letters(letters(provenance, "decode", 1))
    count_dead_letters(letters(provenance, "infer", 1))
    count_dead_letters(letters(provenance, "write", 2))
    assert summary(tally, 12.0).splitlines() == [
        "received                10  in 12 s",
        "scored                   8",
        "dead letters             2",
        "refused                  2  scored rows that a sink refused; they were also written as "
        "dead letters, but are not counted in the line above",
        "balance       rows received = scored + dead letters",
    ]


@pytest.mark.parametrize(
    ("scored", "words"), [(7, "1 rows missing"), (9, "1 rows too many"), (8, "rows received =")]
)
def test_missing_rows_are_reported(scored: int, words: str) -> None:
    printed = summary(Tally(received=10, scored=scored, dead_letters=2), 1.0)
    assert printed.splitlines()[-1].startswith(f"balance       {words}")
    assert "refused" not in printed


@pytest.mark.parametrize(
    ("tally", "words"),
    [
        (Tally(pulled=9, decoded=8, received=8, scored=8), "9 were pulled, 8 were decoded"),
        (Tally(pulled=9, decoded=10, received=9, scored=9), "9 were pulled, 10 were decoded"),
        (
            Tally(received=10, scored=7, dead_letters=2),
            "10 were received, 7 were scored, 2 are dead letters",
        ),
        (Tally(pulled=9, decoded=9, received=20, scored=18, dead_letters=2), None),
        (Tally(pulled=9, decoded=9, received=9, scored=9, dropped=2), None),
        (Tally(), None),
    ],
)
def test_a_run_in_which_messages_or_rows_are_missing_fails(tally: Tally, words: str | None) -> None:
    with nullcontext() if words is None else pytest.raises(BalanceError, match=words):
        check_balance(tally, made=False)


@pytest.mark.parametrize(
    "tally", [Tally(pulled=9, decoded=8, received=8, scored=8), Tally(received=1)]
)
def test_an_unbalanced_run_says_what_happens_to_its_messages(tally: Tally) -> None:
    with pytest.raises(BalanceError, match="unacknowledged messages will be delivered again: run"):
        check_balance(tally, made=False)
    lost = (
        "unacknowledged messages are lost, because the subscription that was created for this run"
    )
    with pytest.raises(BalanceError, match=f"{lost} is deleted: run the command again"):
        check_balance(tally, made=True)


def test_decoded_messages_are_counted_after_a_tally_was_started() -> None:
    MESSAGES.add(3)
    tally = start_tally()
    MESSAGES.add(4)
    tally.decoded = seen(MESSAGES).total
    printed = summary(replace(tally, pulled=5), 1.0).splitlines()
    assert printed[0] == "messages                 5  of which 4 were decoded"
    dropped = summary(replace(tally, pulled=4, dropped=2), 1.0).splitlines()[0]
    assert dropped == (
        "messages                 4  of which 4 were decoded; 2 duplicates were dropped"
    )


def test_a_progress_line_has_the_rate_and_latencies() -> None:
    tally = Tally(
        received=1_234,
        scored=1_200,
        dead_letters=30,
        refused=4,
        latencies=measured(np.arange(1_001.0)),
    )
    assert report_line(tally, 500, 10.0) == (
        "   1,234 received    1,200 scored    30 dead letters     4 refused"
        "    50.0 rows/s  latency ms p50 500 p95 946 p99 994"
    )
    tally.refused = 0
    assert report_line(tally, 0, 10.0) == (
        "   1,234 received    1,200 scored    30 dead letters     0.0 rows/s"
    )


def test_a_progress_line_has_the_mean_size_of_the_bundles_since_the_last_one() -> None:
    tally = start_tally()
    tally.received = tally.scored = 9_999_999
    tally.latencies = measured(np.full(10, 990.0))
    for size in (1, 2, 9):
        MESSAGES.add(size)
    line = report_line(tally, 4_000, 1.0)
    assert " 4,000.0 rows/s   4.0 a bundle  latency ms p50" in line
    assert len(line) <= 120
    MESSAGES.add(40)
    assert "40.0 a bundle" in report_line(tally, 0, 1.0)
    assert "a bundle" not in report_line(tally, 0, 1.0)


def test_a_summary_has_the_sizes_of_bundles_and_batches_and_the_times_of_steps() -> None:
    tally = start_tally()
    for size in (1, 2, 9):
        MESSAGES.add(size)
    ROWS.add(5_000)
    with TIMES["decode"].timed():
        pass
    TIMES["append"].add(89_996)
    lines = summary(tally, 1.0).splitlines()
    assert lines[3] == "bundles                  3  of 4.0 messages, at most 9"
    assert lines[4] == "batches                  1  of 5,000.0 rows, at most 5,000"
    assert re.fullmatch(r"mean ms +decode 0\.\d\d, append 90\.00", lines[5])
    # Another run of this process starts from nothing.
    assert "bundles" not in summary(start_tally(), 1.0)


def test_measures_of_a_service_are_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measures, "_seen", None)
    MESSAGES.add(3)
    assert (measures._seen, seen(MESSAGES)) == (None, Seen())
    with pytest.raises(ValueError, match="broken"), TIMES["model"].timed():
        raise ValueError("broken")


# Ctrl-C


class Endless:
    """A pipeline and its intake in one object, which does not end."""

    unfinished = 7
    quiet_seconds = 0.0
    given = dropped = 0
    waits_until = None

    def __init__(self) -> None:
        self.calls: list[str] = []
        self._ended = threading.Event()

    def run(self) -> None:
        self._ended.wait()

    def end(self) -> None:
        self.calls.append("end")
        self._ended.set()

    def finish(self) -> None:
        self.calls.append("finish")


def interrupting(times: int, really: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that waits, with Ctrl-C pressed in the first calls."""
    presses: Iterator[int] = iter(range(times))

    def pressed(*args: Any) -> Any:
        if next(presses, None) is not None:
            raise KeyboardInterrupt
        return really(*args)

    return pressed


@pytest.mark.parametrize(("times", "made"), [(1, False), (2, False), (2, True)])
def test_ctrl_c_lets_the_run_end_and_a_second_one_does_not(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], times: int, made: bool
) -> None:
    monkeypatch.setattr(Background, "wait", interrupting(times, Background.wait))
    endless = Endless()
    cloud = Cloud("some-project", Endpoints(pubsub="127.0.0.1:1"))

    def run() -> None:
        reading = Reading(subscription="s", reader="reader", made=made, cloud=cloud)
        watch(endless.run, endless, reading, StreamRunOptions())  # type: ignore[arg-type]

    if times == 1:
        run()
    else:
        fate = (
            "they are lost, because the subscription that was created for this run is deleted"
            if made
            else "they will be delivered again"
        )
        with pytest.raises(KeyboardInterrupt, match=f"7 messages are not acknowledged: {fate}"):
            run()
    printed = capsys.readouterr().err
    assert printed.startswith(f"\n{STOPPING}\n")
    assert ("balance" in printed) == (times == 1)
    assert endless.calls == (["end", "finish"] if times == 1 else ["end"])


def test_messages_of_an_unbalanced_run_are_not_acknowledged() -> None:
    class LosesRows(Endless):
        def run(self) -> None:
            count_received(pa.record_batch({"row_id": ["a", "b"]}))

    loses = LosesRows()
    cloud = Cloud("some-project", Endpoints(pubsub="127.0.0.1:1"))
    reading = Reading(subscription="s", reader="reader", made=False, cloud=cloud)
    with pytest.raises(BalanceError, match="2 were received, 0 were scored"):
        watch(loses.run, loses, reading, StreamRunOptions())  # type: ignore[arg-type]
    assert "finish" not in loses.calls


def test_an_interrupted_run_says_so_if_all_its_messages_are_acknowledged() -> None:
    cloud = Cloud("some-project", Endpoints(pubsub="127.0.0.1:1"))
    reading = Reading(subscription="s", reader="reader", made=True, cloud=cloud)
    assert reading.left(0) == "all received messages are acknowledged"
