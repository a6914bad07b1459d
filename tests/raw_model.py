"""A package whose model takes prepared columns: a category, a time, amounts and a list."""

import hashlib
import io
import json
from functools import cache
from pathlib import Path
from typing import Any

import torch

from model_handlers.manifests.manifest import Manifest
from model_handlers.manifests.model_json import parse_manifest, write_manifest

KINDS = ["shop", "web", "phone"]
# Rows as a source has them; the last four have a fault each.
ROWS: list[dict[str, Any]] = [
    {
        "id": "r0",
        "amount": 12.5,
        "limit": 100.0,
        "kind": "shop",
        "at": "2026-11-28T10:00:00Z",
        "clicks": [1, 2],
    },
    {
        "id": "r1",
        "amount": None,
        "limit": 50.0,
        "kind": "web",
        "at": "2026-11-28T23:30:00+01:00",
        "clicks": [],
    },
    {
        "id": "r2",
        "amount": 3,
        "limit": 10,
        "kind": " Phone ",
        "at": "2026-11-29T00:00:00.5Z",
        "clicks": [7, 8, 9, 4, 5],
    },
    {
        "id": "unknown",
        "amount": 1.0,
        "limit": 10.0,
        "kind": "fax",
        "at": "2026-11-28T10:00:00Z",
        "clicks": [1],
    },
    {
        "id": "zone",
        "amount": 1.0,
        "limit": 10.0,
        "kind": "web",
        "at": "2026-11-28T10:00:00",
        "clicks": [1],
    },
    {
        "id": "text",
        "amount": "much",
        "limit": 10.0,
        "kind": "web",
        "at": "2026-11-28T10:00:00Z",
        "clicks": [1],
    },
    {
        "id": "zero",
        "amount": 1.0,
        "limit": 0.0,
        "kind": "web",
        "at": "2026-11-28T10:00:00Z",
        "clicks": [1],
    },
]
GOOD = [0, 1, 2]
FAULTS = {
    "unknown": ("unknown_value", "kind"),
    "zone": ("no_time_zone", "at"),
    "text": ("wrong_type", "amount"),
    "zero": ("out_of_range", "amount"),
}


class Net(torch.nn.Module):
    """Three logits from a dense tensor, an embedded category and embedded clicks."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.kind = torch.nn.Embedding(3, 2)
        self.clicks = torch.nn.Embedding(20, 2)
        self.out = torch.nn.Linear(4 + 2 + 2, 3)

    def forward(
        self, dense: torch.Tensor, kind: torch.Tensor, clicks: torch.Tensor, mask: torch.Tensor
    ) -> torch.Tensor:
        """Return the logits [rows, 3]."""
        seen = (self.clicks(clicks) * mask[:, :, None]).sum(1)
        return self.out(torch.cat([dense, self.kind(kind), seen], 1))


MANIFEST: dict[str, Any] = {
    "schema_version": 2,
    "name": "raw",
    "version": "1",
    "format": "pt2",
    "file": "model.pt2",
    "columns": {
        "amount": "float64",
        "limit": "float64",
        "kind": "string",
        "at": "timestamp",
        "clicks": "list<int64>",
    },
    "inputs": [
        {
            "name": "dense",
            "dtype": "float32",
            "shape": [4],
            "from": [
                [
                    {"column": "amount"},
                    {"step": "fill", "value": 1.0},
                    {"step": "log1p"},
                    {"step": "scale", "mean": 1.0, "std": 2.0},
                ],
                [
                    {"column": "amount"},
                    {"step": "fill", "value": 1.0},
                    {"step": "divide", "other": "limit"},
                ],
                [
                    {"column": "at"},
                    {"step": "time_part", "part": "hour", "zone": "UTC", "cyclic": True},
                ],
            ],
        },
        {
            "name": "kind",
            "dtype": "int64",
            "from": [
                [
                    {"column": "kind"},
                    {"step": "strip"},
                    {"step": "lower"},
                    {"step": "vocabulary", "file": "kinds.txt"},
                ]
            ],
        },
        {
            "name": "clicks",
            "dtype": "int64",
            "shape": [4],
            "from": [[{"column": "clicks"}, {"step": "pad", "to": 4, "keep": "last"}]],
        },
        {
            "name": "mask",
            "dtype": "float32",
            "shape": [4],
            "from": [[{"column": "clicks"}, {"step": "mask", "to": 4, "keep": "last"}]],
        },
    ],
    "outputs": [{"name": "logits", "dtype": "float32", "shape": [3]}],
    "fields": [
        {"name": "probabilities", "from": [{"output": "logits"}, {"step": "softmax"}]},
        {
            "name": "label",
            "from": [
                {"field": "probabilities"},
                {"step": "argmax"},
                {"step": "names", "values": ["stay", "call", "leave"]},
            ],
        },
        {"name": "probability", "from": [{"field": "probabilities"}, {"step": "max"}]},
        {
            "name": "best",
            "from": [
                {"field": "probabilities"},
                {"step": "top_k", "k": 2, "values": ["stay", "call", "leave"]},
            ],
        },
        {
            "name": "decision",
            "from": [
                {"field": "probability"},
                {"step": "cut", "at": [0.4, 0.6], "names": ["manual", "check", "auto"]},
            ],
        },
    ],
    "score_output": "probability",
    "output_fields": ["label", "decision", "best"],
}


@cache
def model_bytes() -> bytes:
    """Export the model once, and return the bytes of its file."""
    rows = torch.export.Dim("rows", min=1)
    inputs = (
        torch.zeros(2, 4),
        torch.zeros(2, dtype=torch.int64),
        torch.zeros(2, 4, dtype=torch.int64),
        torch.zeros(2, 4),
    )
    program = torch.export.export(
        Net().eval(), inputs, dynamic_shapes=({0: rows}, {0: rows}, {0: rows}, {0: rows})
    )
    file = io.BytesIO()
    torch.export.save(program, file)
    return file.getvalue()


def write_raw_package(folder: Path, **changes: Any) -> Manifest:
    """Write the package to a folder, and return its manifest.

    Args:
        folder: The folder, which is created.
        changes: Members of the manifest that differ.
    """
    folder.mkdir(parents=True, exist_ok=True)
    data = model_bytes()
    kinds = "".join(f"{kind}\n" for kind in KINDS).encode()
    value = MANIFEST | {
        "sha256": hashlib.sha256(data).hexdigest(),
        "files": {"kinds.txt": hashlib.sha256(kinds).hexdigest()},
    }
    manifest = parse_manifest(json.dumps(value | changes))
    (folder / "model.pt2").write_bytes(data)
    (folder / "kinds.txt").write_bytes(kinds)
    (folder / "model.json").write_text(write_manifest(manifest))
    return manifest


def batch_flags(package: Path, folder: Path) -> dict[str, Any]:
    """Return the flags of batch_local for the package, which writes to `out` of a folder."""
    return {
        "model": package,
        "id_column": "id",
        "output_files": folder / "out",
        "run_id": "r",
        "max_dead_letter_share": 1.0,
        "direct_num_workers": 1,
    }
