"""What the examples with raw columns share: training, exporting, and their command lines."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from common.command_line import CommandParser, parse_or_exit, positive_integer

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


def build_from(
    name: str, build: Callable[..., None], *, rows: int, train_rows: int, argv: Sequence[str] | None
) -> None:
    """Build an example in the folder that a command line names.

    Args:
        name: The name of the example.
        build: The function that builds it; it takes the folder, `rows`, `train_rows` and `seed`.
        rows: The default number of rows to score.
        train_rows: The default number of training rows.
        argv: The arguments, or None for those of this process.
    """
    parser = CommandParser(f"examples.{name}.build", f"Build the example {name}.")
    folder = Path("build") / name
    parser.add_argument(
        "--output", type=Path, default=folder, help=f"folder for the example (default: {folder})"
    )
    parser.add_argument(
        "--rows",
        type=positive_integer,
        default=rows,
        help=f"number of rows to score (default: {rows})",
    )
    parser.add_argument(
        "--train_rows",
        type=positive_integer,
        default=train_rows,
        help=f"number of rows to train on (default: {train_rows})",
    )
    parser.add_argument(
        "--seed", type=int, default=7, help="seed of the rows and the training (default: 7)"
    )
    args = parse_or_exit(parser, argv)
    build(args.output, rows=args.rows, train_rows=args.train_rows, seed=args.seed)
    print(f"built {args.output}: rows to score, and the model in package/")
