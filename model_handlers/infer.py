"""Infer the manifest of a bare model file from the answers of the model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import PurePosixPath

import torch

from model_handlers.devices.pass_size import PassSize
from model_handlers.formats.load import load_module, sniff
from model_handlers.loaded_model import LoadedModel
from model_handlers.manifests.manifest import InputSpec, Manifest, OutputSpec
from model_handlers.packaging.probe import accepts, is_dtype, other_dtype, probe, score_of
from model_handlers.packaging.signature import read_signature
from model_handlers.read_package import ModelPackage
from model_handlers.trials.try_rows import MADE_UP_ROWS, check_made_up_rows
from model_handlers.trusted_code import TrustedCode


def infer_manifest(
    package: ModelPackage,
    feature_columns: Sequence[str],
    *,
    name: str | None = None,
    version: str = "0",
    architecture: str | None = None,
    trusted_modules: Sequence[str] = (),
    batch_dependence: float | None = None,
    sampled: bool = False,
) -> Manifest:
    """Infer the manifest of a bare model file from the model's answers to rows of zeros.

    The model must have one input. Outputs get the names of the model's
    dict, or else `output`, or `output_0`, `output_1`, ...

    Args:
        package: The model file.
        feature_columns: The columns of the input, in order.
        name: The name of the model; the file name without its suffix by default.
        version: The version of the model.
        architecture: `module:Class` to load weights into, for files that contain only weights.
        trusted_modules: The top-level modules that `architecture` may import.
        batch_dependence: The accepted difference between answers to a row in different batches.
        sampled: Whether the caller will try the model on rows of a sample. If not, it is tried on
            random rows here.

    Raises:
        ModelError: The model cannot be loaded.
        ContractBroken: The outputs do not have one row per input row, or depend on the batch.
    """
    draft = replace(
        _draft(package, feature_columns),
        name=name or PurePosixPath(package.file).stem,
        version=version,
        architecture=architecture,
        batch_dependence=batch_dependence,
    )
    module = load_module(package.data, draft, code=TrustedCode(tuple(trusted_modules)))
    spec = _input_of(module, feature_columns)
    outputs = probe(module, draft.file, (spec,))
    manifest = replace(draft, inputs=(spec,), outputs=outputs, score_output=score_of(outputs))
    if not sampled:
        model = LoadedModel(
            module=module,
            manifest=manifest,
            outputs=outputs,
            device=torch.device("cpu"),
            size=PassSize(MADE_UP_ROWS),
        )
        check_made_up_rows(model)
    return manifest


def load_draft(package: ModelPackage) -> torch.nn.Module:
    """Load a bare model file, whose inputs are not known.

    Args:
        package: The model file.

    Raises:
        ModelError: The file is not a model, or contains only weights.
    """
    return load_module(package.data, _draft(package, ("unknown",)))


def _draft(package: ModelPackage, feature_columns: Sequence[str]) -> Manifest:
    """Return a manifest of a bare model file, in which the outputs are not known yet."""
    found = sniff(package.data)
    return Manifest(
        name=PurePosixPath(package.file).stem,
        version="0",
        format="state_dict" if found == "torch_save" else found,  # type: ignore[arg-type]
        file=package.file,
        sha256=package.sha256,
        inputs=(InputSpec("features", tuple(feature_columns), shape=(len(feature_columns),)),),
        outputs=(OutputSpec("output"),),
    )


def _input_of(module: torch.nn.Module, columns: Sequence[str]) -> InputSpec:
    """Return the only input of a module, with the dtype and shape that its file describes.

    If the file does not say, the dtype is float32, or else another one with which the module runs.
    """
    spec = InputSpec("features", tuple(columns), shape=(len(columns),))
    signature = read_signature(module)
    if len(signature.inputs) != 1:
        return spec
    found = signature.inputs[0]
    if found.shape is None:
        dtype = other_dtype(module, spec) if not accepts(module, spec) else None
        return replace(spec, dtype=dtype) if is_dtype(dtype) else spec
    if not is_dtype(found.dtype):
        return spec
    shape = tuple(size for size in found.shape[1:] if isinstance(size, int))
    fits = len(columns) in (1, math.prod(shape)) and len(shape) == len(found.shape) - 1
    return replace(spec, dtype=found.dtype, shape=shape if fits else spec.shape)
