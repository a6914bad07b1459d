"""A PyTorch model on its device, which takes numpy arrays and returns checked numpy arrays.

torch_model.py makes it available to RunInference.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from apache_beam.metrics import Metrics

from common.errors import (
    ContractBroken,
    DeviceError,
    MissingDevice,
    class_name,
    one_line,
)
from model_handlers.devices.lanes import Host, Runner
from model_handlers.devices.pass_size import Arrays, PassSize, in_passes, is_out_of_memory
from model_handlers.devices.precision import AUTOCAST, Precision
from model_handlers.isolate import NotTried
from model_handlers.manifests.manifest import Manifest, OutputSpec
from model_handlers.manifests.tolerance import Tolerance
from model_handlers.preparation import Preparation

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
# The guard of a .pt2 whose batch dimension has a maximum.
_MOST_ROWS = re.compile(r"Guard failed: .*\.size\(\)\[0\] <= (\d+)")


@dataclass(eq=False, kw_only=True)
class LoadedModel:
    """A model on its device, with everything that is needed to run it; one per process.

    Attributes:
        module: The model in eval mode, on the device.
        outputs: The outputs that `forward` returns, in this order.
        size: The maximum number of rows in a forward pass; lowered while memory is short.
        precision: The numeric precision; bf16 and fp16 use torch.autocast.
        slack: The least tolerance for answers in the precision that the user has chosen.
        preparation: The steps of the manifest, if it has any.
        runner: Takes the inputs to the device and the outputs back. It may write into the inputs
            only after it has copied them: they are in Arrow's memory, which nothing may change.
    """

    module: Callable[..., Any]
    manifest: Manifest
    outputs: tuple[OutputSpec, ...]
    device: torch.device
    size: PassSize
    precision: Precision = "float32"
    slack: float = 0.0
    preparation: Preparation | None = None
    runner: Runner = field(default_factory=Host)

    @property
    def batch_rows(self) -> int:
        """The maximum number of rows in the next forward pass."""
        return self.size.rows

    @property
    def tolerance(self) -> Tolerance:
        """How far the answers may differ from the answers of the model when it was packaged."""
        return self.manifest.tolerance.at_least(self.slack)

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
        return in_passes(lambda part: self._attempt(inputs, part), rows, self.size)

    def _attempt(self, inputs: Sequence[np.ndarray], rows: slice) -> Arrays | None:
        """Run the model on rows; return None if they are too many, and make the size smaller."""
        count = rows.stop - rows.start
        try:
            return self._forward([array[rows] for array in inputs], count)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                check_device_works(error)
                raise
            if count <= 1:
                raise MemoryError(
                    f"this worker has too little memory for one row: {describe_error(error)}"
                ) from error
            Metrics.counter("millrace", "out_of_memory_halvings").inc()
            self.size.shrink(count // 2)
        except AssertionError as error:
            check_device_works(error)
            self.size.limit(self._most_rows(error, count))
        # This is outside the except block: a traceback would keep the tensors in memory.
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        return None

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

    def _forward(self, inputs: Arrays, rows: int) -> Arrays:
        arrays = [
            array.reshape(rows, *spec.shape)
            for array, spec in zip(inputs, self.manifest.inputs, strict=True)
        ]
        # Entering autocast costs as much as a small batch, so it is entered only when needed.
        dtype = AUTOCAST.get(self.precision)
        lower = torch.autocast(self.device.type, dtype) if dtype else nullcontext()
        with torch.inference_mode(), lower:
            return self.runner.run(lambda tensors: self._compute(tensors, rows), arrays)

    def _compute(self, tensors: list[torch.Tensor], rows: int) -> list[torch.Tensor]:
        """Return the tensors of the outputs, after checking them against the manifest."""
        named = name_outputs(self.module(*tensors), self.manifest)
        return [self._output(named, spec, rows) for spec in self.outputs]

    def _output(self, named: Mapping[str, Any], spec: OutputSpec, rows: int) -> torch.Tensor:
        """Return the tensor of an output, after checking it against the manifest."""
        tensor = named.get(spec.name)
        if not isinstance(tensor, torch.Tensor):
            raise ContractBroken(
                f"model {self.manifest.name}: expected an output tensor {spec.name!r}, "
                f"got {type(tensor).__name__}; the model returned {list(named)}"
            )
        if tensor.dtype == AUTOCAST.get(self.precision) and spec.dtype.startswith("float"):
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
        return tensor


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
