"""VertexEndpointHandler: RunInference over record batches, the model behind an endpoint.

The same contract as TorchModelHandler's: every row comes back, failed ones carry an
error. A row is at fault only when the endpoint has answered others; an endpoint that is
dead, or serves another model, fails the bundle, which Beam tries again.
"""

from __future__ import annotations

import asyncio
import functools
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from apache_beam.metrics import Metrics

from cloud.endpoint_client import SUSPECT_MANY, SUSPECT_ONE, EndpointClient, Refused, Stats
from cloud.vertex import EndpointAddress
from model_handlers.batch_handler import NAMESPACE, BatchHandler, error_column, outputs_column
from model_handlers.contract import InputSpec, Manifest
from model_handlers.endpoint_codec import EndpointCodec, InstanceFormat
from model_handlers.errors import EndpointError, UsageError
from transforms.record_batch import slices

# Source: Vertex AI's quotas, 1.5 MB a request of a public endpoint.
REQUEST_BYTES = 1_500_000
REQUEST_ROWS = 100
BATCH_ROWS = 4_096
# What a feature is where the model has no golden rows; the reference asks for its health so.
_SOME_VALUE = 0.1


@dataclass(frozen=True)
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


# Rows, and the outputs of all of them, or the reason and the message of the one that failed.
_Part = tuple[slice, list[np.ndarray] | tuple[str, str]]


@dataclass
class Endpoint:
    """An endpoint that is connected: what load_model gives, one a process."""

    client: EndpointClient
    codec: EndpointCodec
    limits: RequestLimits

    def predict(self, arrays: Sequence[np.ndarray], rows: int) -> list[_Part]:
        """An array an input -> the answers, in order. Raises EndpointError, CredentialsError."""
        return self.client.run(self._predict(arrays, rows))

    def check(self) -> None:
        """Nothing -> it answers one row as the model does. Raises EndpointError."""
        self.client.run(self._ask_for_known())

    async def _predict(self, arrays: Sequence[np.ndarray], rows: int) -> list[_Part]:
        parts: list[_Part] = []
        waiting = slices(rows, self.limits.rows)

        async def answer_some() -> None:
            for some in waiting:
                parts.extend(await self._answer(arrays, some))

        workers = min(self.limits.concurrency, math.ceil(rows / self.limits.rows))
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(workers):
                    group.create_task(answer_some())
        except ExceptionGroup as errors:
            # Of one outage each request tells.
            raise errors.exceptions[0] from None
        return sorted(parts, key=lambda part: part[0].start)

    async def _answer(self, arrays: Sequence[np.ndarray], rows: slice) -> list[_Part]:
        """Rows -> their answers, of one request if all goes well."""
        count, begin = rows.stop - rows.start, time.monotonic()
        body = self.codec.encode(arrays, rows)
        read = functools.partial(self.codec.decode, rows=count)
        if len(body) > self.limits.bytes:
            if count > 1:
                return await self._halves(arrays, rows)
            told = f"{len(body):,} bytes: a request takes {self.limits.bytes:,} at most"
            return [(rows, ("too_large", told))]
        try:
            patience = SUSPECT_MANY if count > 1 else SUSPECT_ONE
            outputs = await self.client.post(body, read, patience=patience)
            if _has_gaps(outputs):
                # What was lost on the way comes the second time; what the model says stays.
                outputs = await self.client.post(body, read, patience=patience)
        except Refused as refusal:
            if count > 1:
                return await self._halves(arrays, rows)
            await self._vouch(refusal, begin)
            reason = "endpoint_refused" if refusal.status else "endpoint_failed"
            return [(rows, (reason, str(refusal)))]
        return [(rows, outputs)]

    async def _halves(self, arrays: Sequence[np.ndarray], rows: slice) -> list[_Part]:
        middle = (rows.start + rows.stop) // 2
        first = await self._answer(arrays, slice(rows.start, middle))
        return first + await self._answer(arrays, slice(middle, rows.stop))

    async def _vouch(self, refusal: Refused, since: float) -> None:
        """A row refused -> the endpoint works otherwise, so the row is at fault.

        Raises EndpointError where it does not even answer what it has to know.
        """
        if self.client.last_answered < since:
            await self._ask_for_known(refusal)

    async def _ask_for_known(self, refusal: Refused | None = None) -> None:
        manifest = self.codec.manifest
        arrays = [_known_row(manifest, spec) for spec in manifest.inputs]
        body = self.codec.encode(arrays, slice(0, 1))
        try:
            await self.client.post(body, functools.partial(self.codec.decode, rows=1))
        except Refused as error:
            raise EndpointError(
                f"endpoint {self.client.name} does not answer as model {manifest.name} "
                f"{manifest.version} does: {error}; check that this model is deployed there, and "
                "--instance_format"
            ) from None


def _known_row(manifest: Manifest, spec: InputSpec) -> np.ndarray:
    """A model and one of its inputs -> a row that it can take, [1, width] or [1]."""
    shape = (1, spec.width) if spec.shape else (1,)
    if manifest.golden is not None:
        return np.asarray(manifest.golden.inputs[spec.name][:1], spec.dtype).reshape(shape)
    return np.full(shape, _SOME_VALUE).astype(spec.dtype)


def _has_gaps(outputs: Sequence[np.ndarray]) -> bool:
    """Whether any number is missing."""
    return any(array.dtype.kind == "f" and bool(np.isnan(array).any()) for array in outputs)


class VertexEndpointHandler(BatchHandler[Endpoint]):
    """Asks an endpoint for the predictions of record batches.

    address: of the endpoint; it is looked up on the worker, nothing is asked where the
        pipeline is built.
    manifest: the model's contract; its bytes are not read.
    outputs: names of the outputs to bring back, all by default.
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
    ) -> None:
        super().__init__(manifest, outputs, batch_rows)
        self.address, self.limits = address, limits or RequestLimits()
        specs = tuple(manifest.output(name) for name in self.outputs)
        self.codec = EndpointCodec(manifest, specs, instance_format, parameters)

    def load_model(self) -> Endpoint:
        """The endpoint, found and connected. Raises EndpointError, CredentialsError."""
        client = self.address.connect(
            concurrency=self.limits.concurrency,
            timeout_seconds=self.limits.timeout_seconds,
            retry_seconds=self.limits.retry_seconds,
        )
        return Endpoint(client, self.codec, self.limits)

    def predict(
        self, model: Endpoint, arrays: Sequence[np.ndarray], rows: int
    ) -> tuple[pa.StructArray, pa.StructArray]:
        """A connected endpoint and the inputs -> the columns `outputs` and `error`."""
        try:
            parts = model.predict(arrays, rows)
        finally:
            self._count(model.client.take_stats())
        answers = [(rows, part) for rows, part in parts if isinstance(part, list)]
        faults = {rows.start: part for rows, part in parts if isinstance(part, tuple)}
        columns = outputs_column(self.codec.outputs, answers, list(faults), rows)
        return columns, error_column(faults, rows)

    def _count(self, stats: Stats) -> None:
        """What the client did -> Beam's counters, which only a bundle's own thread can write."""
        counts = {
            "endpoint_requests": stats.requests,
            "endpoint_retries": stats.retries,
            "endpoint_bytes_sent": stats.bytes_sent,
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
