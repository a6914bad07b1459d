"""A model that is small enough to check by hand, and that fails on some rows."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import torch

from model_handlers.manifests.manifest import Manifest
from model_handlers.manifests.model_json import write_manifest


class Tiny(torch.nn.Module):
    """A model that returns the sum of a row and its first two values.

    It raises an error if a is -7, and returns NaN as the sum if b is -7.
    """

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if bool((x[:, 0] == -7).any()):
            raise ValueError("seven is not wanted")
        total = torch.where(x[:, 1] == -7, torch.full_like(x[:, 1], float("nan")), x.sum(dim=1))
        return total, x[:, :2]


def write_tiny(folder: Path, make_manifest: Callable[..., Manifest]) -> Manifest:
    """Write a package with Tiny into an empty folder and return its manifest."""
    torch.jit.script(Tiny()).save(str(folder / "model.pt"))
    manifest = make_manifest(sha256=hashlib.sha256((folder / "model.pt").read_bytes()).hexdigest())
    (folder / "model.json").write_text(write_manifest(manifest))
    return manifest
