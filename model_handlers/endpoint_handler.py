"""VertexEndpointHandler: RunInference over record batches, the model behind an endpoint.

The same contract as TorchModelHandler's: every row comes back, failed ones carry an
error. A row is at fault only where the endpoint answers others meanwhile; an endpoint that
is dead, or serves another model, fails the bundle, which Beam tries again.
"""

from __future__ import annotations

import asyncio
import functools
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from apache_beam.metrics import Metrics

from cloud.endpoint_answers import RequestRefused
from cloud.endpoint_client import EndpointClient, Stats
from cloud.vertex import EndpointAddress
from common.errors import EndpointError, UsageError
from common.record_batch import slices
from model_handlers.batch_handler import NAMESPACE, BatchHandler, error_column, outputs_column
from model_handlers.endpoint_codec import EndpointCodec, InstanceFormat
from model_handlers.isolate import MOSTLY, SMALL_BATCH, SUSPECTS, random_rows
from model_handlers.manifest import InputSpec, Manifest
from model_handlers.prediction_cache import PredictionCache, row_keys, rows_with_gaps

# Source: Vertex AI's quotas, 1.5 MB a request of a public endpoint.
REQUEST_BYTES = 1_500_000
REQUEST_ROWS = 100
# Each batch waits for its slowest request; the more there are, the less that costs.
BATCH_ROWS = 16_384
# What a feature is where nothing is known of the model's; the reference asks for its health so.
_SOME_VALUE = 0.1
# A row that failed is asked for so often again, each time after one that the endpoint knew:
# one that fails one time in five, whatever it is asked, wrongs not one row in a million.
CONFIRMATIONS = 6
# And so often those where a number was missing.
GAP_ANSWERS = 4
_CHECK = "check that this model is deployed there, and --instance_format"


@dataclass(frozen=True, kw_only=True)
class RequestLimits:
    """What one request may be, and how they are sent.

    rows, bytes: of a request. concurrency: requests in flight a process. timeout_seconds:
    of each; retry_seconds: how long what passes by itself is waited out.
    """

    rows: int = REQUEST_ROWS
    bytes: int = REQUEST_BYTES
    concurrency: int = 8
    timeout_seconds: float = 60.0
    retry_seconds: float = 120.0

    def __post_init__(self) -> None:
        if self.rows < 1 or self.bytes < 1 or self.concurrency < 1:
            raise UsageError("rows, bytes and concurrency of requests start at 1")
        if not (self.timeout_seconds > 0 and self.retry_seconds >= 0):
            raise UsageError("a request's timeout is above 0 s, and retry_seconds not below")


@dataclass
class _Batch:
    """Arrays of some rows, and what is known of how many of them fail.

    alone: rows that failed alone. reason: why the others that fail are not asked for alone;
    judged: whether most rows fail was found out.
    """

    arrays: Sequence[np.ndarray]
    rows: int
    alone: int = 0
    judged: bool = False
    reason: tuple[str, str] | None = None
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)


# Rows, and the outputs of all of them, or the reason and the message of the one that failed.
_Part = tuple[slice, list[np.ndarray] | tuple[str, str]]


@dataclass(frozen=True)
class Answers:
    """What is known of some rows: outputs by rows, and reason and message by row at fault.

    hits: how many rows were not asked for, since they had been before.
    """

    outputs: Sequence[tuple[slice | np.ndarray, list[np.ndarray]]]
    faults: Mapping[int, tuple[str, str]]
    hits: int = 0


