"""Requests that share a pass get the same answers as each would get in its own pass."""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from common.errors import DeviceError
from model_handlers.devices.pass_size import PassSize
from model_handlers.loaded_model import LoadedModel
from model_handlers.manifests.manifest import InputSpec, Manifest, OutputSpec
from model_handlers.run_model import Answer, run_model
from serving.batcher import Batcher

Make = Callable[..., Manifest]


def sums(x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Raise if any row has a 13, so that good rows in the same pass fail too."""
    if bool((x == 13).any()):
        raise ValueError("a 13")
    return x.sum(1) + y, x * 2


@pytest.fixture(scope="module")
def model(make_manifest: Make) -> LoadedModel:
    manifest = make_manifest(
        InputSpec("x", ("a", "b"), shape=(2,)),
        InputSpec("y", ("c",), shape=()),
        outputs=(OutputSpec("total"), OutputSpec("code", shape=(2,))),
    )
    return LoadedModel(
        module=sums,
        manifest=manifest,
        outputs=manifest.outputs,
        device=torch.device("cpu"),
        size=PassSize(16),
    )


def inputs_of(values: list[int]) -> list[np.ndarray]:
    column = np.array(values, np.float32)
    return [np.stack([column, column + 100], axis=1), column + 1000]


async def ask_together(
    model: Any, requests: list[list[int]], **settings: Any
) -> tuple[list[Any], list[int]]:
    """Send requests at the same time; return their answers or errors, and the rows of each pass."""
    passes: list[int] = []
    with ThreadPoolExecutor(1) as executor:
        batcher = Batcher(
            model,
            executor,
            observe=lambda requests, rows, seconds: passes.append(rows),
            **{"max_rows": 20, "max_wait": 0.0} | settings,
        )
        asked = (batcher.predict(inputs_of(values)) for values in requests)
        answers = await asyncio.gather(*asked, return_exceptions=True)
        assert batcher.waiting == 0
    return answers, passes


def assert_same(got: Answer, expected: Answer) -> None:
    assert list(got.faults) == list(expected.faults)
    # If all rows are bad, there may be no arrays. The values of bad rows mean nothing.
    for a, b in zip(got.arrays, expected.arrays, strict=False):
        bad = list(expected.faults)
        np.testing.assert_array_equal(np.delete(a, bad, 0), np.delete(b, bad, 0))


@given(
    requests=st.lists(
        st.lists(st.integers(10, 16), min_size=1, max_size=30), min_size=1, max_size=12
    ),
    max_wait=st.sampled_from([0.0, 0.001]),
)
def test_answers_are_the_same_together_and_alone(
    model: LoadedModel, requests: list[list[int]], max_wait: float
) -> None:
    answers, passes = asyncio.run(ask_together(model, requests, max_wait=max_wait))
    assert sum(passes) == sum(map(len, requests))
    assert all(rows <= 20 or rows in map(len, requests) for rows in passes)
    for values, answer in zip(requests, answers, strict=True):
        assert_same(answer, run_model(model, inputs_of(values), len(values)))


def test_bad_rows_are_found_and_good_rows_are_answered(model: LoadedModel) -> None:
    answer = run_model(model, inputs_of([1, 13, 2, 13, 3]), 5)
    assert list(answer.faults) == [1, 3]
    assert answer.arrays[0][[0, 2, 4]].tolist() == [1103, 1106, 1109]
    assert list(answer.part(slice(3, 5)).faults) == [0]


def test_simultaneous_requests_share_a_pass_up_to_the_limit(model: LoadedModel) -> None:
    _, passes = asyncio.run(ask_together(model, [[1] * 9] * 5, max_rows=20))
    assert passes == [18, 18, 9]


class Slow:
    """A model whose first pass waits for an event."""

    batch_rows = 100

    def __init__(self) -> None:
        self.begun, self.go = threading.Event(), threading.Event()
        self.sizes: list[int] = []

    def forward(self, inputs: list[np.ndarray], rows: slice) -> list[np.ndarray]:
        self.sizes.append(rows.stop - rows.start)
        self.begun.set()
        assert self.go.wait(60)
        return [inputs[1]]


@pytest.mark.parametrize("max_wait", [0.0, 3600.0])
def test_a_wait_ends_when_a_pass_is_full(max_wait: float) -> None:
    async def ask() -> list[int]:
        model = Slow()
        with ThreadPoolExecutor(1) as executor:
            batcher = Batcher(
                model,  # type: ignore[arg-type]
                executor,
                max_rows=4,
                max_wait=max_wait,
                observe=lambda *_: None,
            )
            # An idle model takes a single request without any wait.
            first = asyncio.create_task(batcher.predict(inputs_of([1])))
            await asyncio.to_thread(model.begun.wait, 60)
            second = asyncio.create_task(batcher.predict(inputs_of([2])))
            while not batcher.waiting:
                await asyncio.sleep(0)
            model.go.set()
            await first
            if max_wait == 0:
                await second
            third = asyncio.create_task(batcher.predict(inputs_of([3, 4, 5])))
            await asyncio.gather(second, third)
        return model.sizes

    assert asyncio.run(ask()) == ([1, 1, 3] if max_wait == 0 else [1, 4])


def test_a_device_error_fails_all_requests_of_the_pass_and_the_next_pass_runs(
    model: LoadedModel,
) -> None:
    class FailsOnce:
        batch_rows = 100
        failed = False

        def forward(self, inputs: Any, rows: slice) -> Any:
            if not self.failed:
                self.failed = True
                raise DeviceError("lost")
            return model.forward(inputs, rows)

    answers, passes = asyncio.run(ask_together(FailsOnce(), [[1] * 12, [2] * 8, [3]], max_rows=20))
    assert [type(answer) for answer in answers] == [DeviceError, DeviceError, Answer]
    assert passes == [1]


def test_a_cancelled_request_does_not_affect_others(model: LoadedModel) -> None:
    async def ask() -> Any:
        with ThreadPoolExecutor(1) as executor:
            batcher = Batcher(model, executor, max_rows=20, max_wait=0, observe=lambda *_: None)
            kept, cancelled = (
                asyncio.create_task(batcher.predict(inputs_of(values))) for values in ([1], [2])
            )
            await asyncio.sleep(0)
            cancelled.cancel()
            return await kept

    assert_same(asyncio.run(ask()), run_model(model, inputs_of([1]), 1))
