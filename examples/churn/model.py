"""A classifier of customers, with an embedding for each category."""

import torch
from torch import Tensor, nn

from examples.churn.data import DEVICES, OUTCOMES, PLANS, REGIONS

# Numbers of the input `dense`.
DENSE = 9
MOST_DEVICES = len(DEVICES)
_WIDTH = 4


class ChurnModel(nn.Module):
    """A perceptron over numbers and embeddings, which returns a logit for each outcome."""

    def __init__(self) -> None:
        super().__init__()
        self.plan = nn.Embedding(len(PLANS), _WIDTH)
        # The last position is that of a region that the model was not trained on.
        self.region = nn.Embedding(len(REGIONS) + 1, _WIDTH)
        self.devices = nn.Embedding(len(DEVICES), _WIDTH)
        self.layers = nn.Sequential(
            nn.Linear(DENSE + 3 * _WIDTH, 32), nn.ReLU(), nn.Linear(32, len(OUTCOMES))
        )

    def forward(
        self, dense: Tensor, plan: Tensor, region: Tensor, devices: Tensor, owned: Tensor
    ) -> Tensor:
        """Return the logits of the outcomes.

        Args:
            dense: Numbers, float32 `[rows, DENSE]`.
            plan: Positions of plans, int64 `[rows]`.
            region: Positions of regions, int64 `[rows]`.
            devices: Positions of devices, int64 `[rows, MOST_DEVICES]`.
            owned: 1 for each place of `devices` that holds a device, float32, of the same shape.

        Returns:
            Logits, float32 `[rows, 3]`.
        """
        all_devices = (self.devices(devices) * owned[:, :, None]).sum(dim=1)
        parts = [dense, self.plan(plan), self.region(region), all_devices]
        logits: Tensor = self.layers(torch.cat(parts, dim=1))
        return logits
