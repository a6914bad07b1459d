"""What a model file says about the tensors that the model takes and returns."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from common.errors import ContractBroken

# The name of the number of rows in shapes. Other sizes that are not fixed have the names with
# which the model was exported.
ROWS = "rows"


@dataclass(frozen=True)
class TensorType:
    """An input or output of a model, as far as its file describes it.

    Attributes:
        name: The name.
        dtype: The dtype, or None if the file does not say.
        shape: The size of each dimension, or its name if it is not fixed; None if the file does not
            say.
    """

    name: str
    dtype: str | None = None
    shape: tuple[int | str, ...] | None = None

    def __str__(self) -> str:
        if self.shape is None:
            return self.name
        return f"{self.name} {self.dtype} [{', '.join(map(str, self.shape))}]"


@dataclass(frozen=True)
class Signature:
    """The inputs and outputs of a model.

    Attributes:
        inputs: The inputs in the order of the forward method.
        outputs: The outputs, if the file describes them.
    """

    inputs: tuple[TensorType, ...]
    outputs: tuple[TensorType, ...] = ()

    @property
    def names(self) -> list[str]:
        """The names of the inputs."""
        return [spec.name for spec in self.inputs]

    def __str__(self) -> str:
        return ", ".join(map(str, self.inputs))


def read_signature(module: torch.nn.Module) -> Signature:
    """Return the signature of a loaded module.

    An exported program has names, dtypes and shapes. TorchScript and Python classes have names.

    Args:
        module: The module.

    Raises:
        ContractBroken: An input is not a tensor.
    """
    if isinstance(module, torch.jit.ScriptModule):
        return Signature(tuple(map(TensorType, _names_of_script(module))))
    if isinstance(module, torch.fx.GraphModule):
        return _signature_of_graph(module)
    parameters = inspect.signature(module.forward).parameters.values()
    named = {inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD}
    required = (p.name for p in parameters if p.kind in named and p.default is p.empty)
    return Signature(tuple(map(TensorType, required)))


def _names_of_script(module: torch.jit.ScriptModule) -> list[str]:
    arguments = module.forward.schema.arguments[1:]  # type: ignore[attr-defined]
    needed = [a for a in arguments if not a.has_default_value()]
    for argument in needed:
        if str(argument.type) not in ("Tensor", "Optional[Tensor]"):
            raise ContractBroken(
                f"the model's input {argument.name} takes {argument.type}: wrap the model in a "
                "module whose forward method takes tensors"
            )
    return [a.name for a in needed]


def _signature_of_graph(module: torch.fx.GraphModule) -> Signature:
    placeholders = module.graph.find_nodes(op="placeholder")
    inputs = [_tensor_type(node.name, node.meta.get("val")) for node in placeholders]
    (output,) = module.graph.find_nodes(op="output")
    tensors = [getattr(node, "meta", {}).get("val") for node in output.args[0]]
    outputs: list[TensorType] = []
    spec = module.graph._codegen.pytree_info.out_spec  # type: ignore[attr-defined]
    if spec is not None and all(child.is_leaf() for child in spec.children()):
        keys = spec.context if spec.type is dict else None
        names = keys or output_names(len(tensors), is_single=spec.is_leaf())
        outputs = [_tensor_type(*pair) for pair in zip(names, tensors, strict=False)]
    return _with_rows(inputs, outputs)


def _tensor_type(name: str, value: Any) -> TensorType:
    if not isinstance(value, torch.Tensor):
        return TensorType(name)
    sizes = (size if isinstance(size, int) else str(size) for size in value.shape)
    return TensorType(name, str(value.dtype).removeprefix("torch."), tuple(sizes))


def _with_rows(inputs: Sequence[TensorType], outputs: Sequence[TensorType]) -> Signature:
    """Return a signature in which the first size of the inputs is called ROWS."""
    first = {spec.shape[0] for spec in inputs if spec.shape and isinstance(spec.shape[0], str)}
    named: Mapping[Any, Any] = dict.fromkeys(first, ROWS)

    def rename(spec: TensorType) -> TensorType:
        if spec.shape is None:
            return spec
        return replace(spec, shape=tuple(named.get(size, size) for size in spec.shape))

    return Signature(tuple(map(rename, inputs)), tuple(map(rename, outputs)))


def output_names(count: int, *, is_single: bool) -> list[str]:
    """Return names for outputs that have none.

    Args:
        count: The number of outputs.
        is_single: Whether the model returns a tensor instead of a tuple.
    """
    return ["output"] if is_single else [f"output_{i}" for i in range(count)]
