"""TorchModelHandler: RunInference over Arrow record batches with a model in the worker."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import torch

from common.errors import DigestMismatch, UsageError
from common.memory import keep_freed_memory
from common.record_batch import BATCH_BYTES, BATCH_ROWS, row_bytes
from model_handlers.batch_handler import BatchHandler, error_column, outputs_column
from model_handlers.formats.load import load_module
from model_handlers.loaded_model import (
    LoadedModel,
    check_device,
    describe_error,
    resolve_device,
)
from model_handlers.manifest import Manifest
from model_handlers.model_errors import as_model_error
from model_handlers.preparation import Preparation
from model_handlers.prune import keep_outputs
from model_handlers.read_package import read_package
from model_handlers.run_model import run_model
from model_handlers.trusted_code import TrustedCode, check_trusted, steps_context
from model_handlers.try_rows import check_golden_rows, check_model
from model_handlers.writes import may_write_inputs

Precision = Literal["float32", "bf16", "fp16"]

_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


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
        precision: float32, or bf16 or fp16 with torch.autocast.
        compile: Whether to use torch.compile; not possible for TorchScript.
        batch_rows: The maximum number of rows in a forward pass.
        batch_bytes: The maximum number of bytes of a batch, and of the inputs of a forward pass of
            several rows.
        threads: The number of torch's intra-op threads per process.
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
        precision: Precision = "float32",
        compile: bool = False,
        batch_rows: int = BATCH_ROWS,
        batch_bytes: int = BATCH_BYTES,
        threads: int = 1,
        trusted_modules: Sequence[str] = (),
    ) -> None:
        super().__init__(manifest, outputs, batch_rows, batch_bytes)
        check_trusted(manifest, trusted_modules)
        if threads < 1:
            raise UsageError(f"threads must be at least 1, got {threads}")
        if precision != "float32" and precision not in _AUTOCAST:
            raise UsageError(f"precision must be float32, bf16 or fp16, got {precision!r}")
        if compile and manifest.format == "torchscript":
            raise UsageError("compile is not possible for a TorchScript model; use a .pt2")
        self.package = self.model = model
        self.device = check_device(device)
        self.precision = precision
        self.compile = compile
        self.threads = threads
        self.code = TrustedCode.of_package(trusted_modules, model)

    def load_model(self) -> LoadedModel:
        """Read, load and check the model; called by Beam once per process.

        Raises:
            ModelError: The package cannot be used, or the model does not answer its known-good
                rows as the manifest says.
            DeviceError: The worker does not have the device.
        """
        keep_freed_memory()
        package = read_package(self.model)
        if package.digest != self.manifest.digest:
            raise DigestMismatch(
                f"model {self.model}: expected digest {self.manifest.digest}, as in the manifest "
                f"that the run started with, got {package.digest}: the package was changed; start "
                "again, or restore the package"
            )
        manifest = self.manifest
        if package.manifest is not None:
            manifest = replace(manifest, golden=package.manifest.golden)
        torch.set_num_threads(self.threads)
        device = resolve_device(self.device)
        # The module is moved to its device before it is pruned, because freezing a script turns
        # its weights into constants.
        whole = load_module(package.data, self.manifest, device, self.code)
        with as_model_error(
            f"model {self.manifest.name} does not have the outputs of its manifest"
        ):
            module: Any = keep_outputs(whole, self.manifest, self.outputs)
        steps = None
        if manifest.has_steps or manifest.fields:
            steps = Preparation(manifest, steps_context(package.files, self.code))
        model = LoadedModel(
            module=module,
            manifest=manifest,
            preparation=steps,
            outputs=tuple(self.manifest.output(name) for name in self.outputs),
            device=device,
            copies=device.type == "cpu" and may_write_inputs(module),
            batch_rows=min(self.batch_rows, max(self.batch_bytes // _input_bytes(manifest), 1)),
            autocast=_AUTOCAST.get(self.precision),
        )
        check_model(model)
        if self.compile:
            model.module = torch.compile(module, dynamic=True)
            if manifest.golden is not None:
                check_golden_rows(model, manifest.golden)
        return model

    def predict(
        self, model: LoadedModel, arrays: Sequence[np.ndarray], rows: int
    ) -> tuple[pa.StructArray, pa.StructArray]:
        """Run the loaded model over validated inputs; see predict_columns."""
        return predict_columns(model, arrays, rows)
