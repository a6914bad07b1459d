"""TorchModelHandler: RunInference over Arrow record batches with a model in the worker."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np
import pyarrow as pa
import torch

from common.errors import DigestMismatch, UsageError
from common.memory import keep_freed_memory
from common.record_batch import BATCH_BYTES, BATCH_ROWS, row_bytes
from model_handlers.batch_handler import PRECISION, BatchHandler, error_column, outputs_column
from model_handlers.devices.find import check_device, find_devices
from model_handlers.devices.lanes import Replicas, runner_on
from model_handlers.devices.pass_size import FEW, PassSize, gpu_memory, rows_that_fit
from model_handlers.devices.precision import PRECISIONS, SLACK, Precision
from model_handlers.formats.load import load_module
from model_handlers.loaded_model import LoadedModel, describe_error
from model_handlers.manifests.manifest import Manifest
from model_handlers.model_errors import as_model_error
from model_handlers.preparation import Preparation
from model_handlers.prune import keep_outputs
from model_handlers.read_package import ModelPackage, read_package
from model_handlers.run_model import run_model
from model_handlers.trials.choose_precision import AUTO, choose_precision, in_precision
from model_handlers.trials.try_rows import check_golden_rows, check_model
from model_handlers.trials.writes import may_write_inputs
from model_handlers.trusted_code import TrustedCode, check_trusted, steps_context

logger = logging.getLogger("millrace")


def predict_columns(
    model: LoadedModel, arrays: Sequence[np.ndarray], rows: int
) -> tuple[pa.StructArray, pa.StructArray]:
    """Run a model over validated inputs, and return the columns `outputs` and `error`.

    Args:
        model: The model.
        arrays: One array per input, `[rows, width]` or `[rows]`.
        rows: The number of rows.

    Returns:
        Two columns of `rows` rows. The outputs of a row that has an error are null.
    """
    answer = run_model(model, arrays, rows)
    parts = [(slice(0, rows), answer.arrays)] if answer.arrays else []
    # Thousands of rows may share one error.
    errors = {id(error): error for error in answer.faults.values()}
    texts = {ident: ("model_error", describe_error(error)) for ident, error in errors.items()}
    faults = {row: texts[id(error)] for row, error in answer.faults.items()}
    return outputs_column(model.outputs, parts, list(faults), rows), error_column(
        faults, arrays, rows
    )


def _fit(model: LoadedModel, devices: Sequence[torch.device], arrays: Sequence[np.ndarray]) -> None:
    """Limit the rows of a pass to those for which the GPUs have memory, by passes of some rows."""
    free = 0

    def peak(rows: int) -> int:
        nonlocal free
        inputs = [np.resize(array, (rows, *array.shape[1:])) for array in arrays]
        used, free = gpu_memory(devices, lambda: model.forward(inputs, slice(0, rows)))
        return used

    most = model.size.rows
    peak(min(FEW, most))
    model.size.limit(rows_that_fit(peak, free, most))


def _input_bytes(manifest: Manifest) -> int:
    """Return how many bytes the inputs of one row have, at least 1."""
    return max(sum(row_bytes(spec.arrow_type) for spec in manifest.inputs), 1)


class TorchModelHandler(BatchHandler[LoadedModel]):
    """A ModelHandler that runs a PyTorch model over record batches, on the CPU or a CUDA device.

    Args:
        model: The path of the model package, on any Beam filesystem; read on the worker.
        manifest: The model's manifest, read where the pipeline is built. The worker refuses a
            package that has a different digest.
        outputs: The names of the outputs to return; all by default.
        device: auto, cpu, cuda or cuda:N.
        precision: float32, tf32, or bf16 or fp16 with torch.autocast; or auto, the fastest one with
            which the model answers its known-good rows within the tolerance of the manifest.
        compile: Whether to use torch.compile; not possible for TorchScript.
        batch_rows: The maximum number of rows in a forward pass.
        batch_bytes: The maximum number of bytes of a batch, and of the inputs of a forward pass of
            several rows.
        threads: The number of torch's intra-op threads per process.
        every_gpu: Whether `auto` and `cuda` use every GPU of the worker, each with a copy of the
            model, and not only the first one.
        trusted_modules: The top-level modules that the package may import; none by default.

    Raises:
        UsageError: An argument is invalid.
        UnsafeModel: The package would import a module that is not trusted.
    """

    def __init__(
        self,
        model: str,
        manifest: Manifest,
        *,
        outputs: Sequence[str] | None = None,
        device: str = "auto",
        precision: str = "float32",
        compile: bool = False,
        batch_rows: int = BATCH_ROWS,
        batch_bytes: int = BATCH_BYTES,
        threads: int = 1,
        every_gpu: bool = True,
        trusted_modules: Sequence[str] = (),
    ) -> None:
        super().__init__(manifest, outputs, batch_rows, batch_bytes)
        check_trusted(manifest, trusted_modules)
        if threads < 1:
            raise UsageError(f"threads must be at least 1, got {threads}")
        if precision not in (*PRECISIONS, AUTO):
            names = f"{', '.join(PRECISIONS)} or {AUTO}"
            raise UsageError(f"precision must be {names}, got {precision!r}")
        if compile and manifest.format == "torchscript":
            raise UsageError("compile is not possible for a TorchScript model; use a .pt2")
        self.package = self.model = model
        self.device = check_device(device)
        self.precision = precision
        self.compile = compile
        self.threads, self.every_gpu = threads, every_gpu
        self.code = TrustedCode.of_package(trusted_modules, model)

    def load_model(self) -> LoadedModel:
        """Read, load and check the model; called by Beam once per process.

        Raises:
            ModelError: The package cannot be used, or the model does not answer its known-good
                rows as the manifest says.
            DeviceError: The worker does not have the device.
        """
        keep_freed_memory()
        package, manifest = self._read()
        torch.set_num_threads(self.threads)
        devices = find_devices(self.device)
        if not self.every_gpu:
            devices = devices[:1]
        modules = {device: self._module(package.data, device) for device in devices}
        first = modules[devices[0]]
        steps = None
        if manifest.has_steps or manifest.fields:
            steps = Preparation(manifest, steps_context(package.files, self.code))
        model = LoadedModel(
            module=first if len(modules) == 1 else Replicas(modules),
            manifest=manifest,
            preparation=steps,
            outputs=tuple(self.manifest.output(name) for name in self.outputs),
            device=devices[0],
            runner=runner_on(devices, copies=may_write_inputs(first)),
            size=PassSize(min(self.batch_rows, max(self.batch_bytes // _input_bytes(manifest), 1))),
        )
        model = self._in_precision(model)
        rows = check_model(model)
        if self.compile:
            model.module = Replicas({d: torch.compile(m, dynamic=True) for d, m in modules.items()})
            if manifest.golden is not None:
                check_golden_rows(model, manifest.golden)
        if model.device.type == "cuda":
            _fit(model, devices, rows)
        return model

    def _read(self) -> tuple[ModelPackage, Manifest]:
        """Return the package, and the manifest with the known-good rows that the package has."""
        package = read_package(self.model)
        if package.digest != self.manifest.digest:
            raise DigestMismatch(
                f"model {self.model}: expected digest {self.manifest.digest}, as in the manifest "
                f"that the run started with, got {package.digest}: the package was changed; start "
                "again, or restore the package"
            )
        if package.manifest is None:
            return package, self.manifest
        return package, replace(self.manifest, golden=package.manifest.golden)

    def _module(self, data: bytes, device: torch.device) -> Any:
        """Return the module on a device, with the outputs that are needed."""
        # The module is moved to its device before it is pruned, because freezing a script turns
        # its weights into constants.
        whole = load_module(data, self.manifest, device, self.code)
        with as_model_error(
            f"model {self.manifest.name} does not have the outputs of its manifest"
        ):
            return keep_outputs(whole, self.manifest, self.outputs)

    def _in_precision(self, model: LoadedModel) -> LoadedModel:
        """Return the model in the precision that was requested, or in the fastest that fits."""
        if self.precision != AUTO:
            chosen = cast(Precision, self.precision)
            return replace(in_precision(model, chosen), slack=SLACK.get(chosen, 0.0))
        model, why = choose_precision(model)
        logger.info("%s", why)
        return model

    def outputs_metadata(self, model: LoadedModel) -> Mapping[str, str] | None:
        """Return the precision, if the worker has chosen it."""
        return {PRECISION: model.precision} if self.precision == AUTO else None

    def predict(
        self, model: LoadedModel, arrays: Sequence[np.ndarray], rows: int
    ) -> tuple[pa.StructArray, pa.StructArray]:
        """Run the loaded model over validated inputs; see predict_columns."""
        return predict_columns(model, arrays, rows)
