"""A PyTorch model in memory, on its device: numpy arrays in, checked numpy arrays out.

torch_model.py puts it behind RunInference.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from apache_beam.metrics import Metrics

from common.errors import ContractBroken, DeviceError, UsageError, one_line
from common.memory import is_of_memory
from model_handlers.isolate import NotTried
from model_handlers.manifest import Manifest, OutputSpec
from model_handlers.tolerance import Tolerance

# What a model may raise because of what is in a row. Not MemoryError, not an error
# of the accelerator, and none of this project's own: these fail the bundle.
# torch.jit.Error is what an exception raised inside TorchScript comes out as.
ROW_FAULTS = (
    ArithmeticError,
    AssertionError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
    torch.jit.Error,
)
# TorchScript tells errors of the machine as plain RuntimeErrors.
_NO_DEVICE = re.compile(r"CUDA error|cuDNN error|CUBLAS_STATUS")
# Half precision keeps 8 (bf16) to 11 (fp16) bits: golden rows are compared to what that allows.
_HALF_TOLERANCE = 5e-2


def check_device(device: str) -> str:
    """A device's name -> itself. Raises UsageError unless it is auto, cpu, cuda or cuda:N."""
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", device):
        raise UsageError(f"device: expected auto, cpu, cuda or cuda:N, got {device!r}")
    return device


def resolve_device(device: str) -> torch.device:
    """A checked name -> the device of this worker. Raises DeviceError if it has none such."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    resolved = torch.device(device)
    if resolved.type == "cuda" and (resolved.index or 0) >= torch.cuda.device_count():
        raise DeviceError(
            f"device {device}: this worker has {torch.cuda.device_count()} CUDA devices; use "
            "--device auto or cpu, or workers with a GPU and its driver"
        )
    return resolved


@dataclass(eq=False, kw_only=True)
class LoadedModel:
    """A model on its device, with all that is needed to run it; one per process.

    batch_rows: rows of one forward pass at most; halved when memory runs out.
    """

    module: Callable[..., Any]
    manifest: Manifest
    outputs: tuple[OutputSpec, ...]
    device: torch.device
    batch_rows: int
    autocast: torch.dtype | None = None

    @property
    def tolerance(self) -> Tolerance:
        """How far its answers may lie from those of the model that was packaged."""
        slack = _HALF_TOLERANCE if self.autocast is not None else 0.0
        return self.manifest.tolerance.at_least(slack)

    def forward(self, inputs: Sequence[np.ndarray], rows: slice) -> list[np.ndarray]:
        """Input arrays and a range of rows -> one array per output, in memory of the host.

        Raises ContractBroken, DeviceError, MemoryError, and whatever the model raises.
        """
        try:
            return self._forward([array[rows] for array in inputs], rows.stop - rows.start)
        except (RuntimeError, MemoryError) as error:
            if not _out_of_memory(error):
                _check_device_works(error)
                raise
            if rows.stop - rows.start <= 1:
                raise MemoryError(
                    f"one row is too much for this worker: {describe_error(error)}"
                ) from error
        except AssertionError as error:
            # A guard of torch.export speaks of sizes, never of values.
            if not str(error).startswith("Guard failed"):
                raise
            raise ContractBroken(
                f"model {self.manifest.name} cannot take {count_of(rows.stop - rows.start)}: "
                f"{one_line(error)}; export it with a dynamic batch dimension, and describe its "
                "inputs in the manifest as they are"
            ) from error
        # Out of the except block, whose traceback would keep the tensors in memory.
        return self._in_smaller_passes(inputs, rows)

    def _in_smaller_passes(self, inputs: Sequence[np.ndarray], rows: slice) -> list[np.ndarray]:
        """The same rows, at most half of them at a time from now on."""
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        self.batch_rows = min(self.batch_rows, (rows.stop - rows.start) // 2)
        Metrics.counter("millrace", "out_of_memory_halvings").inc()
        parts, start = [], rows.start
        while start < rows.stop:
            # Read anew each time: a part may have to be halved again.
            stop = min(start + self.batch_rows, rows.stop)
            parts.append(self.forward(inputs, slice(start, stop)))
            start = stop
        return [np.concatenate(arrays) for arrays in zip(*parts, strict=True)]

    def _forward(self, inputs: list[np.ndarray], rows: int) -> list[np.ndarray]:
        # Entered for nothing, autocast would cost as much as a small batch.
        lower = torch.autocast(self.device.type, self.autocast) if self.autocast else nullcontext()
        with torch.inference_mode(), lower:
            # Copied: a model that works in place must not write into Arrow's memory. NumPy
            # does it in a third of the time that torch.tensor takes.
            tensors = [
                torch.from_numpy(array.reshape(rows, *spec.shape).copy()).to(self.device)
                for array, spec in zip(inputs, self.manifest.inputs, strict=True)
            ]
            named = name_outputs(self.module(*tensors), self.manifest)
            return [self._to_host(named, spec, rows) for spec in self.outputs]

    def _to_host(self, named: Mapping[str, Any], spec: OutputSpec, rows: int) -> np.ndarray:
        """The model's answer and an output -> its array, checked against the manifest."""
        tensor = named.get(spec.name)
        if not isinstance(tensor, torch.Tensor):
            raise ContractBroken(
                f"model {self.manifest.name}: expected an output tensor {spec.name!r}, "
                f"got {type(tensor).__name__} among {list(named)}"
            )
        if tensor.dtype == self.autocast and spec.dtype.startswith("float"):
            tensor = tensor.to(getattr(torch, spec.dtype))
        expected = (rows, *spec.shape)
        if rows == 1 and tensor.numel() == math.prod(expected):
            # A model that ends in squeeze() drops the batch dimension of one row alone.
            tensor = tensor.reshape(expected)
        if (tensor.dtype, tensor.shape) != (getattr(torch, spec.dtype), expected):
            raise ContractBroken(
                f"model {self.manifest.name}: output {spec.name!r} for {count_of(rows)}: expected "
                f"{spec.dtype} {list(expected)}, got "
                f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
            )
        array: np.ndarray = tensor.numpy(force=True)
        return array


