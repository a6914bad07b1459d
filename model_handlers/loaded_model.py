"""A PyTorch model on its device, which takes numpy arrays and returns checked numpy arrays.

torch_model.py makes it available to RunInference.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from apache_beam.metrics import Metrics

from common.errors import (
    ContractBroken,
    DeviceError,
    MissingDevice,
    UsageError,
    class_name,
    one_line,
)
from common.memory import is_of_memory
from model_handlers.isolate import NotTried
from model_handlers.manifest import Manifest, OutputSpec
from model_handlers.preparation import Preparation
from model_handlers.tolerance import Tolerance

# Exceptions that a model may raise because of the values of a row. MemoryError, errors of the
# accelerator and this project's own errors are not among them: they fail the bundle.
# TorchScript turns an exception that a script raises into torch.jit.Error.
ROW_FAULTS = (
    ArithmeticError,
    AssertionError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
    torch.jit.Error,
)
# TorchScript reports errors of the machine as plain RuntimeErrors.
_FAILED = re.compile(r"CUDA error|cuDNN error|CUBLAS_STATUS")
# The texts with which torch says that this machine, or this build of torch, lacks something.
_LACKS = re.compile(
    r"NVIDIA driver|not (?:compiled|linked) with|requires compiling PyTorch with"
    r"|library not found in compilation|No (?:CUDA|HIP|XPU) (?:GPUs|devices) are available"
    r"|with arguments from the '\w+' backend|Expected all tensors to be on the same device"
    r"|[Cc]annot access accelerator device|find engine for operation|needs the cpu support"
)
# A tensor in Arrow's memory is only given to models that do not write into their inputs.
warnings.filterwarnings("ignore", "The given NumPy array is not writable", UserWarning)
# The guard of a .pt2 whose batch dimension has a maximum.
_MOST_ROWS = re.compile(r"Guard failed: .*\.size\(\)\[0\] <= (\d+)")
# Half precision keeps 8 (bf16) to 11 (fp16) bits, so known-good rows are compared less strictly.
_HALF_TOLERANCE = 5e-2


def check_device(device: str) -> str:
    """Return the name of a device. Raise UsageError unless it is auto, cpu, cuda or cuda:N."""
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", device):
        raise UsageError(f"device must be auto, cpu, cuda or cuda:N, got {device!r}")
    return device


def resolve_device(device: str) -> torch.device:
    """Return the device of this worker that a checked name stands for.

    Args:
        device: A name that `check_device` accepts; `auto` is the GPU if the worker has one.

    Raises:
        DeviceError: This worker does not have the device.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    resolved = torch.device(device)
    count = torch.cuda.device_count() if resolved.type == "cuda" else 0
    if resolved.type == "cuda" and (resolved.index or 0) >= count:
        raise DeviceError(
            f"device {device} is not available: this worker has {count} CUDA "
            f"device{'' if count == 1 else 's'}; use --device auto or cpu, or workers with a GPU "
            "and its driver"
        )
    return resolved


