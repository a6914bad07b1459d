"""Two ways to score batches on a device: the plain one of a loop, and that of Millrace."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from model_handlers.devices.lanes import (
    Compute,
    CudaStream,
    Lane,
    Lanes,
    Runner,
    pinned,
    runner_on,
)
from model_handlers.devices.pass_size import Arrays, PassSize, in_passes, is_out_of_memory
from model_handlers.devices.precision import AUTOCAST, set_matmul_precision


@dataclass(frozen=True)
class Plain:
    """Copies pageable arrays in the default stream, and waits for each answer."""

    device: torch.device

    def run(self, compute: Compute, arrays: Sequence[np.ndarray]) -> Arrays:
        """Run one batch."""
        tensors = [torch.from_numpy(array).to(self.device) for array in arrays]
        return [tensor.numpy(force=True) for tensor in compute(tensors)]


def runners(device: torch.device) -> dict[str, Runner]:
    """Return the ways to run batches by name: what is compared, and two other designs."""
    found: dict[str, Runner] = {"plain": Plain(device), "millrace": runner_on((device,))}
    if device.type == "cuda":
        found["four_lanes"] = _lanes(device, 4, shared=True)
        found["own_compute_streams"] = _lanes(device, 2, shared=False)
    return found


def _lanes(device: torch.device, count: int, *, shared: bool) -> Lanes:
    """Return lanes that share the stream in which they compute, or have one each."""
    computing = [(CudaStream(device), threading.Lock()) for _ in range(1 if shared else count)]
    turns = itertools.islice(itertools.cycle(computing), count)
    return Lanes([[Lane(CudaStream(device), *turn, pinned) for turn in turns]])


@dataclass(eq=False, frozen=True, kw_only=True)
class Scorer:
    """A model on a device, with a way to run it.

    Attributes:
        size: The rows of a pass.
    """

    module: nn.Module
    device: torch.device
    runner: Runner
    size: PassSize
    precision: str = "float32"

    def score(self, array: np.ndarray) -> Arrays:
        """Return the outputs for an input `[rows, ...]`, in passes that fit into memory."""
        parts, start = [], 0
        while start < len(array):
            stop = min(start + self.size.rows, len(array))
            window = slice(start, stop)
            parts.append(in_passes(lambda rows: self._attempt(array[rows]), window, self.size))
            start = stop
        return parts[0] if len(parts) == 1 else [*map(np.concatenate, zip(*parts, strict=True))]

    def _attempt(self, array: np.ndarray) -> Arrays | None:
        dtype = AUTOCAST.get(self.precision)
        lower = torch.autocast(self.device.type, dtype) if dtype else nullcontext()
        try:
            with torch.inference_mode(), lower:
                return self.runner.run(self._compute, [array])
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error) or len(array) == 1:
                raise
            self.size.shrink(len(array) // 2)
        torch.cuda.empty_cache()
        return None

    def _compute(self, tensors: list[Tensor]) -> list[Tensor]:
        answer = self.module(*tensors)
        outputs = [*answer.values()] if isinstance(answer, Mapping) else [answer]
        return [output.float() for output in outputs]


def pace(scorer: Scorer, batches: Sequence[np.ndarray], threads: int, seconds: float) -> float:
    """Return how many rows a second some threads score together.

    Args:
        scorer: The model.
        batches: Batches, which each thread takes from its own place in the list on.
        threads: The number of threads.
        seconds: After this time, no thread starts another batch after its first.
    """
    set_matmul_precision(scorer.precision)
    counts, end = [0] * threads, time.perf_counter() + seconds

    def work(number: int) -> None:
        turn = number
        while turn == number or time.perf_counter() < end:
            batch = batches[turn % len(batches)]
            scorer.score(batch)
            counts[number] += len(batch)
            turn += 1

    start = time.perf_counter()
    _in_threads(work, threads)
    return sum(counts) / (time.perf_counter() - start)


def wrong_batches(
    scorer: Scorer, batches: Sequence[np.ndarray], expected: Sequence[Arrays], threads: int
) -> int:
    """Return how many batches have other answers than expected when several threads score them."""
    set_matmul_precision(scorer.precision)
    wrong = [0] * threads

    def work(number: int) -> None:
        for turn in range(len(batches)):
            at = (turn + number) % len(batches)
            pairs = zip(scorer.score(batches[at]), expected[at], strict=True)
            wrong[number] += not all(np.allclose(a, b, 1e-3, 1e-3) for a, b in pairs)

    _in_threads(work, threads)
    return sum(wrong)


def _in_threads(work: Callable[[int], None], threads: int) -> None:
    """Call a function with the number of each thread, and raise what one of them raised."""
    faults: list[BaseException] = []

    def guarded(number: int) -> None:
        try:
            work(number)
        except BaseException as error:
            faults.append(error)

    pool = [threading.Thread(target=guarded, args=(n,)) for n in range(threads)]
    for thread in pool:
        thread.start()
    for thread in pool:
        thread.join()
    if faults:
        raise faults[0]
