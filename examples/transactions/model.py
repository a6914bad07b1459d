"""Card transactions [B, 30] -> reconstructions, their errors and a latent code: 13 outputs."""

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
    """[B, 30] float32 in the order of `FEATURES` -> dict of `OUTPUTS`, float32.

    A dense autoencoder 30-16-8-4-8-16-30 on values normalized with a mean and a population
    variance, which are buffers: built with the defaults, `load_state_dict` restores them.

    Args:
        mean: 30 means of the features; zeros by default.
        variance: 30 population variances of the features; ones by default.

    Raises:
        ValueError: `mean` or `variance` does not hold 30 finite values, or a variance is negative.
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
        """-> [30] standard deviations, the 1e-7 keeping that of a constant feature above 0."""
        return torch.sqrt(self.variance + 1e-7)

    def normalize(self, x: Tensor) -> Tensor:
        """[B, 30] raw values -> [B, 30] values of mean 0 and variance 1."""
        return (x - self.mean) / self.scale()

    def denormalize(self, xn: Tensor) -> Tensor:
        """[B, 30] normalized values -> [B, 30] raw values; the inverse of `normalize`."""
        return xn * self.scale() + self.mean

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """[B, 30] raw values -> the 13 outputs, [B], [B, 4] or [B, 30] each."""
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
    """Two [B, 30] -> [B] mean squared difference of log1p, negative values counted as 0."""
    difference = torch.log1p(torch.relu(reconstruction)) - torch.log1p(torch.relu(value))
    return torch.mean(difference**2, dim=1)


def _hidden(inputs: int, outputs: int) -> tuple[nn.Module, nn.Module, nn.Module]:
    return nn.Linear(inputs, outputs), nn.ReLU(), nn.Dropout(DROPOUT)


def _statistic(name: str, values: Tensor | Sequence[float]) -> Tensor:
    """30 numbers -> [30] float32 of its own memory."""
    statistic = torch.as_tensor(values, dtype=torch.float32).detach().clone()
    if statistic.shape != (len(FEATURES),) or not bool(torch.isfinite(statistic).all()):
        raise ValueError(
            f"expected {len(FEATURES)} finite numbers as {name}, one for each feature, "
            f"got shape {tuple(statistic.shape)}: {statistic.tolist()}"
        )
    return statistic
