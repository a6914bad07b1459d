"""TorchModelHandler: RunInference over Arrow record batches, model in the worker.

Record batches in, the same rows out with two columns more, `outputs` and `error`
(see transforms/record_batch.py). Row count in = row count out, always.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import torch
from apache_beam.metrics import Metrics
from apache_beam.ml.inference.base import ModelHandler

from model_handlers.artifact import read_package
from model_handlers.contract import GoldenRows, Manifest, OutputSpec
from model_handlers.errors import ContractBroken, DeviceError, UsageError
from model_handlers.formats import load_module
from model_handlers.isolate import isolate
from transforms.record_batch import ERROR, ERROR_TYPE, INPUTS, OUTPUTS, struct_columns

Precision = Literal["float32", "bf16", "fp16"]

# Measured on 2 cores with the example's autoencoder: 1,024 to 16,384 rows are within a few
# per cent of each other; above, the activations leave the cache.
BATCH_ROWS = 8192

# What a model may raise because of what is in a row. Not MemoryError, not an error
# of the accelerator, and none of this project's own: these fail the bundle.
ROW_FAULTS = (ArithmeticError, AssertionError, LookupError, RuntimeError, TypeError, ValueError)

_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}
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


@dataclass(eq=False)
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

    def forward(self, inputs: Sequence[np.ndarray], rows: slice) -> list[np.ndarray]:
        """Input arrays and a range of rows -> one array per output, in memory of the host.

        Raises ContractBroken, DeviceError, and whatever the model raises.
        """
        try:
            return self._forward([array[rows] for array in inputs], rows.stop - rows.start)
        except RuntimeError as error:
            if isinstance(error, torch.AcceleratorError):
                raise DeviceError(f"the accelerator failed: {error}") from error
            if not _out_of_memory(error) or rows.stop - rows.start == 1:
                raise MemoryError(str(error)) if _out_of_memory(error) else error from None
        # Out of the except block: its traceback would keep the tensors alive.
        return self._halved(inputs, rows)

    def _halved(self, inputs: Sequence[np.ndarray], rows: slice) -> list[np.ndarray]:
        """The same rows in two passes, and no larger pass from now on."""
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        middle = (rows.start + rows.stop) // 2
        self.batch_rows = min(self.batch_rows, middle - rows.start)
        Metrics.counter("millrace", "out_of_memory_halvings").inc()
        first = self.forward(inputs, slice(rows.start, middle))
        second = self.forward(inputs, slice(middle, rows.stop))
        return [np.concatenate(pair) for pair in zip(first, second, strict=True)]

    def _forward(self, inputs: list[np.ndarray], rows: int) -> list[np.ndarray]:
        with (
            torch.inference_mode(),
            torch.autocast(self.device.type, self.autocast, enabled=self.autocast is not None),
        ):
            # torch.tensor copies: a model that works in place must not write into Arrow's memory.
            tensors = [
                torch.tensor(array.reshape(rows, *spec.shape), device=self.device)
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
                f"got {sorted(named)}"
            )
        if self.autocast is not None and tensor.is_floating_point():
            tensor = tensor.to(getattr(torch, spec.dtype))
        expected = (rows, *spec.shape)
        if tuple(tensor.shape) != expected or str(tensor.dtype) != f"torch.{spec.dtype}":
            raise ContractBroken(
                f"model {self.manifest.name}: output {spec.name!r} for {rows} rows: expected "
                f"{spec.dtype} {list(expected)}, got "
                f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
            )
        return tensor.cpu().contiguous().numpy()


def _out_of_memory(error: RuntimeError) -> bool:
    """Whether torch ran out of memory, on the GPU or (a plain RuntimeError) on the host."""
    return isinstance(error, torch.OutOfMemoryError) or "not enough memory" in str(error)


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


def predict_columns(
    model: LoadedModel, inputs: Mapping[str, pa.Array], rows: int
) -> tuple[pa.StructArray, pa.StructArray]:
    """A model and validated input columns -> the columns `outputs` and `error`, row by row.

    inputs: as `InputSpec.arrow_type`, without nulls. Where a row has an error, its
    outputs are null.
    """
    arrays = [_to_numpy(inputs[spec.name]) for spec in model.manifest.inputs]
    parts: list[tuple[slice, list[np.ndarray]]] = []
    faults: dict[int, Exception] = {}
    start = 0
    while start < rows:
        # Read anew each time: running out of memory lowers it.
        window = slice(start, min(start + model.batch_rows, rows))
        for part, result in isolate(lambda s: model.forward(arrays, s), window, ROW_FAULTS):
            if isinstance(result, Exception):
                faults[part.start] = result
            else:
                parts.append((part, result))
        start = window.stop
    return _outputs_column(model.outputs, parts, faults, rows), _error_column(faults, rows)


def _to_numpy(column: pa.Array) -> np.ndarray:
    """An input column -> its values, [rows * width] as [rows, width], without a copy."""
    if pa.types.is_fixed_size_list(column.type):
        return (
            column.flatten()
            .to_numpy(zero_copy_only=False)
            .reshape(len(column), column.type.list_size)
        )
    return column.to_numpy(zero_copy_only=False)


def _outputs_column(
    specs: Sequence[OutputSpec],
    parts: Sequence[tuple[slice, list[np.ndarray]]],
    faults: Mapping[int, Exception],
    rows: int,
) -> pa.StructArray:
    mask = _mask(faults, rows) if faults else None
    columns = []
    for i, spec in enumerate(specs):
        if len(parts) == 1 and not faults:
            whole = parts[0][1][i]
        else:
            whole = np.zeros((rows, *spec.shape), dtype=spec.dtype)
            for part, arrays in parts:
                whole[part] = arrays[i]
        columns.append(to_arrow(whole, spec))
    fields = [pa.field(spec.name, spec.arrow_type) for spec in specs]
    return pa.StructArray.from_arrays(columns, fields=fields, mask=mask)


def _mask(faults: Iterable[int], rows: int) -> pa.Array:
    mask = np.zeros(rows, dtype=bool)
    mask[list(faults)] = True
    return pa.array(mask)


def to_arrow(values: np.ndarray, spec: OutputSpec) -> pa.Array:
    """An output's array [rows, *shape] -> its Arrow column, without a copy where Arrow allows."""
    column = pa.array(values.reshape(-1))
    for size in reversed(spec.shape):
        column = pa.FixedSizeListArray.from_arrays(column, size)
    return column


