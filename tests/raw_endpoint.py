"""Endpoints of the raw package, and rows for them."""

import itertools
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from raw_model import GOOD, ROWS, Net, write_raw_package

from cloud.vertex import EndpointAddress
from common.record_batch import struct_columns
from model_handlers.endpoints.endpoint import RequestLimits
from model_handlers.endpoints.handler import VertexEndpointHandler
from model_handlers.manifests.manifest import GoldenRows, Manifest
from model_handlers.manifests.model_json import write_manifest
from model_handlers.packaged_steps import PackagedSteps
from model_handlers.torch_model import TorchModelHandler
from serving.instances import InstanceReader
from transforms.json_rows.row_columns import read_rows
from transforms.json_rows.row_format import RowFormat
from transforms.validate import validate


def some_rows(count: int) -> list[dict[str, Any]]:
    """Return rows without faults, which all differ."""
    rows = itertools.islice(itertools.cycle(ROWS[i] for i in GOOD), count)
    return [row | {"id": f"n{i}", "limit": 10.0 + i} for i, row in enumerate(rows)]


def write_golden_package(folder: Path, **changes: Any) -> Manifest:
    """Write the raw package with known-good rows; see write_raw_package."""
    manifest = write_raw_package(folder, **changes)
    rows = [ROWS[i] for i in GOOD]
    outputs = expected(folder, manifest, rows).field("logits").to_pylist()
    manifest = replace(manifest, golden=GoldenRows(rows=[*rows], outputs={"logits": outputs}))
    (folder / "model.json").write_text(write_manifest(manifest))
    return manifest


def validated(folder: Path, manifest: Manifest, rows: list[dict[str, Any]]) -> pa.RecordBatch:
    """Return rows without faults as a pipeline gives them to a handler."""
    read = read_rows(rows, RowFormat(manifest))
    ids = pa.array([str(row["id"]) for row in rows])
    source = pa.record_batch(read.columns).to_struct_array()
    steps = PackagedSteps(manifest, str(folder)).load()
    batch = pa.record_batch({"row_id": ids, "source": source})
    good, bad, _ = validate(batch, manifest, preparation=steps)
    assert not bad.num_rows
    return good


def expected(folder: Path, manifest: Manifest, rows: list[dict[str, Any]]) -> pa.StructArray:
    """Return the outputs of the model in the worker."""
    local = TorchModelHandler(str(folder), manifest)
    batch = validated(folder, manifest, rows)
    (answer,) = local.run_inference([batch], local.load_model())
    return answer.column("outputs")


def handler_for(url: str, folder: Path, manifest: Manifest, **given: Any) -> VertexEndpointHandler:
    """Return a handler as workers have it, whose manifest has no known-good rows."""
    names = RequestLimits.__dataclass_fields__
    limits = {"retry_seconds": 5.0} | {n: given.pop(n) for n in names if n in given}
    return VertexEndpointHandler(
        EndpointAddress(url=url),
        replace(manifest, golden=None),
        package=str(folder),
        limits=RequestLimits(**limits),
        **given,
    )


def predict_tensors(instances: list[Any]) -> list[Any]:
    """Predict as a server that runs the model without steps, such as TorchServe."""
    dtypes = {"kind": torch.int64, "clicks": torch.int64}
    inputs = [
        torch.tensor([row[name] for row in instances], dtype=dtypes.get(name))
        for name in ("dense", "kind", "clicks", "mask")
    ]
    with torch.inference_mode():
        return [{"logits": logits} for logits in Net().eval()(*inputs).tolist()]


def raw_predictor(folder: Path, manifest: Manifest) -> Callable[[list[Any]], list[Any]]:
    """Return a function that predicts as a server that prepares rows, but without its headers."""
    reader = InstanceReader(manifest, PackagedSteps(manifest, str(folder)).load())
    names = [spec.name for spec in manifest.inputs]

    def predict(instances: list[Any]) -> list[Any]:
        arrays = reader.read(json.loads(json.dumps(instances)))
        rows = zip(*(array.tolist() for array in arrays), strict=True)
        return predict_tensors([dict(zip(names, row, strict=True)) for row in rows])

    return predict


def logits(batch: pa.RecordBatch) -> np.ndarray:
    """Return the outputs of an answer [rows, 3]; rows that failed are left out."""
    found = struct_columns(batch, "outputs")["logits"]
    return np.array(found.filter(batch.column("error").is_null()).to_pylist())
