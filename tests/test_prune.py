"""Tests that a model with fewer outputs returns the same numbers."""

import io

import pytest
import torch
from same_scores import assert_scores

from model_handlers.formats.load import load_module
from model_handlers.manifests.manifest import InputSpec, Manifest, OutputSpec
from model_handlers.prune import keep_outputs

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


class Named(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(3, 2)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        y = self.linear(x)
        return {"y": y, "total": x.sum(1), "costly one": torch.sqrt(torch.exp(y)).sum(1)}


class Several(torch.nn.Module):
    def forward(self, x: torch.Tensor, k: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return x.sum(1), x.mean(1) * k


class Single(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.sum(1)


class Counts(torch.nn.Module):
    """A model that changes its own state, so it cannot be frozen."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        self.calls = self.calls + 1
        return {"a": x.sum(1), "b": x.mean(1) + self.calls}


class Checks(torch.nn.Module):
    """A model that raises for values that matter only to one of its outputs."""

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        if bool((x < 0).any()):
            raise ValueError("negative")
        return {"a": x.sum(1), "b": torch.sqrt(x).sum(1)}


def manifest(inputs: int, *outputs: str) -> Manifest:
    return Manifest(
        name="m",
        version="1",
        format="torchscript",
        file="m.pt",
        sha256="0" * 64,
        inputs=tuple(InputSpec(f"x{i}", (f"c{i}",)) for i in range(inputs)),
        outputs=tuple(OutputSpec(name) for name in outputs),
    )


def script(module: torch.nn.Module) -> torch.nn.Module:
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(module.eval()), buffer)
    buffer.seek(0)
    return torch.jit.load(buffer)


def export(module: torch.nn.Module, *args: torch.Tensor) -> torch.nn.Module:
    batch = torch.export.Dim("batch")
    program = torch.export.export(
        module.eval(), args, dynamic_shapes=tuple({0: batch} for _ in args)
    )
    return program.module()


X = torch.rand(5, 3)


@pytest.mark.parametrize(
    "names", [("y",), ("costly one",), ("total", "y"), ("y", "total", "costly one")]
)
@pytest.mark.parametrize("make", [script, lambda module: export(module, X)], ids=["script", "pt2"])
def test_kept_outputs_are_equal_and_the_others_are_gone(make, names) -> None:  # type: ignore[no-untyped-def]
    module = Named()
    expected = module(X)
    cut = keep_outputs(make(module), manifest(1, "y", "total", "costly one"), names)
    with torch.inference_mode():
        for rows in (1, 2, 5):
            answer = cut(X[:rows])
            assert set(answer) == set(names)
            for name in names:
                assert_scores(answer[name], expected[name][:rows].detach(), name)


def test_outputs_that_are_not_requested_are_not_computed() -> None:
    every = manifest(1, "y", "total", "costly one")
    scripted = keep_outputs(script(Named()), every, ("total",))
    exported = keep_outputs(export(Named(), X), every, ("total",))
    assert "sqrt" not in str(scripted.graph)
    assert "sqrt" not in str(exported.graph)


@pytest.mark.parametrize(
    "make", [script, lambda module: export(module, X, X[:, 0])], ids=["script", "pt2"]
)
def test_a_tuple_is_named_by_the_manifest(make) -> None:  # type: ignore[no-untyped-def]
    cut = keep_outputs(make(Several()), manifest(2, "sum", "scaled"), ("scaled",))
    answer = cut(X, X[:, 0])
    assert set(answer) == {"scaled"}
    assert_scores(answer["scaled"], X.mean(1) * X[:, 0])


def test_a_model_that_cannot_be_cut_is_returned_unchanged() -> None:
    single = script(Single())
    assert keep_outputs(single, manifest(1, "s"), ("s",)) is single
    plain = Named()
    assert keep_outputs(plain, manifest(1, "y"), ("y",)) is plain
    odd = script(Named())
    assert keep_outputs(odd, manifest(1, "it's"), ("it's",)) is odd


def test_a_model_with_state_still_counts() -> None:
    cut = keep_outputs(script(Counts()), manifest(1, "a", "b"), ("b",))
    first, second = cut(X)["b"], cut(X)["b"]
    torch.testing.assert_close(second - first, torch.ones(5))


def test_a_check_is_not_removed_as_dead_code() -> None:
    cut = keep_outputs(script(Checks()), manifest(1, "a", "b"), ("a",))
    with pytest.raises(torch.jit.Error, match="negative"):
        cut(-X)


def test_a_package_of_each_format_is_cut_after_loading() -> None:
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(Named()), buffer)
    every = manifest(1, "y", "total", "costly one")
    cut = keep_outputs(load_module(buffer.getvalue(), every), every, ("total",))
    torch.testing.assert_close(cut(X)["total"], X.sum(1))
