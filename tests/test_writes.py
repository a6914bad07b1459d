"""Which models may write into their inputs, and that no model changes the rows of a source."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from model_handlers.trials.writes import may_write_inputs


class Linear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.BatchNorm1d(4), nn.Dropout())

    def forward(self, rows: Tensor) -> Tensor:
        return self.layers(rows).sum(dim=1)


class Adds(nn.Module):
    def forward(self, rows: Tensor) -> Tensor:
        rows.add_(1.0)
        return rows.sum(dim=1)


class Sets(nn.Module):
    def forward(self, rows: Tensor) -> Tensor:
        rows[:, 0] = 0.0
        return rows.sum(dim=1)


class SetsAView(nn.Module):
    def forward(self, rows: Tensor) -> Tensor:
        rows.view(-1).clamp_(max=0.0)
        return rows.sum(dim=1)


class AddsRarely(nn.Module):
    def forward(self, rows: Tensor) -> Tensor:
        if bool((rows > 100.0).any()):
            rows.mul_(2.0)
        return rows.sum(dim=1)


class Inner(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.ReLU(inplace=True)

    def forward(self, rows: Tensor) -> Tensor:
        return self.inner(rows).sum(dim=1)


def traced(module: nn.Module) -> nn.Module:
    return torch.jit.trace(module, torch.zeros(4, 3))


def scripted(module: nn.Module) -> nn.Module:
    return torch.jit.script(module)


def frozen(module: nn.Module) -> nn.Module:
    return torch.jit.freeze(torch.jit.script(module))


def exported(module: nn.Module) -> nn.Module:
    shapes = {"rows": {0: torch.export.Dim("n")}}
    program = torch.export.export(module, (torch.zeros(4, 3),), dynamic_shapes=shapes)
    return program.module()


Wrap = Callable[[nn.Module], nn.Module]
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")


@pytest.mark.parametrize("wrap", [traced, frozen, exported])
def test_a_model_of_layers_does_not_write(wrap: Wrap) -> None:
    module = wrap(Linear().eval())
    assert not may_write_inputs(module)
    rows = np.ones((5, 3), np.float32)
    rows.flags.writeable = False
    with torch.inference_mode():
        module(torch.from_numpy(rows))
    assert (rows == 1.0).all()


@pytest.mark.parametrize("wrap", [traced, scripted, frozen, exported])
@pytest.mark.parametrize("kind", [Adds, Sets, SetsAView, Inner])
def test_a_model_that_writes_is_found(kind: type[nn.Module], wrap: Wrap) -> None:
    assert may_write_inputs(wrap(kind().eval()))


@pytest.mark.parametrize("wrap", [scripted, frozen])
def test_a_branch_that_writes_is_found(wrap: Wrap) -> None:
    assert may_write_inputs(wrap(AddsRarely().eval()))


def test_a_module_without_a_graph_may_write() -> None:
    assert may_write_inputs(Linear().eval())
    assert may_write_inputs(nn.Sequential(exported(Linear().eval())))