def _out_of_memory(error: Exception) -> bool:
    """Whether memory ran out, of the GPU or of the host."""
    if isinstance(error, torch.OutOfMemoryError) or is_of_memory(error):
        return True
    return "ALLOC_FAILED" in str(error)


def _check_device_works(error: Exception) -> None:
    """An error in a forward pass -> nothing, or DeviceError if it is the accelerator's.

    After some of these every later call fails, so no row is to blame.
    """
    if isinstance(error, torch.AcceleratorError) or _NO_DEVICE.search(str(error)):
        raise DeviceError(f"the accelerator failed: {describe_error(error)}") from error


def count_of(rows: int) -> str:
    """A number of rows -> as a sentence has it."""
    return "1 row" if rows == 1 else f"{rows:,} rows"


def name_outputs(answer: Any, manifest: Manifest) -> Mapping[str, Any]:
    """What a module returned -> output name -> tensor: a dict, a tuple in order, or one tensor."""
    if isinstance(answer, Mapping):
        return answer
    values = list(answer) if isinstance(answer, (tuple, list)) else [answer]
    names = [spec.name for spec in manifest.outputs]
    if len(values) != len(names):
        raise ContractBroken(
            f"model {manifest.name}: expected {len(names)} outputs ({', '.join(names)}), "
            f"got {len(values)}"
        )
    return dict(zip(names, values, strict=True))


def describe_error(error: BaseException) -> str:
    """What a model raised -> one line: the class and the message.

    TorchScript puts its own traceback before the message of the raised exception.
    """
    if isinstance(error, NotTried):
        return (
            f"not tried alone, since most rows of its batch fail: {error.failed} of {error.tried} "
            f"that were, taken at random, one with {describe_error(error.example)}"
        )[:300]
    text = str(error).strip()
    if "TorchScript interpreter" in text:
        text = text.splitlines()[-1].strip().removeprefix("builtins.")
    if re.match(r"[\w.]+(Error|Exception)\b", text):
        return text[:300]
    return f"{type(error).__name__}: {one_line(error)}"
