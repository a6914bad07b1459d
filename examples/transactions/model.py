"""An autoencoder of card transactions, with 13 outputs.

They are reconstructions, their errors and a latent code.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from examples.transactions.data import FEATURES

LATENT = 4
DROPOUT = 0.4

OUTPUTS: tuple[tuple[str, tuple[int, ...]], ...] = (
    ("normalized_reconstruction", (len(FEATURES),)),
    ("normalized_reconstruction_errors", (len(FEATURES),)),
    ("normalized_MAE", ()),
    ("normalized_RMSE", ()),
    ("normalized_MSE", ()),
    ("normalized_MSLE", ()),
    ("denormalized_reconstruction", (len(FEATURES),)),
    ("denormalized_reconstruction_errors", (len(FEATURES),)),
    ("denormalized_MAE", ()),
    ("denormalized_RMSE", ()),
    ("denormalized_MSE", ()),
    ("denormalized_MSLE", ()),
    ("encoded", (LATENT,)),
)


class TransactionAutoencoder(nn.Module):
    """A dense autoencoder with layers of 30-16-8-4-8-16-30 units.

    It normalizes its inputs with a mean and a population variance. Both are buffers, so
    `load_state_dict` restores them in a model that was created with the defaults.

    Args:
        mean: The 30 means of the features; zeros by default.
        variance: The 30 population variances of the features; ones by default.

    Raises:
        ValueError: If `mean` or `variance` does not have 30 finite values, or a variance is
            negative.
    """

    mean: Tensor
    variance: Tensor

    def __init__(
        self,
        mean: Tensor | Sequence[float] | None = None,
        variance: Tensor | Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        width = len(FEATURES)
        self.register_buffer("mean", _statistic("mean", [0.0] * width if mean is None else mean))
        self.register_buffer(
            "variance", _statistic("variance", [1.0] * width if variance is None else variance)
        )
        if bool((self.variance < 0).any()):
            raise ValueError(f"expected variances from 0, got {self.variance.min().item()}")
        self.encoder = nn.Sequential(*_hidden(width, 16), *_hidden(16, 8), *_hidden(8, LATENT))
        self.decoder = nn.Sequential(*_hidden(LATENT, 8), *_hidden(8, 16), nn.Linear(16, width))

    def scale(self) -> Tensor:
        """Return the `[30]` standard deviations; 1e-7 keeps a constant feature's above 0."""
        return torch.sqrt(self.variance + 1e-7)

    def normalize(self, x: Tensor) -> Tensor:
        """Scale `[rows, 30]` raw values to mean 0 and variance 1."""
        return (x - self.mean) / self.scale()

    def denormalize(self, xn: Tensor) -> Tensor:
        """Scale `[rows, 30]` normalized values back to raw values; the inverse of `normalize`."""
        return xn * self.scale() + self.mean

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Compute the 13 outputs.

        Args:
            x: Raw values, float32 `[rows, 30]`, in the order of `FEATURES`.

        Returns:
            The outputs by the names in `OUTPUTS`, float32 `[rows]`, `[rows, 4]` or `[rows, 30]`.
        """
        xn = self.normalize(x)
        encoded = self.encoder(xn)
        rn = self.decoder(encoded)
        rd = self.denormalize(rn)
        normalized_mse = torch.mean((xn - rn) ** 2, dim=1)
        denormalized_mse = torch.mean((x - rd) ** 2, dim=1)
        return {
            "normalized_reconstruction": rn,
            "normalized_reconstruction_errors": xn - rn,
            "normalized_MAE": torch.mean(torch.abs(xn - rn), dim=1),
            "normalized_RMSE": torch.sqrt(normalized_mse),
            "normalized_MSE": normalized_mse,
            "normalized_MSLE": _msle(xn, rn),
            "denormalized_reconstruction": rd,
            "denormalized_reconstruction_errors": x - rd,
            "denormalized_MAE": torch.mean(torch.abs(x - rd), dim=1),
            "denormalized_RMSE": torch.sqrt(denormalized_mse),
            "denormalized_MSE": denormalized_mse,
            "denormalized_MSLE": _msle(x, rd),
            "encoded": encoded,
        }


def _msle(value: Tensor, reconstruction: Tensor) -> Tensor:
    """Return the `[rows]` mean squared differences of log1p; negative values count as 0."""
    difference = torch.log1p(torch.relu(reconstruction)) - torch.log1p(torch.relu(value))
    return torch.mean(difference**2, dim=1)


def _hidden(inputs: int, outputs: int) -> tuple[nn.Module, nn.Module, nn.Module]:
    return nn.Linear(inputs, outputs), nn.ReLU(), nn.Dropout(DROPOUT)


def _statistic(name: str, values: Tensor | Sequence[float]) -> Tensor:
    """Copy 30 numbers to a `[30]` float32 tensor, or raise ValueError."""
    statistic = torch.as_tensor(values, dtype=torch.float32).detach().clone()
    if statistic.shape != (len(FEATURES),) or not bool(torch.isfinite(statistic).all()):
        raise ValueError(
            f"expected {len(FEATURES)} finite numbers as {name}, one for each feature, "
            f"got shape {tuple(statistic.shape)}: {statistic.tolist()}"
        )
    return statistic
