"""Runs batches on the host, or on GPUs so that the copies of one batch overlap with another batch.

A lane is the place of one batch on a device. Each GPU has two, so a third batch waits in its own
thread until one of them is free. A batch passes through pinned buffers of its lane:

    arrays ──> buffer ──copy──> tensors ──compute──> outputs ──copy──> buffer ──> arrays

Each lane has a stream for its copies. The lanes of a GPU share the stream in which the model
computes, and take turns to start it. So the memory of only one pass is in use at a time, and a
tensor that the model keeps between passes is never read before it is written.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from queue import SimpleQueue
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

# One batch computes while another one is copied.
LANES = 2
# The alignment of the tensors in a buffer, in bytes; that of the memory of a GPU.
_ALIGNMENT = 256
# A tensor in Arrow's memory is only given to models that do not write into their inputs.
warnings.filterwarnings("ignore", "The given NumPy array is not writable", UserWarning)

Compute = Callable[[list[Tensor]], Sequence[Tensor]]


class Runner(Protocol):
    """Runs batches, from arrays to arrays in the memory of the host."""

    def run(self, compute: Compute, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Run one batch; several threads may call this.

        Args:
            compute: A function from the tensors of the inputs to those of the outputs, all on one
                device.
            arrays: One array per input.

        Returns:
            One array per output, which the caller owns.

        Raises:
            Exception: Any exception of `compute` or of the device.
        """


