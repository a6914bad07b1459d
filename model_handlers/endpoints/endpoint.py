"""A connected endpoint, which answers record batches in many requests at the same time.

A row is at fault only if the endpoint answers other rows at the same time.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from cloud.endpoint_client import EndpointClient
from cloud.endpoint_responses import RequestRefused
from common.errors import EndpointError, UsageError
from common.record_batch import slices
from model_handlers.endpoints.codec import EndpointCodec, FewerOutputs
from model_handlers.endpoints.prediction_cache import PredictionCache, rows_with_gaps
from model_handlers.endpoints.request_rows import EndpointRows
from model_handlers.isolate import MOSTLY, SMALL_BATCH, SUSPECTS, random_rows
from model_handlers.manifests.manifest import GoldenRows

# Source: Vertex AI's quotas, which allow 1.5 MB per request to a public endpoint.
REQUEST_BYTES = 1_500_000
REQUEST_ROWS = 100
# How many times a failed row is sent again, each time after a row that the endpoint must know. An
# endpoint that fails one request in five at random makes fewer than one row in a million fail.
CONFIRMATIONS = 6
# How many times rows are sent again if an output in their answer is missing.
GAP_ANSWERS = 4


@dataclass(frozen=True, kw_only=True)
class RequestLimits:
    """The limits of the requests to an endpoint.

    Attributes:
        rows: The maximum number of rows in a request.
        bytes: The maximum size of a request's body, in bytes.
        concurrency: The maximum number of requests that a process has in flight at the same time.
        timeout_seconds: The timeout of one request, in seconds.
        retry_seconds: How long transient errors are retried, in seconds.

    Raises:
        UsageError: A limit is too small.
    """

    rows: int = REQUEST_ROWS
    bytes: int = REQUEST_BYTES
    concurrency: int = 8
    timeout_seconds: float = 60.0
    retry_seconds: float = 120.0

    def __post_init__(self) -> None:
        if self.rows < 1 or self.bytes < 1 or self.concurrency < 1:
            raise UsageError(
                "rows, bytes and concurrency of requests must be at least 1, got "
                f"{self.rows}, {self.bytes} and {self.concurrency}"
            )
        if not (self.timeout_seconds > 0 and self.retry_seconds >= 0):
            raise UsageError(
                "timeout_seconds must be above 0 and retry_seconds at least 0, got "
                f"{self.timeout_seconds} and {self.retry_seconds}"
            )


@dataclass
class _Batch:
    """Some rows, and how many of them are known to fail.

    Attributes:
        alone: The number of rows that failed alone.
        judged: Whether a sample has shown if most rows fail.
        reason: The reason and the message for the other failing rows, which are not sent on
            their own; None if each failing row is sent on its own.
    """

    rows: EndpointRows
    alone: int = 0
    judged: bool = False
    reason: tuple[str, str] | None = None
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)


# Rows, with the outputs of all of them, or a single row with the reason and message of its failure.
_Part = tuple[slice, list[np.ndarray] | tuple[str, str]]


@dataclass(frozen=True)
class Answers:
    """The answers of an endpoint to some rows.

    Attributes:
        outputs: Row numbers, with one array per output for these rows.
        faults: The reason and the message of each failed row, by row number.
        hits: How many rows were found in the cache.
    """

    outputs: Sequence[tuple[slice | np.ndarray, list[np.ndarray]]]
    faults: Mapping[int, tuple[str, str]]
    hits: int = 0


class NeedsOutputs(EndpointError):
    """An endpoint that returns fewer outputs than are needed, and may return them if asked."""


@dataclass
class Endpoint:
    """A connected endpoint, which load_model returns; one per process.

    Attributes:
        known: A row that the endpoint must be able to process.
        golden: The known-good rows, the first of which is `known`, or None.
        fewer_outputs: Whether an answer had fewer outputs than are needed.
    """

    client: EndpointClient
    codec: EndpointCodec
    limits: RequestLimits
    known: EndpointRows
    golden: GoldenRows | None = None
    cache: PredictionCache | None = None
    fewer_outputs: bool = field(default=False, init=False)

    def predict(self, rows: EndpointRows) -> Answers:
        """Return the endpoint's answers to some rows.

        Raises:
            EndpointError: The endpoint cannot be used, or serves another model.
            CredentialsError: There are no credentials that can be used.
        """
        if self.cache is None:
            parts = self.client.run(self._predict(rows))
            answered = [(some, part) for some, part in parts if isinstance(part, list)]
            faults = {some.start: part for some, part in parts if isinstance(part, tuple)}
            return Answers(answered, faults)
        keys = rows.keys()
        known, outputs = self.cache.find(keys)
        unknown = np.delete(np.arange(len(rows)), known)
        parts = self.client.run(self._predict(rows.take(unknown)))
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
        """Check that the endpoint answers a known-good row as the manifest says.

        Without known-good rows, any valid answer to a test row is accepted.

        Raises:
            EndpointError: The endpoint does not answer, or answers differently from the manifest's
                model.
        """
        if (fault := self.find_fault()) is not None:
            raise self.other_model(fault)

    def find_fault(self) -> str | None:
        """Return how the endpoint answers a known-good row otherwise than the model, or None.

        Raises:
            EndpointError: The endpoint does not answer.
        """
        try:
            outputs = self.client.run(self._post_known())
        except RequestRefused as error:
            return str(error)
        for spec, got in zip(self.codec.outputs, outputs, strict=True):
            if self.golden is None or spec.name not in self.golden.outputs:
                continue
            expected = np.asarray(self.golden.outputs[spec.name][:1], np.float64)
            expected = expected.reshape(got.shape)
            if not self.codec.manifest.tolerance.agree(got, expected).all():
                return (
                    f"output {spec.name!r} of a known-good row: expected {expected[0].tolist()}, "
                    f"got {got[0].tolist()}"
                )
        return None

    async def _predict(self, all_rows: EndpointRows) -> list[_Part]:
        parts: list[_Part] = []
        waiting = slices(len(all_rows), self.limits.rows)
        batch = _Batch(all_rows)

        async def answer_some() -> None:
            for some in waiting:
                parts.extend(await self._answer(batch, some))

        # Two more tasks than requests in flight, so that a request is ready when another one ends.
        tasks = min(self.limits.concurrency + 2, math.ceil(len(all_rows) / self.limits.rows))
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(tasks):
                    group.create_task(answer_some())
        except ExceptionGroup as errors:
            # During an outage every request fails with the same error.
            raise errors.exceptions[0] from None
        return parts

    async def _answer(self, batch: _Batch, rows: slice) -> list[_Part]:
        """Return the answers to some rows, from a single request if it succeeds."""
        count, begin = rows.stop - rows.start, time.monotonic()
        body = self.codec.body(batch.rows.instances(rows))
        if len(body) > self.limits.bytes:
            if count > 1:
                return await self._halves(batch, rows)
            message = (
                f"expected a request of at most {self.limits.bytes:,} bytes, got {len(body):,}"
            )
            return [(rows, ("too_large", message))]
        try:
            outputs = await self._post(body, count)
        except RequestRefused as refusal:
            # The rows may not be at fault. One test row is retried here, instead of many rows.
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
        return [(rows, await self._fill_gaps(batch.rows, rows, outputs))]

    async def _halves(self, batch: _Batch, rows: slice) -> list[_Part]:
        middle = (rows.start + rows.stop) // 2
        first = await self._answer(batch, slice(rows.start, middle))
        return first + await self._answer(batch, slice(middle, rows.stop))

    async def _why_not_alone(self, batch: _Batch) -> tuple[str, str] | None:
        """Return the reason and message for rows that fail together, or None to halve them.

        When many rows have failed alone, a random sample shows whether most do, as in isolate.
        """
        if len(batch.rows) <= SMALL_BATCH or batch.alone < SUSPECTS:
            return None
        async with batch.lock:
            if not batch.judged:
                sample = random_rows(slice(0, len(batch.rows)))
                asked = [await self._answer(batch, slice(row, row + 1)) for row in sample]
                failed = [part for ((_, part),) in asked if isinstance(part, tuple)]
                batch.judged = True
                if len(failed) > MOSTLY * len(sample):
                    kind, message = failed[0]
                    reason = (
                        f"not sent on its own, because most rows of its batch fail: of "
                        f"{len(sample)} rows chosen at random, {len(failed)} failed, for example "
                        f"with: {message}"
                    )
                    batch.reason = kind, reason[:300]
            return batch.reason

    async def _post(self, body: bytes, rows: int, **patience: Any) -> list[np.ndarray]:
        def read(answer: bytes) -> list[np.ndarray]:
            try:
                return self.codec.decode(answer, rows)
            except FewerOutputs:
                self.fewer_outputs = True
                raise

        return await self.client.post(body, read, **patience)

    async def _confirm(
        self, body: bytes, refusal: RequestRefused
    ) -> list[np.ndarray] | RequestRefused:
        """Send a row that has failed several times again, each time after a row that must succeed.

        Return its outputs, or the last refusal if it always fails while the other row succeeds.
        Raise EndpointError if the other row fails too.
        """
        for _ in range(CONFIRMATIONS):
            await self._ask_for_known()
            try:
                return await self._post(body, 1, patience=1)
            except RequestRefused as again:
                refusal = again
        return refusal

    async def _fill_gaps(
        self, all_rows: EndpointRows, rows: slice, outputs: list[np.ndarray]
    ) -> list[np.ndarray]:
        """Send rows with NaN in an output again, in case the numbers were lost on the way.

        A NaN from the model itself stays, because the model returns it again.
        """
        for _ in range(GAP_ANSWERS):
            gaps = rows_with_gaps(outputs)
            if not len(gaps):
                break
            try:
                body = self.codec.body(all_rows.instances(rows.start + gaps))
                again = await self._post(body, len(gaps))
            except RequestRefused:
                continue
            for array, values in zip(outputs, again, strict=True):
                array[gaps] = values
        return outputs

    async def _ask_for_known(self) -> list[np.ndarray]:
        """Return the outputs of a row that the endpoint must be able to process.

        Transient errors are retried. Raise EndpointError if the endpoint does not answer, or
        answers like another model.
        """
        try:
            return await self._post_known()
        except RequestRefused as error:
            raise self.other_model(str(error)) from None

    async def _post_known(self) -> list[np.ndarray]:
        body = self.codec.body(self.known.instances(slice(0, 1)))
        return await self._post(body, 1, innocent=True)

    def other_model(self, fault: str) -> EndpointError:
        """Return the error for an endpoint that answers a known-good row wrongly."""
        manifest = self.codec.manifest
        kind = NeedsOutputs if self.fewer_outputs else EndpointError
        return kind(
            f"endpoint {self.client.name} does not answer like model {manifest.name} "
            f"{manifest.version}: {fault}; check that this model is deployed there, and check "
            f"{'--prepare_at and ' * manifest.has_steps}--instance_format"
        )
