"""TorchModelHandler: RunInference over Arrow record batches, model in the worker."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import torch

from common.errors import UsageError
from model_handlers.artifact import read_package
from model_handlers.batch_handler import BatchHandler, error_column, outputs_column
from model_handlers.formats.architecture import TrustedCode, check_trusted
from model_handlers.formats.load import load_module
from model_handlers.loaded_model import (
    LoadedModel,
    check_device,
    describe_error,
    resolve_device,
)
from model_handlers.manifest import Manifest
from model_handlers.model_errors import as_model_error
from model_handlers.prune import keep_outputs
from model_handlers.run_model import run_model
from model_handlers.try_rows import check_golden_rows, check_model

Precision = Literal["float32", "bf16", "fp16"]

# Measured with the example on 2 cores: a forward pass costs about the same from 4,096 to
# 32,768 rows, everything around it less the larger the batch. Beyond, memory grows for little.
BATCH_ROWS = 32_768

_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


def predict_columns(
    model: LoadedModel, arrays: Sequence[np.ndarray], rows: int
) -> tuple[pa.StructArray, pa.StructArray]:
    """A model and its validated inputs -> the columns `outputs` and `error`, row by row.

    arrays: one an input, [rows, width] or [rows]. Where a row has an error, its outputs
    are null.
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


class TorchModelHandler(BatchHandler[LoadedModel]):
    """Runs a PyTorch model over record batches, on the CPU or a CUDA device.

    model: path of the model package, on any Beam filesystem; read on the worker.
    manifest: its contract, as read where the pipeline is built. The worker refuses
        bytes whose digest is another.
    outputs: names of the outputs to bring back; all by default.
    device: auto, cpu, cuda or cuda:N. precision: float32, bf16 or fp16 (autocast).
    compile: torch.compile, for models that are not TorchScript.
    batch_rows: rows of one forward pass. threads: torch's intra-op threads a process.
    trusted_modules: top-level names of the modules that the manifest's architecture may
        import; by default none.
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
        trusted_modules: Sequence[str] = (),
    ) -> None:
        super().__init__(manifest, outputs, batch_rows)
        check_trusted(manifest, trusted_modules)
        if batch_rows < 1 or threads < 1:
            raise UsageError(f"batch_rows and threads start at 1, got {batch_rows} and {threads}")
        if precision != "float32" and precision not in _AUTOCAST:
            raise UsageError(f"precision: expected float32, bf16 or fp16, got {precision!r}")
        if compile and manifest.format == "torchscript":
            raise UsageError("compile: a TorchScript model cannot be compiled; use a .pt2")
        self.model = model
        self.device = check_device(device)
        self.precision = precision
        self.compile = compile
        self.threads = threads
        self.code = TrustedCode.of_package(trusted_modules, model)

    def load_model(self) -> LoadedModel:
        """The package's bytes, checked -> the model, checked against its golden rows."""
        package = read_package(self.model, self.manifest.sha256)
        manifest = self.manifest
        if package.manifest is not None:
            manifest = replace(manifest, golden=package.manifest.golden)
        torch.set_num_threads(self.threads)
        device = resolve_device(self.device)
        # On its device first: freezing a script turns its weights into constants.
        whole = load_module(package.data, self.manifest, device, self.code)
        with as_model_error(f"model {self.manifest.name} has not the outputs of its manifest"):
            module: Any = keep_outputs(whole, self.manifest, self.outputs)
        model = LoadedModel(
            module=module,
            manifest=manifest,
            outputs=tuple(self.manifest.output(name) for name in self.outputs),
            device=device,
            batch_rows=self.batch_rows,
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
        """A loaded model and its validated inputs -> the columns `outputs` and `error`."""
        return predict_columns(model, arrays, rows)
