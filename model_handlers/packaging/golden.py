"""Choose the known-good rows of a package, and record how its model answers them."""

from __future__ import annotations

import base64
import datetime
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from common.errors import ContractBroken, InputError
from model_handlers.devices.pass_size import PassSize
from model_handlers.formats.load import load_module
from model_handlers.loaded_model import ROW_FAULTS, LoadedModel, describe_error
from model_handlers.manifests.manifest import GoldenRows, Manifest
from model_handlers.packaging.prepared import Prepared, Source, prepare_source
from model_handlers.preparation import Preparation
from model_handlers.steps.step import Cells
from model_handlers.trials.try_rows import check_independence, derived_fields
from model_handlers.trusted_code import TrustedCode

GOLDEN_ROWS = 8
# Rows of the sample that are put into one batch with the known-good rows when the model is tried.
OTHER_ROWS = 56


def with_golden_rows(
    data: bytes,
    manifest: Manifest,
    inputs: Mapping[str, np.ndarray],
    others: Mapping[str, np.ndarray] | None = None,
    trusted_modules: Sequence[str] = (),
) -> Manifest:
    """Run a model on some rows, and return its manifest with them as known-good rows.

    Args:
        data: The bytes of the model file.
        manifest: The manifest of the model.
        inputs: The rows of each input, by name.
        others: More rows of each input, to put into one batch with the first ones when the model
            is tried; None to use only random ones.
        trusted_modules: The top-level modules that the manifest's architecture may import.

    Raises:
        ModelError: The model cannot be loaded.
        ContractBroken: The model fails on the rows, returns NaN or infinity, or answers a row
            differently in another batch.
    """
    module = load_module(data, manifest, code=TrustedCode(tuple(trusted_modules)))
    return record_rows(module, manifest, inputs, others)


def record_rows(
    module: torch.nn.Module,
    manifest: Manifest,
    inputs: Mapping[str, np.ndarray],
    others: Mapping[str, np.ndarray] | None = None,
    *,
    raw: Sequence[Mapping[str, Any]] = (),
    preparation: Preparation | None = None,
) -> Manifest:
    """Run a model on some rows, and return its manifest with them as known-good rows.

    Args:
        module: The loaded model.
        manifest: The manifest of the model.
        inputs: The rows of each input, by name.
        others: More rows of each input, to put into one batch with the first ones when the model
            is tried; None to use only random ones.
        raw: The raw rows from which the inputs were prepared, if the manifest declares columns.
        preparation: The steps of the manifest, if it has any.

    Raises:
        ContractBroken: The model fails on the rows, returns NaN or infinity, or answers a row
            differently in another batch; or a field cannot be computed.
    """
    arrays = [_flat(inputs[spec.name], manifest, i) for i, spec in enumerate(manifest.inputs)]
    model = LoadedModel(
        module=module,
        manifest=manifest,
        outputs=manifest.outputs,
        device=torch.device("cpu"),
        size=PassSize(len(arrays[0])),
        preparation=preparation,
    )
    answers = _finite_answers(model, arrays)
    outputs = {spec.name: a.tolist() for spec, a in zip(manifest.outputs, answers, strict=True)}
    if raw:
        fields = {n: column.to_pylist() for n, column in derived_fields(model, answers).items()}
        golden = GoldenRows(rows=list(raw), outputs=outputs, fields=fields)
    else:
        rows = {spec.name: a.tolist() for spec, a in zip(manifest.inputs, arrays, strict=True)}
        fields = {n: column.to_pylist() for n, column in derived_fields(model, answers).items()}
        golden = GoldenRows(inputs=rows, outputs=outputs, fields=fields)
    manifest = replace(manifest, golden=golden)
    beside = None
    if others is not None:
        beside = [_flat(others[spec.name], manifest, i) for i, spec in enumerate(manifest.inputs)]
    check_independence(replace(model, manifest=manifest), arrays, answers, beside)
    return manifest


def _flat(array: np.ndarray, manifest: Manifest, number: int) -> np.ndarray:
    """Return the rows of an input as its manifest lists them: [rows, width], or [rows]."""
    spec = manifest.inputs[number]
    rows = np.asarray(array, dtype=spec.dtype)
    return rows.reshape(len(rows), spec.width) if spec.shape else rows.reshape(len(rows))


def _finite_answers(model: LoadedModel, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Return a model's answers to known-good rows, one array per output.

    Raise ContractBroken if the model fails, or returns NaN or infinity.
    """
    name, rows = model.manifest.name, len(arrays[0])
    try:
        answers = model.forward(arrays, slice(0, rows))
    except ROW_FAULTS as error:
        raise ContractBroken(
            f"model {name} fails on the sample: {describe_error(error)}"
        ) from error
    for spec, answer in zip(model.manifest.outputs, answers, strict=True):
        if not np.isfinite(answer).all():
            raise ContractBroken(
                f"model {name} returns NaN or infinity as {spec.name} for the first {rows} valid "
                "rows: pass another --sample"
            )
    return answers


def choose_rows(manifest: Manifest, prepared: Prepared, source: Source) -> list[dict[str, Any]]:
    """Return the first rows that the steps accept, as JSON has them.

    Args:
        manifest: The manifest.
        prepared: All rows of the sample.
        source: The rows of the sample.

    Raises:
        InputError: No row can be written as JSON.
    """
    rows: list[dict[str, Any]] = []
    for row in prepared.rows.tolist():
        cells = {name: _value(found, row) for name, found in prepared.cells.items()}
        for spec in manifest.inputs:
            cells |= {name: _plain_value(source, name, row) for name in spec.columns}
        if all(map(_is_json, cells.values())):
            rows.append(cells)
        if len(rows) == GOLDEN_ROWS:
            break
    if not rows:
        raise InputError("the sample has no row that can be kept as a known-good row: pass another")
    return rows


def raw_golden(
    module: torch.nn.Module, manifest: Manifest, preparation: Preparation, source: Source
) -> Manifest:
    """Return a manifest with raw rows of a sample as known-good rows.

    Args:
        module: The loaded model.
        manifest: The manifest of the model, which declares columns.
        preparation: The steps of the manifest.
        source: The rows of the sample.

    Raises:
        InputError: No row of the sample can be used.
        ContractBroken: The model fails on the rows, or answers a row differently in another batch.
    """
    prepared = prepare_source(manifest, preparation, source)
    raw = choose_rows(manifest, prepared, source)
    golden = prepare_source(manifest, preparation, raw)
    others = {name: array[GOLDEN_ROWS:][:OTHER_ROWS] for name, array in prepared.items()}
    return record_rows(module, manifest, golden, others, raw=raw, preparation=preparation)


def _value(cells: Cells, row: int) -> Any:
    return _json(cells.values[row].as_py())


def _plain_value(source: Source, name: str, row: int) -> Any:
    value = source[name][row]  # type: ignore[index, call-overload]
    return _json(value.as_py())


def _json(value: Any) -> Any:
    """Return a value of a column as JSON has it."""
    if isinstance(value, list):
        return [_json(item) for item in value]
    if isinstance(value, datetime.date):
        return value.isoformat()
    return base64.b64encode(value).decode() if isinstance(value, bytes) else value


def _is_json(value: Any) -> bool:
    if isinstance(value, list):
        return all(map(_is_json, value))
    return not isinstance(value, float) or math.isfinite(value)
