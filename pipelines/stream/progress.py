"""Rates and latencies of a stream: as metrics of Beam, and for a run in this process as lines.

A stream has no end at which it could be summed up, so the counts are kept here, in the
module, by DoFns that the graph has in any case.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from apache_beam.metrics import Metrics

from common.errors import BalanceError
from common.record_batch import MESSAGE, struct_columns
from transforms.accounts import Count

# Updating a metric takes a microsecond, so large batches give a sample of their rows.
SAMPLED_ROWS = 100


@dataclass(kw_only=True)
class Tally:
    """What has happened since the start. latencies: milliseconds since the last report.

    refused: rows that were scored, of which a sink made dead letters. pulled, decoded:
    messages, where this process pulls them itself.
    """

    received: int = 0
    scored: int = 0
    dead_letters: int = 0
    refused: int = 0
    latencies: list[np.ndarray] = field(default_factory=list)
    pulled: int = 0
    decoded: int = 0


_lock = threading.Lock()
# Only where somebody takes the latencies they are kept.
_tally: Tally | None = None


def start_tally() -> Tally:
    """Nothing -> a new tally, which the DoFns below add to from now on."""
    global _tally
    _tally = Tally()
    return _tally


def count_received(batch: pa.RecordBatch) -> None:
    """Rows that were decoded, or failed to be -> nothing; they are counted."""
    Metrics.counter("millrace", "rows_received").inc(batch.num_rows)
    with _lock:
        if _tally is not None:
            _tally.received += batch.num_rows


def count_decoded(count: Count) -> None:
    """How many messages were decoded -> nothing; they are counted."""
    with _lock:
        if _tally is not None:
            _tally.decoded += count[1]


def count_dead_letters(failures: pa.RecordBatch) -> None:
    """Failure records -> nothing; they are counted."""
    Metrics.counter("millrace", "rows_dead_lettered").inc(failures.num_rows)
    with _lock:
        if _tally is not None:
            refused = pc.sum(pc.equal(failures.column("stage"), "write")).as_py() or 0
            _tally.refused += refused
            _tally.dead_letters += failures.num_rows - refused


def take_latencies(tally: Tally) -> np.ndarray:
    """A tally -> the latencies since the last call, in milliseconds."""
    with _lock:
        latencies, tally.latencies = tally.latencies, []
    return np.concatenate(latencies) if latencies else np.empty(0)


class _MeasureDoFn(beam.DoFn):
    """Predicted batches -> the same; how long their rows took goes to metrics and the tally."""

    def __init__(self) -> None:
        names = ("waited_ms", "processed_ms", "total_ms")
        self._metrics = [Metrics.distribution("millrace", name) for name in names]

    def process(self, batch: pa.RecordBatch) -> Any:
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
                _tally.latencies.append(total)
        yield batch


@dataclass
class MeasureLatency(beam.PTransform):
    """Predicted batches of a stream -> the same, measured.

    Distributions: waited_ms from publishing to a worker, processed_ms from there to the
    score, total_ms of both.
    """

    def expand(self, batches: beam.PCollection[pa.RecordBatch]) -> beam.PCollection[pa.RecordBatch]:
        """One DoFn."""
        return batches | beam.ParDo(_MeasureDoFn()).with_output_types(pa.RecordBatch)


def report_line(tally: Tally, rows: int, seconds: float) -> str:
    """A tally, and rows received within some seconds -> a line for a terminal."""
    latencies = take_latencies(tally)
    line = (
        f"{tally.received:>10,} received  {tally.scored:>10,} scored  "
        f"{tally.dead_letters + tally.refused:>6,} dead letters  {rows / seconds:>8,.1f} rows/s"
    )
    if len(latencies):
        p50, p95, p99 = np.percentile(latencies, [50, 95, 99])
        line += f"  latency ms p50 {p50:,.0f}  p95 {p95:,.0f}  p99 {p99:,.0f}"
    return line


def check_balance(tally: Tally, again: int) -> None:
    """A tally at the end of a run -> nothing, or BalanceError.

    Every message that was pulled has to be decoded, but for those that came `again` and may
    have been dropped as duplicates; every row has to be scored or a dead letter.
    """
    if not tally.pulled - again <= tally.decoded <= tally.pulled:
        raise BalanceError(
            f"messages are missing or doubled: {tally.pulled:,} were pulled, {tally.decoded:,} "
            "decoded; those that are not acknowledged come again: run again, and report this if "
            "it happens again"
        )
    if tally.received != tally.scored + tally.dead_letters:
        raise BalanceError(
            f"rows are missing or doubled: {tally.received:,} were received, {tally.scored:,} "
            f"scored, {tally.dead_letters:,} are dead letters; messages that are not acknowledged "
            "come again: run again, and report this if it happens again"
        )


def summary(tally: Tally, seconds: float) -> str:
    """A tally at the end of a run -> some lines of text, with the balance."""
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
        note = "scored, then refused by an output: dead letters as well"
        lines.append(("refused", f"{tally.refused:>12,}  {note}"))
    if tally.pulled:
        lines.insert(0, ("messages", f"{tally.pulled:>12,}  of them decoded {tally.decoded:,}"))
    lines.append(("balance", balance))
    return "\n".join(f"{name:<13} {value}".rstrip() for name, value in lines)