@dataclass(frozen=True)
class Host:
    """Runs batches on the CPU.

    Attributes:
        copies: Whether the inputs are copied, because the model may write into them.
    """

    copies: bool = True

    def run(self, compute: Compute, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Run one batch in the memory of its arrays; see Runner."""
        # NumPy copies in a third of the time of torch.tensor.
        tensors = [torch.from_numpy(a.copy() if self.copies else a) for a in arrays]
        return [tensor.numpy(force=True) for tensor in compute(tensors)]


class Mark(Protocol):
    """A point in the work of a stream."""

    def synchronize(self) -> None:
        """Wait until the stream has passed this point."""


class Stream(Protocol):
    """A queue of work on a device, which is done in order while the host goes on."""

    def to_device(self, tensor: Tensor) -> Tensor:
        """Return a tensor on the device, into which a pinned tensor will be copied."""

    def to_host(self, tensor: Tensor, into: Tensor) -> None:
        """Copy a tensor of the device into a pinned tensor."""

    def call(self, compute: Compute, tensors: list[Tensor]) -> Sequence[Tensor]:
        """Call a function whose work on the device belongs to this stream."""

    def mark(self) -> Any:
        """Return a Mark behind all work so far."""

    def after(self, mark: Any) -> None:
        """Do later work only when the stream of a Mark has passed it."""

    def synchronize(self) -> None:
        """Wait until all work is done."""


class CudaStream:
    """A Stream of a GPU."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)

    def to_device(self, tensor: Tensor) -> Tensor:
        """Start to copy a pinned tensor to the GPU."""
        with torch.cuda.stream(self._stream):
            return tensor.to(self._device, non_blocking=True)

    def to_host(self, tensor: Tensor, into: Tensor) -> None:
        """Start to copy a tensor of the GPU into a pinned tensor."""
        with torch.cuda.stream(self._stream):
            into.copy_(tensor, non_blocking=True)

    def call(self, compute: Compute, tensors: list[Tensor]) -> Sequence[Tensor]:
        """Call a function, whose kernels then run in this stream."""
        with torch.cuda.stream(self._stream):
            return compute(tensors)

    def mark(self) -> torch.cuda.Event:
        """Return an event behind all work so far; waiting for it leaves the CPU to others."""
        event = torch.cuda.Event(blocking=True)
        event.record(self._stream)
        return event

    def after(self, mark: torch.cuda.Event) -> None:
        """Let later work wait for an event."""
        self._stream.wait_event(mark)

    def synchronize(self) -> None:
        """Wait until all work is done."""
        self._stream.synchronize()


class Staging:
    """A pinned buffer that is used again for each batch.

    Args:
        pinned: A function that returns a pinned tensor of so many bytes.
    """

    def __init__(self, pinned: Callable[[int], Tensor]) -> None:
        self._pinned = pinned
        self._buffer = pinned(_ALIGNMENT)

    def hold(self, like: Iterable[Tensor]) -> list[Tensor]:
        """Return tensors in the buffer with the dtypes and shapes of others, for one batch."""
        like = list(like)
        starts = np.cumsum([0] + [-(-one.nbytes // _ALIGNMENT) * _ALIGNMENT for one in like])
        if starts[-1] > self._buffer.nbytes:
            # A larger batch is likely to be followed by one that is a little larger.
            self._buffer = self._pinned(1 << (int(starts[-1]) - 1).bit_length())
        return [
            self._buffer[start : start + one.nbytes].view(one.dtype).view(one.shape)
            for start, one in zip(starts.tolist(), like, strict=False)
        ]


class Lane:
    """The place of one batch on a device; one thread uses it at a time.

    Args:
        copying: The stream of this lane's copies.
        computing: The stream in which all lanes of the device compute.
        turn: The lock of that stream.
        pinned: A function that returns a pinned tensor of so many bytes.
    """

    def __init__(
        self,
        copying: Stream,
        computing: Stream,
        turn: threading.Lock,
        pinned: Callable[[int], Tensor],
    ) -> None:
        self._copying, self._computing, self._turn = copying, computing, turn
        self._sent, self._received = Staging(pinned), Staging(pinned)

    def run(self, compute: Compute, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Run one batch; see Runner."""
        try:
            return self._run(compute, arrays)
        except BaseException:
            # The device must no longer use the buffers when the next batch is written into them.
            for stream in (self._copying, self._computing):
                with suppress(Exception):
                    stream.synchronize()
            raise

    def _run(self, compute: Compute, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        given = [torch.from_numpy(array) for array in arrays]
        staged = self._sent.hold(given)
        for buffer, tensor in zip(staged, given, strict=True):
            buffer.copy_(tensor)
        tensors = [self._copying.to_device(buffer) for buffer in staged]
        sent = self._copying.mark()
        with self._turn:
            self._computing.after(sent)
            outputs = self._computing.call(compute, tensors)
            computed = self._computing.mark()
        self._copying.after(computed)
        received = self._received.hold(outputs)
        for output, buffer in zip(outputs, received, strict=True):
            self._copying.to_host(output, buffer)
        # The tensors of the batch live until here, so no other stream gets their memory earlier.
        self._copying.mark().synchronize()
        return [buffer.numpy().copy() for buffer in received]


def lanes_of(new_stream: Callable[[], Stream], pinned: Callable[[int], Tensor]) -> list[Lane]:
    """Return the lanes of one device.

    Args:
        new_stream: A function that returns a new stream of the device.
        pinned: A function that returns a pinned tensor of so many bytes.
    """
    computing, turn = new_stream(), threading.Lock()
    return [Lane(new_stream(), computing, turn, pinned) for _ in range(LANES)]


class Lanes:
    """Runs each batch on a free lane, and lets it wait if there is none.

    Args:
        lanes: The lanes of each device. Devices take turns.
    """

    def __init__(self, lanes: Iterable[Sequence[Lane]]) -> None:
        self._free: SimpleQueue[Lane] = SimpleQueue()
        for each in zip(*lanes, strict=True):
            for lane in each:
                self._free.put(lane)

    def run(self, compute: Compute, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Run one batch; see Runner."""
        lane = self._free.get()
        try:
            return lane.run(compute, arrays)
        finally:
            self._free.put(lane)


def runner_on(devices: Sequence[torch.device], copies: bool = True) -> Runner:
    """Return what runs batches on the CPU or on GPUs, to which the model was moved before.

    Args:
        devices: The CPU, or one or more GPUs.
        copies: Whether inputs in the memory of the host are copied; see Host.
    """
    if devices[0].type == "cpu":
        return Host(copies)
    for device in devices:
        torch.cuda.synchronize(device)
    return Lanes(lanes_of(partial(CudaStream, device), pinned) for device in devices)


def pinned(size: int) -> Tensor:
    """Return a tensor of bytes in memory that a GPU can read and write by itself."""
    return torch.empty(size, dtype=torch.uint8, pin_memory=True)


class Replicas:
    """Copies of one model on several GPUs; a batch is run by the copy that is where it is.

    Args:
        modules: The copy on each device.
    """

    def __init__(self, modules: Mapping[torch.device, Callable[..., Any]]) -> None:
        self._modules = dict(modules)

    def __call__(self, *tensors: Tensor) -> Any:
        """Return what the copy on the device of the tensors returns."""
        return self._modules[tensors[0].device](*tensors)