@dataclass(eq=False, kw_only=True)
class LoadedModel:
    """A model on its device, with everything that is needed to run it; one per process.

    Attributes:
        module: The model in eval mode, on the device.
        outputs: The outputs that `forward` returns, in this order.
        batch_rows: The maximum number of rows in a forward pass; lowered when memory runs out.
        autocast: The dtype of torch.autocast, or None to compute in the model's own dtype.
        preparation: The steps of the manifest, if it has any.
        copies: Whether the inputs are copied, because the module may write into them. They are in
            Arrow's memory, which nothing may change.
    """

    module: Callable[..., Any]
    manifest: Manifest
    outputs: tuple[OutputSpec, ...]
    device: torch.device
    batch_rows: int
    autocast: torch.dtype | None = None
    preparation: Preparation | None = None
    copies: bool = True

    @property
    def tolerance(self) -> Tolerance:
        """How far the answers may differ from the answers of the model when it was packaged."""
        slack = _HALF_TOLERANCE if self.autocast is not None else 0.0
        return self.manifest.tolerance.at_least(slack)

    def forward(self, inputs: Sequence[np.ndarray], rows: slice) -> list[np.ndarray]:
        """Run the model on a range of rows.

        If memory runs out, or the model accepts only fewer rows at once, the range is run again in
        smaller passes.

        Args:
            inputs: One array per input of the manifest, `[rows, width]` or `[rows]`.
            rows: The rows of the arrays to run.

        Returns:
            One array `[rows, *shape]` per output, in the memory of the host.

        Raises:
            ContractBroken: The answer does not have the outputs of the manifest, or the model
                cannot process this number of rows.
            DeviceError: The accelerator failed, or the machine lacks what the model needs.
            MemoryError: There is not enough memory for a single row.
            Exception: Any exception that the model itself raises.
        """
        count = rows.stop - rows.start
        try:
            return self._forward([array[rows] for array in inputs], count)
        except (RuntimeError, MemoryError) as error:
            if not _out_of_memory(error):
                check_device_works(error)
                raise
            if count <= 1:
                raise MemoryError(
                    f"this worker has too little memory for one row: {describe_error(error)}"
                ) from error
            Metrics.counter("millrace", "out_of_memory_halvings").inc()
            most = count // 2
        except AssertionError as error:
            check_device_works(error)
            most = self._most_rows(error, count)
        # This call is outside the except block: a traceback would keep the tensors in memory.
        return self._in_smaller_passes(inputs, rows, most)

    def _most_rows(self, error: AssertionError, count: int) -> int:
        """Return how many rows a model accepts at once that refused `count`, or raise the error.

        The guards of torch.export check sizes, never values: they raise ContractBroken.
        """
        if not str(error).startswith("Guard failed"):
            raise error
        found = _MOST_ROWS.match(str(error))
        if found and 0 < int(found[1]) < count:
            return int(found[1])
        raise ContractBroken(
            f"model {self.manifest.name} cannot process {count_of(count)}: {one_line(error)}; "
            f"{guard_advice(error)}"
        ) from error

    def _in_smaller_passes(
        self, inputs: Sequence[np.ndarray], rows: slice, most: int
    ) -> list[np.ndarray]:
        """Run the rows in passes of at most `most` rows, now and in later calls."""
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        self.batch_rows = min(self.batch_rows, most)
        parts, start = [], rows.start
        while start < rows.stop:
            # batch_rows may have become smaller, because a part had to be halved again.
            stop = min(start + self.batch_rows, rows.stop)
            parts.append(self.forward(inputs, slice(start, stop)))
            start = stop
        return [np.concatenate(arrays) for arrays in zip(*parts, strict=True)]

    def _forward(self, inputs: list[np.ndarray], rows: int) -> list[np.ndarray]:
        # Entering autocast costs as much as a small batch, so it is entered only when needed.
        lower = torch.autocast(self.device.type, self.autocast) if self.autocast else nullcontext()
        with torch.inference_mode(), lower:
            tensors = [
                self._tensor(array.reshape(rows, *spec.shape))
                for array, spec in zip(inputs, self.manifest.inputs, strict=True)
            ]
            named = name_outputs(self.module(*tensors), self.manifest)
            return [self._to_host(named, spec, rows) for spec in self.outputs]

    def _tensor(self, array: np.ndarray) -> torch.Tensor:
        """Return an array as a tensor on the device, which the model may change if it copies."""
        # NumPy copies in a third of the time of torch.tensor.
        return torch.from_numpy(array.copy() if self.copies else array).to(self.device)

    def _to_host(self, named: Mapping[str, Any], spec: OutputSpec, rows: int) -> np.ndarray:
        """Return the array of an output, after checking it against the manifest."""
        tensor = named.get(spec.name)
        if not isinstance(tensor, torch.Tensor):
            raise ContractBroken(
                f"model {self.manifest.name}: expected an output tensor {spec.name!r}, "
                f"got {type(tensor).__name__}; the model returned {list(named)}"
            )
        if tensor.dtype == self.autocast and spec.dtype.startswith("float"):
            tensor = tensor.to(getattr(torch, spec.dtype))
        expected = (rows, *spec.shape)
        # A model that ends in squeeze() drops the batch dimension of a batch of one row. One that
        # ends in a layer of width 1 returns one number per row as [rows, 1].
        loose = rows == 1 or (not spec.shape and tensor.shape[:1] == expected)
        if loose and tensor.numel() == math.prod(expected):
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
    """Return whether the GPU or the host ran out of memory."""
    if isinstance(error, torch.OutOfMemoryError) or is_of_memory(error):
        return True
    return "ALLOC_FAILED" in str(error)


def guard_advice(error: BaseException) -> str:
    """Return advice for an error of a guard of torch.export, which checks the size of an input."""
    if ".size()[0]" in str(error):
        return "export it with a dynamic batch dimension, torch.export.Dim('rows'), without limits"
    return "check that the inputs have the columns and shapes with which the model was exported"


def check_device_works(error: Exception) -> None:
    """Raise an error if an exception in a forward pass is a fault of the machine.

    Args:
        error: The exception.

    Raises:
        DeviceError: The accelerator failed. After some of these errors every later call fails, so
            the rows are not to blame.
        MissingDevice: The machine or this build of torch lacks what the model needs.
    """
    text = str(error)
    if isinstance(error, torch.AcceleratorError) or _FAILED.search(text):
        raise DeviceError(f"the accelerator failed: {describe_error(error)}") from error
    if _LACKS.search(text):
        raise MissingDevice(
            f"this machine lacks what a part of the model needs: {describe_error(error)}; run the "
            "model where it is available, or save a model that does not need it"
        ) from error


def count_of(rows: int) -> str:
    """Return a number of rows as text, such as `1 row` or `4,096 rows`."""
    return "1 row" if rows == 1 else f"{rows:,} rows"


def name_outputs(answer: Any, manifest: Manifest) -> Mapping[str, Any]:
    """Return the tensors of a module's answer by output name.

    Args:
        answer: What the module returned: a dict, a tuple or list in the order of the manifest's
            outputs, or a single tensor.
        manifest: The manifest of the model.

    Raises:
        ContractBroken: The number of tensors differs from the number of outputs.
    """
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
    """Return the class and the message of an exception that a model raised, in one line.

    TorchScript's own traceback, which precedes the message, is left out.
    """
    if isinstance(error, NotTried):
        return (
            f"not tried on its own, because most rows of its batch fail: of {error.tried} rows "
            f"chosen at random, {error.failed} failed, for example with "
            f"{describe_error(error.example)}"
        )[:300]
    text = str(error).strip()
    if "TorchScript interpreter" in text:
        text = text.splitlines()[-1].strip().removeprefix("builtins.")
    if re.match(r"[\w.]+(Error|Exception)\b", text):
        return text[:300]
    return f"{class_name(error)}: {one_line(error)}"
