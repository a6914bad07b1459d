"""Requests that wait at the same time are run in one forward pass.

An idle model runs a request at once. While a pass runs, requests queue; the next pass takes all of
them, up to a limit. A single request therefore never waits for others, and batches grow under load.
If passes are expensive, `max_wait` makes requests wait longer, so that more of them share a pass.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Collection
from concurrent.futures import Executor
from dataclasses import dataclass

import numpy as np

from model_handlers.loaded_model import LoadedModel
from model_handlers.preparation import Preparation
from model_handlers.run_model import Answer, run_model


@dataclass(eq=False)
class _Waiting:
    inputs: list[np.ndarray]
    fields: Collection[str]
    rows: int
    since: float
    answer: asyncio.Future[Answer]


class Batcher:
    """A queue of requests for one model; call its methods only in the event loop.

    Args:
        model: The model that runs the requests.
        executor: An executor of one thread, in which the model runs.
        max_rows: The maximum number of rows in one pass. A larger request gets a pass of its own,
            which the model may split.
        max_wait: How many seconds a request may wait for others after a pass. A request to an idle
            model never waits.
        observe: A function that is called with the requests, rows and seconds of each pass.
        preparation: The steps that compute fields, or None if the model has no fields.
    """

    def __init__(
        self,
        model: LoadedModel,
        executor: Executor,
        *,
        max_rows: int,
        max_wait: float,
        observe: Callable[[int, int, float], None],
        preparation: Preparation | None = None,
    ) -> None:
        self._model, self._preparation = model, preparation
        self._executor = executor
        self._max_rows = max_rows
        self._max_wait = max_wait
        self._observe = observe
        self._waiting: deque[_Waiting] = deque()
        self._rows = 0
        self._running = False
        self._start: asyncio.Handle | None = None

    @property
    def model(self) -> LoadedModel:
        """The model that runs the requests."""
        return self._model

    @property
    def waiting(self) -> int:
        """The number of requests that no pass has taken yet."""
        return len(self._waiting)

    async def predict(self, inputs: list[np.ndarray], fields: Collection[str] = ()) -> Answer:
        """Run the model on the rows of one request.

        Args:
            inputs: One array per input of the model, `[rows, ...]`, with one or more rows.
            fields: The fields to compute, with those that they need.

        Returns:
            The outputs and fields of these rows, and the rows on which the model raised. If other
            requests share the pass, it has their fields as well.

        Raises:
            DeviceError: If the accelerator failed.
            ContractBroken: If the model does not do what its manifest says.
            MemoryError: If there is not enough memory for the pass.
        """
        loop = asyncio.get_running_loop()
        rows = len(inputs[0])
        request = _Waiting(inputs, fields, rows, time.monotonic(), loop.create_future())
        self._waiting.append(request)
        self._rows += request.rows
        if not self._running and self._rows >= self._max_rows and self._start is not None:
            self._start.cancel()
            self._start = None
        if not self._running and self._start is None:
            # Not at once: the loop may have read more requests, which then share the pass.
            self._start = loop.call_soon(self._begin)
        return await request.answer

    def _begin(self) -> None:
        """Take waiting requests, up to the limit, and run them in the model's thread."""
        self._start, self._running = None, True
        batch = [self._waiting.popleft()]
        rows = batch[0].rows
        while self._waiting and rows + self._waiting[0].rows <= self._max_rows:
            batch.append(self._waiting.popleft())
            rows += batch[-1].rows
        self._rows -= rows
        loop = asyncio.get_running_loop()
        fields = frozenset[str]().union(*(r.fields for r in batch))
        inputs = [r.inputs for r in batch]
        done = loop.run_in_executor(self._executor, self._run, inputs, rows, fields)
        done.add_done_callback(lambda passed: self._end(batch, passed))

    def _run(
        self, inputs: list[list[np.ndarray]], rows: int, fields: frozenset[str]
    ) -> tuple[Answer, float]:
        started = time.perf_counter()
        arrays = (
            inputs[0] if len(inputs) == 1 else [*map(np.concatenate, zip(*inputs, strict=True))]
        )
        # A request must not suffer from bad rows in another one. So the model tries every row,
        # even where it could give up on a pass with many bad rows.
        answer = run_model(self._model, arrays, rows, to_the_end=True)
        if fields and self._preparation is not None:
            answer = answer.with_fields(self._model.outputs, self._preparation, fields)
        return answer, time.perf_counter() - started

    def _end(self, batch: list[_Waiting], passed: asyncio.Future[tuple[Answer, float]]) -> None:
        """Start the next pass, and give each request its part of the answer."""
        self._running = False
        if self._waiting:
            self._begin_soon()
        # The future of a request that was cancelled is done already.
        asked = [request for request in batch if not request.answer.done()]
        if (error := passed.exception()) is not None:
            for request in asked:
                request.answer.set_exception(error)
            return
        answer, seconds = passed.result()
        self._observe(len(batch), sum(request.rows for request in batch), seconds)
        start = 0
        for request in batch:
            if not request.answer.done():
                request.answer.set_result(answer.part(slice(start, start + request.rows)))
            start += request.rows

    def _begin_soon(self) -> None:
        left = self._waiting[0].since + self._max_wait - time.monotonic()
        if left > 0 and self._rows < self._max_rows:
            self._start = asyncio.get_running_loop().call_later(left, self._begin)
        else:
            self._begin()