def _error_column(faults: Mapping[int, Exception], rows: int) -> pa.StructArray:
    if not faults:
        return pa.nulls(rows, ERROR_TYPE)
    values: list[dict[str, str] | None] = [None] * rows
    for row, error in faults.items():
        values[row] = {"reason": "model_error", "message": describe(error)}
    return pa.array(values, ERROR_TYPE)


def describe(error: Exception) -> str:
    """What a model raised -> one line: the class and the last line of its message.

    TorchScript puts its own traceback before the message of the raised exception.
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    line = lines[-1] if lines else ""
    name = type(error).__name__
    return line if line.startswith(name) else f"{name}: {line}"


def check_golden_rows(model: LoadedModel, golden: GoldenRows) -> None:
    """A model and rows with known answers -> nothing, or ContractBroken at the first difference."""
    arrays = [
        np.asarray(golden.inputs[spec.name], dtype=spec.dtype) for spec in model.manifest.inputs
    ]
    rows = slice(0, len(arrays[0]))
    try:
        answers = model.forward(arrays, rows)
    except ROW_FAULTS as error:
        raise ContractBroken(
            f"model {model.manifest.name} fails on its golden rows: {describe(error)}"
        ) from error
    slack = _HALF_TOLERANCE if model.autocast is not None else 0.0
    for spec, answer in zip(model.outputs, answers, strict=True):
        if spec.name not in golden.outputs:
            continue
        expected = np.asarray(golden.outputs[spec.name], dtype=spec.dtype).reshape(answer.shape)
        close = np.isclose(
            answer, expected, rtol=max(golden.rtol, slack), atol=max(golden.atol, slack)
        )
        if not close.all():
            at = tuple(int(i) for i in np.argwhere(~close)[0])
            raise ContractBroken(
                f"model {model.manifest.name} {model.manifest.version}: golden row {at[0]}, output "
                f"{spec.name}: expected {expected[at]}, got {answer[at]}: this is not the model "
                "that was packaged, or it runs differently here; package it again where it is right"
            )


class TorchModelHandler(ModelHandler[pa.RecordBatch, pa.RecordBatch, LoadedModel]):  # type: ignore[misc]
    """Runs a PyTorch model over record batches, on the CPU or a CUDA device.

    model: path of the model package, on any Beam filesystem; read on the worker.
    manifest: its contract, as read where the pipeline is built. The worker refuses
        bytes whose digest is another.
    outputs: names of the outputs to bring back; all by default.
    device: auto, cpu, cuda or cuda:N. precision: float32, bf16 or fp16 (autocast).
    compile: torch.compile, for models that are not TorchScript.
    batch_rows: rows of one forward pass. threads: torch's intra-op threads a process.
    """

    def __init__(
        self,
        model: str,
        manifest: Manifest,
        *,
        outputs: Sequence[str] | None = None,
        device: str = "auto",
        precision: Precision = "float32",
        compile: bool = False,
        batch_rows: int = BATCH_ROWS,
        threads: int = 1,
    ) -> None:
        super().__init__(
            min_batch_size=batch_rows, max_batch_size=batch_rows, element_size_fn=_row_count
        )
        if batch_rows < 1 or threads < 1:
            raise UsageError(f"batch_rows and threads start at 1, got {batch_rows} and {threads}")
        if precision != "float32" and precision not in _AUTOCAST:
            raise UsageError(f"precision: expected float32, bf16 or fp16, got {precision!r}")
        if compile and manifest.format == "torchscript":
            raise UsageError("compile: a TorchScript model cannot be compiled; use a .pt2")
        self.model = model
        self.manifest = manifest
        self.outputs = tuple(outputs or (spec.name for spec in manifest.outputs))
        self.device = check_device(device)
        self.precision = precision
        self.compile = compile
        self.batch_rows = batch_rows
        self.threads = threads
        for name in self.outputs:
            manifest.output(name)

    def load_model(self) -> LoadedModel:
        """The package's bytes, checked -> the model, checked against its golden rows."""
        package = read_package(self.model, self.manifest.sha256)
        torch.set_num_threads(self.threads)
        device = resolve_device(self.device)
        module: Any = load_module(package.data, self.manifest).to(device)
        if self.compile:
            module = torch.compile(module, dynamic=True)
        model = LoadedModel(
            module,
            self.manifest,
            tuple(self.manifest.output(name) for name in self.outputs),
            device,
            self.batch_rows,
            _AUTOCAST.get(self.precision),
        )
        if self.manifest.golden is not None:
            check_golden_rows(model, self.manifest.golden)
        return model

    def run_inference(
        self,
        batch: Sequence[pa.RecordBatch],
        model: LoadedModel,
        inference_args: dict[str, Any] | None = None,
    ) -> list[pa.RecordBatch]:
        """Record batches with `inputs` -> the same, in order, with `outputs` and `error`."""
        columns = [struct_columns(part, INPUTS) for part in batch]
        inputs = {
            spec.name: columns[0][spec.name]
            if len(columns) == 1
            else pa.concat_arrays([c[spec.name] for c in columns])
            for spec in self.manifest.inputs
        }
        rows = sum(part.num_rows for part in batch)
        outputs, error = predict_columns(model, inputs, rows)
        Metrics.counter("millrace", "rows_inferred").inc(rows)
        results, start = [], 0
        for part in batch:
            answer = outputs.slice(start, part.num_rows)
            failed = error.slice(start, part.num_rows)
            results.append(part.append_column(OUTPUTS, answer).append_column(ERROR, failed))
            start += part.num_rows
        return results

    def get_num_bytes(self, batch: Sequence[pa.RecordBatch]) -> int:
        """Record batches -> bytes of their input tensors, from their sizes alone."""
        return sum(part.column(INPUTS).nbytes for part in batch)

    def get_metrics_namespace(self) -> str:
        """The namespace of all counters of this project."""
        return "millrace"


def _row_count(batch: pa.RecordBatch) -> int:
    return int(batch.num_rows)
