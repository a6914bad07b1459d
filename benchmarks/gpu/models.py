"""The models that are measured: a small one, one of 100 MB, and a transformer like BERT-base."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Subject:
    """A model that is measured.

    Attributes:
        make: A function that returns the module on the CPU.
        draw: A function from a number of rows and a seed to the array of the input.
        rows: The rows of a pass in the measurement.
        golden: The rows of which the CPU computes the expected answers.
    """

    name: str
    make: Callable[[], nn.Module]
    draw: Callable[[int, int], np.ndarray]
    rows: int
    golden: int = 64


class Transformer(nn.Module):
    """An encoder of token ids, int64 `[rows, tokens]`, with two numbers for each row."""

    def __init__(self, tokens: int, width: int, layers: int, heads: int, words: int) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(words, width), nn.Embedding(tokens, width)
        layer = nn.TransformerEncoderLayer(
            width, heads, 4 * width, dropout=0.0, activation="gelu", batch_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.head = nn.Linear(width, 2)

    def forward(self, ids: Tensor) -> Tensor:
        """Return the two numbers of each row, `[rows, 2]`."""
        places = torch.arange(ids.shape[1], device=ids.device)
        encoded: Tensor = self.encoder(self.words(ids) + self.places(places))
        answer: Tensor = self.head(encoded.mean(1))
        return answer


def _mlp(width: int, layers: int) -> nn.Module:
    parts = [part for _ in range(layers) for part in (nn.Linear(width, width), nn.ReLU())]
    return nn.Sequential(*parts, nn.Linear(width, 8))


def _autoencoder() -> nn.Module:
    from examples.transactions.model import TransactionAutoencoder

    return TransactionAutoencoder()


def _floats(width: int) -> Callable[[int, int], np.ndarray]:
    return lambda rows, seed: np.random.default_rng(seed).standard_normal((rows, width), np.float32)


def _ids(tokens: int, words: int) -> Callable[[int, int], np.ndarray]:
    return lambda rows, seed: np.random.default_rng(seed).integers(0, words, (rows, tokens))


def subjects(quick: bool) -> list[Subject]:
    """Return the models; small ones if the measurement only has to show that it works."""
    if quick:
        return [
            Subject("autoencoder", _autoencoder, _floats(30), 256, 16),
            Subject("mlp", lambda: _mlp(64, 2), _floats(64), 128, 16),
            Subject("transformer", lambda: Transformer(8, 32, 2, 4, 100), _ids(8, 100), 16, 8),
        ]
    return [
        Subject("autoencoder", _autoencoder, _floats(30), rows=32_768),
        Subject("mlp", lambda: _mlp(2048, 6), _floats(2048), rows=8192),
        Subject(
            "transformer",
            lambda: Transformer(128, 768, 12, 12, 30_522),
            _ids(128, 30_522),
            rows=256,
        ),
    ]
