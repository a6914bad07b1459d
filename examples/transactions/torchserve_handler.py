"""The TorchServe handler of the `.mar`, which answers rows with all outputs.

It is packed into the archive as handler.py, and needs only torch and TorchServe. A row is a list or
an object with the features by name. TorchServe passes it as bytes or decoded JSON, under `body` or
`data`.
"""

from __future__ import annotations

import json
import os
from typing import Any

import torch


class TransactionHandler:
    """A handler that loads `model.json` and its TorchScript file, and answers batches of rows."""

    def __init__(self) -> None:
        self.features: list[str] = []
        self.model: Any = None
        self.device = torch.device("cpu")

    def initialize(self, context: Any) -> None:
        """Load the model from the folder that TorchServe's context names."""
        properties = context.system_properties
        folder = properties["model_dir"]
        with open(os.path.join(folder, "model.json")) as handle:
            manifest = json.load(handle)
        self.features = manifest["inputs"][0]["columns"]
        if torch.cuda.is_available() and properties.get("gpu_id") is not None:
            self.device = torch.device(f"cuda:{properties['gpu_id']}")
        path = os.path.join(folder, manifest["file"])
        self.model = torch.jit.load(path, map_location=self.device).eval()

    def row(self, request: Any) -> list[float]:
        """Return the features of one request, in order.

        Raises:
            ValueError: If a feature is missing, or the number of features is wrong.
        """
        value = request
        if isinstance(request, dict) and ("body" in request or "data" in request):
            value = request.get("body", request.get("data"))
        if isinstance(value, (bytes, bytearray, str)):
            value = json.loads(value)
        if isinstance(value, dict):
            missing = [name for name in self.features if name not in value]
            if missing:
                raise ValueError(f"missing features: {', '.join(missing)}")
            value = [value[name] for name in self.features]
        if not isinstance(value, list) or len(value) != len(self.features):
            raise ValueError(f"expected {len(self.features)} features, got {value!r:.80}")
        return [float(item) for item in value]

    def handle(self, requests: list[Any], context: Any) -> list[dict[str, Any]]:
        """Return the outputs by name for each request of a batch."""
        rows = torch.tensor([self.row(request) for request in requests], device=self.device)
        with torch.inference_mode():
            outputs = {name: tensor.tolist() for name, tensor in self.model(rows).items()}
        return [{name: values[i] for name, values in outputs.items()} for i in range(len(requests))]
