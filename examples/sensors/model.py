"""A regression on windows of readings, which ignores places without a reading."""

import torch
from torch import Tensor, nn

from examples.sensors.data import MACHINES

_WIDTH = 16


class SensorModel(nn.Module):
    """A convolution over time, an average over the readings that exist, and a perceptron."""

    def __init__(self) -> None:
        super().__init__()
        self.machine = nn.Embedding(len(MACHINES), 4)
        self.convolution = nn.Conv1d(2, _WIDTH, kernel_size=5, padding=2)
        self.layers = nn.Sequential(nn.Linear(_WIDTH + 4 + 2, 32), nn.ReLU(), nn.Linear(32, 1))

    def forward(
        self, temperature: Tensor, vibration: Tensor, mask: Tensor, machine: Tensor, length: Tensor
    ) -> Tensor:
        """Return for how many hundred hours machines will still run.

        Args:
            temperature: Scaled readings, float32 `[rows, LONGEST]`, the last one at the end.
            vibration: Scaled readings, as `temperature`.
            mask: 1 for each place with a reading, float32 `[rows, LONGEST]`.
            machine: Positions of machines, int64 `[rows]`.
            length: The number of readings, int64 `[rows]`.

        Returns:
            Hours in hundreds, float32 `[rows, 1]`, at least 0.
        """
        series = torch.stack([temperature, vibration], dim=1) * mask[:, None, :]
        found = torch.relu(self.convolution(series)) * mask[:, None, :]
        seen = mask.sum(dim=1).clamp(min=1.0)
        average = found.sum(dim=2) / seen[:, None]
        last = series[:, :, -1]
        parts = [average, self.machine(machine), last * (length > 0)[:, None]]
        hours: Tensor = nn.functional.softplus(self.layers(torch.cat(parts, dim=1)))
        return hours