@dataclass
class Endpoint:
    """An endpoint that is connected: what load_model gives, one a process."""

    client: EndpointClient
    codec: EndpointCodec
    limits: RequestLimits
    cache: PredictionCache | None = None

    def predict(self, arrays: Sequence[np.ndarray], rows: int) -> Answers:
        """An array an input -> the answers. Raises EndpointError, CredentialsError."""
        if self.cache is None:
            parts = self.client.run(self._predict(arrays, rows))
            answered = [(some, part) for some, part in parts if isinstance(part, list)]
            faults = {some.start: part for some, part in parts if isinstance(part, tuple)}
            return Answers(answered, faults)
        keys = row_keys(arrays)
        known, outputs = self.cache.find(keys)
        unknown = np.delete(np.arange(rows), known)
        parts = self.client.run(self._predict([array[unknown] for array in arrays], len(unknown)))
        found: list[tuple[slice | np.ndarray, list[np.ndarray]]] = []
        if len(known):
            found.append((known, outputs))
        for some, part in parts:
            if isinstance(part, list):
                found.append((unknown[some], part))
                self.cache.keep([keys[row] for row in unknown[some]], part)
        faults = {int(unknown[s.start]): part for s, part in parts if isinstance(part, tuple)}
        return Answers(found, faults, len(known))

    def check(self) -> None:
        """Nothing -> it answers one row as the model does. Raises EndpointError."""
        outputs = self.client.run(self._ask_for_known())
        golden = self.codec.manifest.golden
        if golden is None:
            return
        for spec, got in zip(self.codec.outputs, outputs, strict=True):
            if spec.name not in golden.outputs:
                continue
            expected = np.asarray(golden.outputs[spec.name][:1], np.float64)
            if not self.codec.manifest.tolerance.agree(got, expected).all():
                raise EndpointError(
                    f"{self._as_another()}: output {spec.name!r} of a golden row: expected "
                    f"{expected[0].tolist()}, got {got[0].tolist()}; {_CHECK}"
                )

    async def _predict(self, arrays: Sequence[np.ndarray], rows: int) -> list[_Part]:
        parts: list[_Part] = []
        waiting = slices(rows, self.limits.rows)
        batch = _Batch(arrays, rows)

        async def answer_some() -> None:
            for some in waiting:
                parts.extend(await self._answer(batch, some))

        # Two more, so that a request is ready when another one ends.
        workers = min(self.limits.concurrency + 2, math.ceil(rows / self.limits.rows))
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(workers):
                    group.create_task(answer_some())
        except ExceptionGroup as errors:
            # Of one outage each request tells.
            raise errors.exceptions[0] from None
        return parts

    async def _answer(self, batch: _Batch, rows: slice) -> list[_Part]:
        """Rows -> their answers, of one request if all goes well."""
        count, begin = rows.stop - rows.start, time.monotonic()
        body = self.codec.encode(batch.arrays, rows)
        if len(body) > self.limits.bytes:
            if count > 1:
                return await self._halves(batch, rows)
            message = f"{len(body):,} bytes: a request takes {self.limits.bytes:,} at most"
            return [(rows, ("too_large", message))]
        try:
            outputs = await self._post(body, count)
        except RequestRefused as refusal:
            # What is not the rows' fault is waited out here, by one row instead of many.
            if self.client.last_answered < begin:
                await self._ask_for_known()
            if count > 1:
                reason = await self._why_not_alone(batch)
                if reason is None:
                    return await self._halves(batch, rows)
                return [(slice(i, i + 1), reason) for i in range(rows.start, rows.stop)]
            if refusal.status:
                batch.alone += 1
                return [(rows, ("endpoint_refused", str(refusal)))]
            answer = await self._confirm(body, refusal)
            if isinstance(answer, RequestRefused):
                batch.alone += 1
                return [(rows, ("endpoint_failed", str(answer)))]
            outputs = answer
        return [(rows, await self._fill_gaps(batch.arrays, rows, outputs))]

    async def _halves(self, batch: _Batch, rows: slice) -> list[_Part]:
        middle = (rows.start + rows.stop) // 2
        first = await self._answer(batch, slice(rows.start, middle))
        return first + await self._answer(batch, slice(middle, rows.stop))

    async def _why_not_alone(self, batch: _Batch) -> tuple[str, str] | None:
        """A batch -> reason and message of its rows that fail together, None to halve them.

        Once many rows have failed alone, a few at random tell whether most do, as in isolate.
        """
        if batch.rows <= SMALL_BATCH or batch.alone < SUSPECTS:
            return None
        async with batch.lock:
            if not batch.judged:
                sample = random_rows(slice(0, batch.rows))
                asked = [await self._answer(batch, slice(row, row + 1)) for row in sample]
                failed = [part for ((_, part),) in asked if isinstance(part, tuple)]
                batch.judged = True
                if len(failed) > MOSTLY * len(sample):
                    kind, message = failed[0]
                    reason = (
                        f"not asked for alone, since most rows of its batch fail: {len(failed)} "
                        f"of {len(sample)} that were, taken at random, one with: {message}"
                    )
                    batch.reason = kind, reason[:300]
            return batch.reason

    async def _post(self, body: bytes, rows: int, **patience: Any) -> list[np.ndarray]:
        read = functools.partial(self.codec.decode, rows=rows)
        return await self.client.post(body, read, **patience)

    async def _confirm(
        self, body: bytes, refusal: RequestRefused
    ) -> list[np.ndarray] | RequestRefused:
        """A row that failed again and again -> that it still does while others do not.

        Otherwise its outputs. Raises EndpointError where the others fail as well.
        """
        for _ in range(CONFIRMATIONS):
            await self._ask_for_known()
            try:
                return await self._post(body, 1, patience=1)
            except RequestRefused as again:
                refusal = again
        return refusal

    async def _fill_gaps(
        self, arrays: Sequence[np.ndarray], rows: slice, outputs: list[np.ndarray]
    ) -> list[np.ndarray]:
        """Rows and their outputs -> the same with the numbers that got lost on the way.

        What the model itself says stays: it says so again.
        """
        for _ in range(GAP_ANSWERS):
            gaps = rows_with_gaps(outputs)
            if not len(gaps):
                break
            try:
                again = await self._post(self.codec.encode(arrays, rows.start + gaps), len(gaps))
            except RequestRefused:
                continue
            for array, values in zip(outputs, again, strict=True):
                array[gaps] = values
        return outputs

    async def _ask_for_known(self) -> list[np.ndarray]:
        """Nothing -> the outputs of a row that the endpoint has to know, perhaps after a while.

        Raises EndpointError where it does not answer, or in the form of another model.
        """
        manifest = self.codec.manifest
        arrays = [_known_row(manifest, spec) for spec in manifest.inputs]
        try:
            return await self._post(self.codec.encode(arrays, slice(0, 1)), 1, innocent=True)
        except RequestRefused as error:
            raise EndpointError(f"{self._as_another()}: {error}; {_CHECK}") from None

    def _as_another(self) -> str:
        manifest = self.codec.manifest
        return (
            f"endpoint {self.client.name} does not answer as model {manifest.name} "
            f"{manifest.version} does"
        )


