"""Requests that wait at the same time are run in one forward pass.

An idle model runs a request at once. While a pass runs, requests queue; the next pass takes all of
them, up to a limit. A single request therefore never waits for others, and batches grow under load.
If passes are expensive, `max_wait` makes requests wait longer, so that more of them share a pass.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass

import numpy as np

from model_handlers.loaded_model import LoadedModel
from model_handlers.preparation import Preparation
from model_handlers.run_model import Answer, run_model
from serving.instances import BadInstances, InstanceReader, RawInstances

Inputs = list[np.ndarray]


@dataclass(eq=False)
class _Waiting:
    inputs: Inputs | RawInstances
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
        reader: The reader of raw instances, which are prepared in the model's thread, those of all
            requests of a pass together.
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
        reader: InstanceReader | None = None,
    ) -> None:
        self._model, self._preparation, self._reader = model, preparation, reader
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

    async def predict(self, inputs: Inputs | RawInstances, fields: Collection[str] = ()) -> Answer:
        """Run the model on the rows of one request.

        Args:
            inputs: One array per input of the model, `[rows, ...]`, with one or more rows; or
                the rows before their preparation.
            fields: The fields to compute, with those that they need.

        Returns:
            The outputs and fields of these rows, and the rows on which the model raised. If other
            requests share the pass, it has their fields as well.

        Raises:
            BadInstances: If a row cannot be prepared; it lists all that cannot.
            DeviceError: If the accelerator failed.
            ContractBroken: If the model or a function does not do what the manifest says.
            MemoryError: If there is not enough memory for the pass.
        """
        loop = asyncio.get_running_loop()
        rows = len(inputs) if isinstance(inputs, RawInstances) else len(inputs[0])
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
        run = asyncio.get_running_loop().run_in_executor(self._executor, self._run, batch)
        run.add_done_callback(lambda passed: self._end(batch, passed))

    def _run(self, batch: Sequence[_Waiting]) -> list[Answer | BadInstances]:
        """Return the answer to each request, or its rows that cannot be prepared."""
        inputs = self._prepare(batch)
        taken = [one for one in inputs if not isinstance(one, BadInstances)]
        rows = sum(len(one[0]) for one in taken)
        if not rows:
            return [one for one in inputs if isinstance(one, BadInstances)]
        started = time.perf_counter()
        arrays = taken[0] if len(taken) == 1 else [*map(np.concatenate, zip(*taken, strict=True))]
        # A request must not suffer from bad rows in another one. So the model tries every row,
        # even where it could give up on a pass with many bad rows.
        answer = run_model(self._model, arrays, rows, to_the_end=True)
        fields = frozenset[str]().union(*(request.fields for request in batch))
        if fields and self._preparation is not None:
            answer = answer.with_fields(self._model.outputs, self._preparation, fields)
        self._observe(len(taken), rows, time.perf_counter() - started)
        return [*_parts(answer, inputs)]

    def _prepare(self, batch: Sequence[_Waiting]) -> list[Inputs | BadInstances]:
        """Return the arrays of each request, or its rows that cannot be prepared."""
        raw = [one.inputs for one in batch if isinstance(one.inputs, RawInstances)]
        read = iter(self._reader.read_each(raw) if self._reader is not None else [])
        return [next(read) if isinstance(one.inputs, RawInstances) else one.inputs for one in batch]

    def _end(
        self, batch: list[_Waiting], passed: asyncio.Future[list[Answer | BadInstances]]
    ) -> None:
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
        for request, answer in zip(batch, passed.result(), strict=True):
            if request.answer.done():
                continue
            if isinstance(answer, BadInstances):
                request.answer.set_exception(answer)
            else:
                request.answer.set_result(answer)

    def _begin_soon(self) -> None:
        left = self._waiting[0].since + self._max_wait - time.monotonic()
        if left > 0 and self._rows < self._max_rows:
            self._start = asyncio.get_running_loop().call_later(left, self._begin)
        else:
            self._begin()


def _parts(
    answer: Answer, inputs: Iterable[Inputs | BadInstances]
) -> Iterator[Answer | BadInstances]:
    """Yield the part of each request in the answer to all rows that were prepared."""
    start = 0
    for one in inputs:
        if isinstance(one, BadInstances):
            yield one
            continue
        end = start + len(one[0])
        yield answer.part(slice(start, end))
        start = end
