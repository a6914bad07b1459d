"""Train and export models of prepared rows, for the examples."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

M = TypeVar("M", bound=nn.Module)
BATCH = 128


def fit_model(
    model: M,
    inputs: Mapping[str, Tensor],
    target: Tensor,
    loss: Callable[[Tensor, Tensor], Tensor],
    *,
    epochs: int = 6,
    rate: float = 5e-3,
) -> M:
    """Train a model with Adam, and return it in eval mode.

    Args:
        model: The model, whose `forward` takes the inputs by name.
        inputs: The tensors of all rows by name, each [rows, ...].
        target: The right answers, [rows, ...].
        loss: The loss of answers and targets.
        epochs: How often each row is used.
        rate: The learning rate.
    """
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    model.train()
    for _ in range(epochs):
        order = torch.randperm(len(target))
        for some in order.split(BATCH):
            optimizer.zero_grad()
            answer = model(**{name: values[some] for name, values in inputs.items()})
            loss(answer, target[some]).backward()
            optimizer.step()
    return model.eval()


def export_pt2(model: nn.Module, inputs: Mapping[str, Tensor], path: Path) -> None:
    """Write a model as a .pt2 file that takes any number of rows.

    Args:
        model: The model in eval mode.
        inputs: Two or more rows of each input by name, in the order of `forward`.
        path: The file to write.
    """
    rows = torch.export.Dim("rows")
    shapes = {name: {0: rows} for name in inputs}
    program = torch.export.export(model, (), dict(inputs), dynamic_shapes=shapes)
    torch.export.save(program, path)
