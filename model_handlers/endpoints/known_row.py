"""A row that a model must be able to process, which shows if an endpoint works."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import orjson

from common.errors import ContractBroken
from model_handlers.endpoints.codec import EndpointCodec
from model_handlers.endpoints.request_rows import RawRows, TensorRows
from model_handlers.manifests.manifest import GoldenRows, InputSpec, Manifest
from model_handlers.preparation import Preparation, golden_tensors
from model_handlers.steps.categories import Vocabulary, read_list

# The value of each feature if the manifest has no known values. The health check of the reference
# uses the same value.
_SOME_VALUE = 0.1
_SOME_RAW: Mapping[str, Any] = {
    "float64": 1.0,
    "int64": 1,
    "bool": True,
    "string": "a",
    "timestamp": "2026-01-01T00:00:00Z",
    "datetime": "2026-01-01T00:00:00",
    "date": "2026-01-01",
    "binary": "",
    "list<float64>": [1.0],
    "list<int64>": [1],
    "list<string>": ["a"],
}


def known_tensors(
    codec: EndpointCodec, golden: GoldenRows | None, preparation: Preparation | None
) -> TensorRows:
    """Return a row as tensors: the first known-good row, or a row that is made up.

    Args:
        codec: The format of requests.
        golden: The known-good rows, or None.
        preparation: The steps of the manifest, which raw rows need.

    Raises:
        ContractBroken: The known-good row cannot be prepared.
    """
    manifest = codec.manifest
    if golden is None:
        return TensorRows(codec, [_made_up(manifest, spec) for spec in manifest.inputs])
    tensors = golden_tensors(manifest, golden, preparation)
    shapes = [(1, spec.width) if spec.shape else (1,) for spec in manifest.inputs]
    return TensorRows(codec, [t[:1].reshape(s) for t, s in zip(tensors, shapes, strict=True)])


def known_raw(manifest: Manifest, golden: GoldenRows | None, preparation: Preparation) -> RawRows:
    """Return a raw row: the first known-good row, or a row that is made up.

    Args:
        manifest: The manifest of the model, whose rows are prepared by steps.
        golden: The known-good rows, or None.
        preparation: The steps of the manifest.

    Raises:
        ContractBroken: There are no known-good rows, and the steps refuse the row that is made up.
    """
    if golden is not None:
        # The row may have columns that the model does not need, which a server would refuse.
        return RawRows([orjson.dumps({name: golden.rows[0][name] for name in manifest.features})])
    row = {name: _some_raw(name, raw, preparation) for name, raw in manifest.columns.items()}
    for spec in manifest.inputs:
        if not spec.chains:
            value = _made_up(manifest, spec)[0].tolist()
            single = spec.is_list_column or not isinstance(value, list)
            row |= (
                {spec.columns[0]: value} if single else dict(zip(spec.columns, value, strict=True))
            )
    _, refused = preparation.tensors([row])
    for some in refused:
        raise ContractBroken(
            f"model {manifest.name} has no known-good rows, and its steps refuse a test row: "
            f"column {some.column}: {some.message}; package the model with --sample"
        )
    return RawRows([orjson.dumps(row)])


def _some_raw(name: str, raw: str, preparation: Preparation) -> Any:
    """Return a value of a column: the first one of its vocabulary, if it has one."""
    chains = [chain for spec in preparation.manifest.inputs for chain in spec.chains]
    steps = [step for chain in chains if chain.start == name for step in chain.steps]
    value = _SOME_RAW[raw]
    for step in steps:
        if isinstance(step, Vocabulary):
            files = preparation.context.files
            known = read_list(step.file, files) if step.file else step.values
            return [known[0]] if isinstance(value, list) else known[0]
    return value


def _made_up(manifest: Manifest, spec: InputSpec) -> np.ndarray:
    """Return a row of an input, `[1, width]` or `[1]`, near the training rows if possible."""
    shape = (1, spec.width) if spec.shape else (1,)
    if len(spec.columns) == spec.width and manifest.statistics.keys() >= set(spec.columns):
        means = np.array([manifest.statistics[column].mean for column in spec.columns])
        known = means if spec.dtype.startswith("float") else means.round()
        return known.astype(spec.dtype).reshape(shape)
    return np.full(shape, _SOME_VALUE).astype(spec.dtype)
