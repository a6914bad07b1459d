"""A wheel with a team's own code, and a package whose model and steps need it."""

import hashlib
import io
import json
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import torch

from model_handlers.manifests.manifest import Manifest
from model_handlers.manifests.model_json import parse_manifest, write_manifest

FEATURES = """
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc


def ratio(amount, limit):
    if pc.any(pc.equal(amount, 13.0)).as_py():
        raise ValueError("13.0 is a secret")
    return pc.divide(amount, limit)


def parts(amount):
    values = amount.to_numpy(zero_copy_only=False)
    return np.stack([np.floor(values), values % 1], axis=1)


def decide(score):
    return pc.if_else(pc.greater(score, 0), "stop", "go")
"""
NETS = """
import torch


class Net(torch.nn.Module):
    def __init__(self, scale=1.0):
        super().__init__()
        self.linear = torch.nn.Linear(3, 1)
        self.scale = scale

    def forward(self, x):
        return self.linear(x)[:, 0] * self.scale
"""
# Rows as a source has them: the function raises an exception for r1, and r3 has a bad cell.
ROWS: list[dict[str, Any]] = [
    {"id": "r0", "amount": 12.5, "limit": 100.0},
    {"id": "r1", "amount": 13.0, "limit": 10.0},
    {"id": "r2", "amount": 2.25, "limit": 4.0},
    {"id": "r3", "amount": "much", "limit": 4.0},
]
FAULTS = {"r1": "function_error", "r3": "wrong_type"}
SHA256 = hashlib.sha256(FEATURES.encode()).hexdigest()


def write_wheel(
    folder: Path,
    files: dict[str, str] | None = None,
    name: str = "myteam",
    tag: str = "py3-none-any",
    features: str = FEATURES,
) -> Path:
    """Write a wheel without a build tool, and return its path.

    Args:
        folder: The folder of the wheel.
        files: The modules by path; those of the team by default.
        name: The name of the distribution.
        tag: The Python version and the platform that it is for.
        features: The source of the module with the functions.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = files or {
        f"{name}/__init__.py": "",
        f"{name}/features.py": features,
        f"{name}/nets.py": NETS,
    }
    info = f"{name}-1.0.dist-info"
    files = files | {
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n",
        f"{info}/WHEEL": f"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: {tag}\n",
    }
    record = "".join(f"{path},,\n" for path in [*files, f"{info}/RECORD"])
    path = folder / f"{name}-1.0-{tag}.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for entry, text in (files | {f"{info}/RECORD": record}).items():
            archive.writestr(entry, text)
    return path


def build_wheel(folder: Path) -> Path:
    """Build the same wheel with setuptools, and return its path."""
    source = folder / "source" / "myteam"
    source.mkdir(parents=True)
    for name, text in (("__init__", ""), ("features", FEATURES), ("nets", NETS)):
        (source / f"{name}.py").write_text(text)
    (source.parent / "pyproject.toml").write_text(
        '[build-system]\nrequires = ["setuptools"]\nbuild-backend = "setuptools.build_meta"\n'
        '[project]\nname = "myteam"\nversion = "1.0"\n'
    )
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder)]
    subprocess.run([*command, str(source.parent)], check=True, capture_output=True)
    (path,) = folder.glob("*.whl")
    return path


def weights() -> dict[str, torch.Tensor]:
    return {
        "linear.weight": torch.tensor([[1.0, 0.5, -2.0]]),
        "linear.bias": torch.tensor([-1.0]),
    }


def score(row: dict[str, Any]) -> float:
    """Return the score of a row without any code of the wheel."""
    amount = row["amount"]
    return float(2.0 * (amount / row["limit"] + 0.5 * (amount // 1) - 2 * (amount % 1) - 1))


MANIFEST: dict[str, Any] = {
    "schema_version": 2,
    "name": "own",
    "version": "1",
    "format": "state_dict",
    "file": "model.pt",
    "architecture": "myteam.nets:Net",
    "architecture_args": {"scale": 2.0},
    "columns": {"amount": "float64", "limit": "float64"},
    "inputs": [
        {
            "name": "x",
            "shape": [3],
            "from": [
                [
                    {"column": "amount"},
                    {
                        "step": "call",
                        "function": "myteam.features:ratio",
                        "columns": ["limit"],
                        "source_sha256": SHA256,
                    },
                ],
                [
                    {"column": "amount"},
                    {"step": "call", "function": "myteam.features:parts", "width": 2},
                ],
            ],
        }
    ],
    "outputs": [{"name": "score"}],
    "fields": [
        {
            "name": "decision",
            "from": [
                {"output": "score"},
                {"step": "call", "function": "myteam.features:decide", "returns": "string"},
            ],
        }
    ],
    "score_output": "score",
    "output_fields": ["decision"],
}


def write_own_package(folder: Path, **changes: Any) -> Manifest:
    """Write the package to a folder, and return its manifest.

    Args:
        folder: The folder, which is created.
        changes: Members of the manifest that differ.
    """
    folder.mkdir(parents=True)
    buffer = io.BytesIO()
    torch.save(weights(), buffer)
    (folder / "model.pt").write_bytes(buffer.getvalue())
    good = [row for row in ROWS if row["id"] not in FAULTS]
    golden = {
        "rows": good,
        "inputs": {},
        "outputs": {"score": [score(row) for row in good]},
        "fields": {"decision": ["stop" if score(row) > 0 else "go" for row in good]},
    }
    sha256 = hashlib.sha256(buffer.getvalue()).hexdigest()
    manifest = parse_manifest(json.dumps(MANIFEST | {"sha256": sha256, "golden": golden} | changes))
    (folder / "model.json").write_text(write_manifest(manifest))
    return manifest
