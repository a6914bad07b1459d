"""A model small enough to check by hand, with rows that it fails on."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import torch

from model_handlers.manifest import Manifest


class Tiny(torch.nn.Module):
    """Sum of a row and its first two values; fails on a = -7, answers NaN to b = -7."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if bool((x[:, 0] == -7).any()):
            raise ValueError("seven is not wanted")
        total = torch.where(x[:, 1] == -7, torch.full_like(x[:, 1], float("nan")), x.sum(dim=1))
        return total, x[:, :2]


def write_tiny(folder: Path, make_manifest: Callable[..., Manifest]) -> Manifest:
    """An empty folder -> the manifest of the package of Tiny that is then in it."""
    torch.jit.script(Tiny()).save(str(folder / "model.pt"))
    manifest = make_manifest(sha256=hashlib.sha256((folder / "model.pt").read_bytes()).hexdigest())
    (folder / "model.json").write_text(manifest.to_json())
    return manifest