def _known_row(manifest: Manifest, spec: InputSpec) -> np.ndarray:
    """A model and one of its inputs -> a row that it can take, [1, width] or [1]."""
    shape = (1, spec.width) if spec.shape else (1,)
    if manifest.golden is not None:
        return np.asarray(manifest.golden.inputs[spec.name][:1], spec.dtype).reshape(shape)
    if len(spec.columns) == spec.width and manifest.statistics.keys() >= set(spec.columns):
        means = np.array([manifest.statistics[column].mean for column in spec.columns])
        known = means if spec.dtype.startswith("float") else means.round()
        return known.astype(spec.dtype).reshape(shape)
    return np.full(shape, _SOME_VALUE).astype(spec.dtype)


class VertexEndpointHandler(BatchHandler[Endpoint]):
    """Asks an endpoint for the predictions of record batches.

    address: of the endpoint; it is looked up on the worker, nothing is asked where the
        pipeline is built.
    manifest: the model's contract; its bytes are not read.
    outputs: names of the outputs to bring back, all by default.
    cache_rows: how many rows' predictions a process keeps, for rows that come again; for an
        endpoint whose model stays the same while the pipeline runs.
    """

    def __init__(
        self,
        address: EndpointAddress,
        manifest: Manifest,
        *,
        outputs: Sequence[str] | None = None,
        instance_format: InstanceFormat = "list",
        parameters: str | None = None,
        limits: RequestLimits | None = None,
        batch_rows: int = BATCH_ROWS,
        cache_rows: int = 0,
    ) -> None:
        super().__init__(manifest, outputs, batch_rows)
        if cache_rows < 0:
            raise UsageError(f"cache_rows starts at 0, got {cache_rows}")
        self.address, self.limits = address, limits or RequestLimits()
        self.cache_rows = cache_rows
        specs = tuple(manifest.output(name) for name in self.outputs)
        self.codec = EndpointCodec(manifest, specs, instance_format, parameters)

    def load_model(self) -> Endpoint:
        """The endpoint, found and connected. Raises EndpointError, CredentialsError."""
        client = self.address.connect(
            concurrency=self.limits.concurrency,
            timeout_seconds=self.limits.timeout_seconds,
            retry_seconds=self.limits.retry_seconds,
            digest=self.manifest.sha256,
        )
        cache = PredictionCache(self.codec.outputs, self.cache_rows) if self.cache_rows else None
        return Endpoint(client, self.codec, self.limits, cache)

    def predict(
        self, model: Endpoint, arrays: Sequence[np.ndarray], rows: int
    ) -> tuple[pa.StructArray, pa.StructArray]:
        """A connected endpoint and the inputs -> the columns `outputs` and `error`."""
        hits = 0
        try:
            answers = model.predict(arrays, rows)
            hits = answers.hits
        finally:
            self._count(model.client.take_stats(), hits)
        columns = outputs_column(self.codec.outputs, answers.outputs, list(answers.faults), rows)
        return columns, error_column(answers.faults, arrays, rows)

    def _count(self, stats: Stats, hits: int) -> None:
        """What the client did -> Beam's counters, which only a bundle's own thread can write."""
        counts = {
            "endpoint_requests": stats.requests,
            "endpoint_retries": stats.retries,
            "endpoint_bytes_sent": stats.bytes_sent,
            "endpoint_cache_hits": hits,
            # Under this name Dataflow's autoscaler takes note, and does not add workers.
            "cumulativeThrottlingSeconds": stats.throttled,
            **{f"endpoint_answers_{kind}": count for kind, count in stats.answers.items()},
        }
        for name, count in counts.items():
            if count:
                Metrics.counter(NAMESPACE, name).inc(count)
        latency = Metrics.distribution(NAMESPACE, "endpoint_request_ms")
        for seconds in stats.seconds:
            latency.update(round(seconds * 1000))
        if stats.requests:
            Metrics.distribution(NAMESPACE, "endpoint_in_flight").update(stats.most_in_flight)
