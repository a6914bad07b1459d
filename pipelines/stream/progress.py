"""Rates and latencies of a stream, as Beam metrics and as lines for a run in this process.

A stream does not end, so its results cannot be summed up by the graph. Instead, DoFns of the graph
add their counts to a tally in this module.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from apache_beam.metrics import Metrics

from common.errors import BalanceError
from common.measures import MESSAGES, ROWS, TIMES, Measure, Seen, seen, start_measures
from common.record_batch import MESSAGE, struct_columns
from common.terminal import facts
from pipelines.batch.report_text import decision_facts
from pipelines.stream.latencies import Latencies
from pipelines.stream.unseen import FirstRows, still_unseen, unseen_texts
from transforms.decisions import count_decisions, report_decisions

# Updating a metric takes a microsecond, so only a sample of the rows of a large batch is measured.
SAMPLED_ROWS = 100


@dataclass(kw_only=True)
class Tally:
    """The counts of a run in this process since its start.

    Attributes:
        received: Rows that were decoded, or failed to decode.
        dead_letters: Rows that failed before a sink.
        refused: Rows that were scored, and became dead letters because a sink refused them.
        latencies: The latencies since the last report.
        pulled: Messages that the pipeline received.
        dropped: Duplicates that it did not receive.
        decoded: Messages that were decoded.
        unseen: The names that no row has had although flags name them, and these flags.
        decisions: How many rows have each value of a decision.
        bundles: The sizes of bundles at the last report.
    """

    received: int = 0
    scored: int = 0
    dead_letters: int = 0
    refused: int = 0
    latencies: Latencies = field(default_factory=Latencies)
    pulled: int = 0
    dropped: int = 0
    decoded: int = 0
    unseen: dict[str, str] = field(default_factory=dict)
    decisions: Counter[tuple[str, ...]] = field(default_factory=Counter)
    bundles: Seen = field(default_factory=Seen)


# The distributions of how long a row waited, how long it was processed, and both together.
LATENCIES = ("waited_ms", "processed_ms", "total_ms")

_lock = threading.Lock()
# None unless a run in this process has started it: otherwise no one would take the latencies.
_tally: Tally | None = None


def start_tally(names: Mapping[str, str] = MappingProxyType({})) -> Tally:
    """Return a new tally, to which the DoFns below add from now on.

    Args:
        names: The names that rows are expected to have, and the flag that names each.
    """
    global _tally
    start_measures()
    _tally = Tally(unseen=dict(names))
    return _tally


def count_received(batch: pa.RecordBatch) -> None:
    """Count rows that were decoded, or failed to decode."""
    Metrics.counter("millrace", "rows_received").inc(batch.num_rows)
    with _lock:
        if _tally is not None:
            _tally.received += batch.num_rows
            if _tally.unseen:
                _tally.unseen = still_unseen(_tally.unseen, batch)


class CountReceived:
    """Counts rows like `count_received`, and warns of names that the first rows lack.

    Args:
        names: The names that rows are expected to have, and the flag that names each.
    """

    def __init__(self, names: Mapping[str, str]) -> None:
        self._first = FirstRows(names)

    def __call__(self, batch: pa.RecordBatch) -> None:
        """Count the rows of a batch, or its dead letters."""
        count_received(batch)
        self._first.look_at(batch)


def count_decided(rows: pa.RecordBatch, names: Sequence[str]) -> pa.RecordBatch:
    """Count the decisions of output rows, which the columns with these names hold; return them."""
    with _lock:
        if _tally is not None:
            _tally.decisions.update(dict(count_decisions(rows, names)))
    return rows


def count_dead_letters(failures: pa.RecordBatch) -> None:
    """Count dead letters."""
    Metrics.counter("millrace", "rows_dead_lettered").inc(failures.num_rows)
    with _lock:
        if _tally is not None:
            refused = pc.sum(pc.equal(failures.column("stage"), "write")).as_py() or 0
            _tally.refused += refused
            _tally.dead_letters += failures.num_rows - refused


def take_latencies(tally: Tally) -> Latencies:
    """Return the latencies since the last call."""
    with _lock:
        latencies, tally.latencies = tally.latencies, Latencies()
    return latencies


class MeasureLatency(beam.DoFn):
    """A DoFn that measures the latency of predicted batches, and passes them on unchanged.

    It updates three distributions: waited_ms from publishing to a worker, processed_ms from there
    to the score, and total_ms for both.
    """

    def __init__(self) -> None:
        self._metrics = [Metrics.distribution("millrace", name) for name in LATENCIES]

    def process(self, batch: pa.RecordBatch) -> Iterable[pa.RecordBatch]:
        """Measure a batch."""
        message = struct_columns(batch, MESSAGE)
        now = time.time() * 1e3
        event = np.asarray(message["event_time"].cast(pa.int64())) / 1e3
        received = np.asarray(message["received_at"].cast(pa.int64())) / 1e3
        total = now - event
        step = max(1, len(event) // SAMPLED_ROWS)
        for metric, values in zip(
            self._metrics, (received - event, now - received, total), strict=True
        ):
            for value in values[::step].astype(np.int64).tolist():
                metric.update(value)
        with _lock:
            if _tally is not None:
                _tally.scored += batch.num_rows
                _tally.latencies.add(total)
        return (batch,)


def report_line(tally: Tally, rows: int, seconds: float) -> str:
    """Return a progress line, and clear the latencies that it reports.

    Args:
        tally: The counts of the run.
        rows: Rows received since the last report.
        seconds: Time since the last report.
    """
    latencies = take_latencies(tally)
    line = (
        f"{tally.received:>8,} received {tally.scored:>8,} scored "
        f"{tally.dead_letters:>5,} dead letters "
    )
    if tally.refused:
        line += f"{tally.refused:>5,} refused "
    line += f"{rows / seconds:>7,.1f} rows/s"
    all_bundles = seen(MESSAGES)
    bundles, tally.bundles = all_bundles.since(tally.bundles), all_bundles
    if bundles.count:
        line += f" {bundles.mean:>5,.1f} a bundle"
    if len(latencies):
        p50, p95, p99 = latencies.percentiles([50, 95, 99])
        line += f"  latency ms p50 {p50:,.0f} p95 {p95:,.0f} p99 {p99:,.0f}"
    return line


def measured_facts() -> list[tuple[str, str]]:
    """Return lines with the sizes of bundles and batches, and with the mean times of steps."""

    def sizes(name: str, measure: Measure, what: str) -> list[tuple[str, str]]:
        found = seen(measure)
        text = f"{found.count:>12,}  of {found.mean:,.1f} {what}, at most {found.largest:,}"
        return [(name, text)] if found.count else []

    times = [
        f"{name} {found.mean / 1_000:,.2f}"
        for name, measure in TIMES.items()
        if (found := seen(measure)).count
    ]
    return [
        *sizes("bundles", MESSAGES, "messages"),
        *sizes("batches", ROWS, "rows"),
        *([("mean ms", ", ".join(times))] if times else []),
    ]


def fate_of_messages(made: bool) -> str:
    """Return what happens to the messages that a run does not acknowledge, after "they".

    Args:
        made: Whether the subscription was created for the run, which then deletes it.
    """
    if made:
        return "are lost, because the subscription that was created for this run is deleted"
    return "will be delivered again"


def unseen_names(tally: Tally) -> list[str]:
    """Return a warning for each name that a flag names and that no row has had.

    There are no warnings before a row was scored.

    Args:
        tally: The counts of the run.
    """
    return unseen_texts(tally.unseen) if tally.scored else []


def check_balance(tally: Tally, *, made: bool) -> None:
    """Check the counts at the end of a run.

    Every message that was pulled must be decoded. Every row must be scored or a dead letter.

    Args:
        tally: The counts of the run.
        made: Whether the subscription was created for the run.

    Raises:
        BalanceError: Messages or rows are missing, or there are too many.
    """
    if tally.decoded != tally.pulled:
        raise BalanceError(
            f"messages are missing or duplicated: {tally.pulled:,} were pulled, {tally.decoded:,} "
            f"were decoded; unacknowledged messages {fate_of_messages(made)}: run the command "
            "again, and report this if it recurs"
        )
    if tally.received != tally.scored + tally.dead_letters:
        raise BalanceError(
            f"rows are missing or duplicated: {tally.received:,} were received, {tally.scored:,} "
            f"were scored, {tally.dead_letters:,} are dead letters; unacknowledged messages "
            f"{fate_of_messages(made)}: run the command again, and report this if it recurs"
        )


def summary(tally: Tally, seconds: float) -> str:
    """Return the lines that sum up a run, with its balance.

    Args:
        tally: The counts of the run.
        seconds: How long the run took.
    """
    missing = tally.received - tally.scored - tally.dead_letters
    balance = "rows received = scored + dead letters"
    if missing:
        balance = f"{abs(missing):,} rows {'missing' if missing > 0 else 'too many'}"
    lines = [
        ("received", f"{tally.received:>12,}  in {seconds:,.0f} s"),
        ("scored", f"{tally.scored:>12,}"),
        ("dead letters", f"{tally.dead_letters:>12,}"),
    ]
    if tally.refused:
        note = (
            "scored rows that a sink refused; they were also written as dead letters, but are not "
            "counted in the line above"
        )
        lines.append(("refused", f"{tally.refused:>12,}  {note}"))
    names = dict.fromkeys(key[1] for key in tally.decisions)
    lines += decision_facts(report_decisions(tally.decisions, [*names]))
    if tally.pulled:
        dropped = f"; {tally.dropped:,} duplicates were dropped" if tally.dropped else ""
        text = f"{tally.pulled:>12,}  of which {tally.decoded:,} were decoded{dropped}"
        lines.insert(0, ("messages", text))
    lines += [*measured_facts(), ("balance", balance)]
    lines += [("warning", text) for text in unseen_names(tally)]
    return facts(lines)
