"""Make a model package: write the manifest for a model file, from the model itself.

`python -m model_handlers.package model.pt --feature_columns Time,V1,Amount
--sample rows.parquet --output package/` makes a package of any model file.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from model_handlers.artifact import (
    MAR_MANIFEST,
    ModelPackage,
    read_package,
)
from model_handlers.contract import (
    MANIFEST_NAME,
    FeatureStatistics,
    GoldenRows,
    InputSpec,
    Manifest,
    OutputSpec,
)
from model_handlers.errors import ContractBroken, UsageError
from model_handlers.formats import load_module, sniff
from model_handlers.torch_model import ROW_FAULTS, LoadedModel, describe

GOLDEN_ROWS = 8
QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)


def read_manifest(
    path: str, *, digest: str | None = None, feature_columns: Sequence[str] | None = None
) -> Manifest:
    """A model package's path -> its manifest; inferred from the model if it has none.

    digest: what the model file must have. feature_columns: for a model without a
    manifest, the columns of its only input, in order.
    Raises ModelError, UsageError.
    """
    package = read_package(path, digest)
    if package.manifest is None:
        if not feature_columns:
            raise UsageError(
                f"model {path} has no {MANIFEST_NAME}: name its columns in order with "
                "--feature_columns, or make a package with python -m model_handlers.package"
            )
        return infer_manifest(package, feature_columns)
    if feature_columns and tuple(feature_columns) != package.manifest.features:
        raise UsageError(
            f"--feature_columns differs from {MANIFEST_NAME} of {path}, which has "
            f"{','.join(package.manifest.features)}: leave the flag out"
        )
    return package.manifest


def infer_manifest(
    package: ModelPackage, feature_columns: Sequence[str], name: str | None = None
) -> Manifest:
    """A bare model file and its columns -> a manifest, from what the model answers to zeros.

    One float32 input [rows, columns]; outputs are named by the model's dict, else
    `output` or `output_0`, `output_1`, ... Raises ContractBroken if the answers do
    not have one row per row.
    """
    found = sniff(package.data)
    draft = Manifest(
        name=name or Path(package.file).stem,
        version="0",
        format="state_dict" if found == "torch_save" else found,  # type: ignore[arg-type]
        file=package.file,
        sha256=package.sha256,
        inputs=(InputSpec("features", tuple(feature_columns), shape=(len(feature_columns),)),),
        outputs=(OutputSpec("output"),),
    )
    module = load_module(package.data, draft)
    outputs = _probe(module, draft)
    scalars = [spec.name for spec in outputs if spec.shape == ()]
    return replace(draft, outputs=outputs, score_output=scalars[0] if len(scalars) == 1 else None)


def _probe(module: torch.nn.Module, draft: Manifest) -> tuple[OutputSpec, ...]:
    """A module of one input -> its outputs, told from 2 and 3 rows of zeros."""
    shapes = []
    for rows in (2, 3):
        try:
            with torch.inference_mode():
                answer = module(torch.zeros(rows, *draft.inputs[0].shape))
        except ROW_FAULTS as error:
            raise ContractBroken(
                f"model {draft.file} fails on {rows} rows of {draft.inputs[0].width} zeros: "
                f"{describe(error)}; check --feature_columns"
            ) from error
        shapes.append({n: (t.dtype, tuple(t.shape)) for n, t in _tensors(answer).items()})
    for name, (_, shape) in shapes[0].items():
        if shape[:1] != (2,) or shapes[1][name][1] != (3, *shape[1:]):
            raise ContractBroken(
                f"model {draft.file}: output {name!r} has shape {list(shape)} for 2 rows and "
                f"{list(shapes[1][name][1])} for 3: expected one row per row"
            )
    return tuple(
        OutputSpec(name, str(dtype).removeprefix("torch."), shape[1:])  # type: ignore[arg-type]
        for name, (dtype, shape) in shapes[0].items()
    )


def _tensors(answer: Any) -> dict[str, torch.Tensor]:
    """What a module returned -> its tensors by name."""
    if isinstance(answer, Mapping):
        return dict(answer)
    if isinstance(answer, (tuple, list)):
        return {f"output_{i}": tensor for i, tensor in enumerate(answer)}
    return {"output": answer}


def describe_features(columns: Sequence[str], values: np.ndarray) -> dict[str, FeatureStatistics]:
    """Column names and finite values [rows, columns] -> statistics by column."""
    values = values.astype(np.float64)
    quantiles = np.quantile(values, QUANTILES, axis=0)
    return {
        column: FeatureStatistics(
            count=len(values),
            mean=float(values[:, i].mean()),
            std=float(values[:, i].std()),
            min=float(values[:, i].min()),
            max=float(values[:, i].max()),
            quantiles={str(q): float(quantiles[k, i]) for k, q in enumerate(QUANTILES)},
        )
        for i, column in enumerate(columns)
    }


def with_golden_rows(data: bytes, manifest: Manifest, inputs: Mapping[str, np.ndarray]) -> Manifest:
    """A model, its manifest and some inputs -> the manifest with these rows and their answers."""
    model = LoadedModel(
        load_module(data, manifest), manifest, manifest.outputs, torch.device("cpu"), 1 << 30
    )
    arrays = [inputs[spec.name] for spec in manifest.inputs]
    answers = model.forward(arrays, slice(0, len(arrays[0])))
    golden = GoldenRows(
        inputs={spec.name: a.tolist() for spec, a in zip(manifest.inputs, arrays, strict=True)},
        outputs={spec.name: a.tolist() for spec, a in zip(manifest.outputs, answers, strict=True)},
    )
    return replace(manifest, golden=golden)


def write_package(folder: Path, data: bytes, manifest: Manifest) -> None:
    """A model file's bytes and its manifest -> a package folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / manifest.file).write_bytes(data)
    (folder / MANIFEST_NAME).write_text(manifest.to_json())


def write_mar(path: Path, data: bytes, manifest: Manifest, handler: str) -> None:
    """A model file's bytes, its manifest and a TorchServe handler's source -> a `.mar`."""
    listing = {
        "createdOn": "01/01/1980 00:00:00",
        "runtime": "python",
        "model": {
            "modelName": manifest.name,
            "serializedFile": manifest.file,
            "handler": "handler.py",
            "modelVersion": manifest.version,
        },
        "archiverVersion": "0.12.0",
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in (
            (MAR_MANIFEST, json.dumps(listing, indent=2).encode()),
            ("handler.py", handler.encode()),
            (MANIFEST_NAME, manifest.to_json().encode()),
            (manifest.file, data),
        ):
            archive.writestr(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), content)
