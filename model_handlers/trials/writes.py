"""Finds out whether a model may write into the memory of its inputs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch.fx import GraphModule


def may_write_inputs(module: torch.nn.Module) -> bool:
    """Return whether a forward pass may write into the memory of its inputs.

    Only a graph shows what a module does. A module without a graph may write, and so may one that
    has an operator that writes anywhere.

    Args:
        module: The module: TorchScript, an exported program, or any other.
    """
    if isinstance(module, torch.jit.ScriptModule):
        return any("!" in node.schema() or _is_call(node) for node in _nodes(module.inlined_graph))
    if isinstance(module, GraphModule):
        graphs = [part for part in module.modules() if isinstance(part, GraphModule)]
        return any(_writes(part, node) for part in graphs for node in part.graph.nodes)
    return True


def _nodes(block: Any) -> Iterator[Any]:
    """Yield the nodes of a TorchScript graph, and of all blocks in it."""
    for node in block.nodes():
        yield node
        for inner in node.blocks():
            yield from _nodes(inner)


def _is_call(node: Any) -> bool:
    """Return whether a node of TorchScript runs code that is not part of the graph."""
    return node.kind() in ("prim::CallFunction", "prim::CallMethod", "prim::PythonOp")


def _writes(module: GraphModule, node: torch.fx.Node) -> bool:
    """Return whether a node of an exported graph may write into its arguments."""
    if node.op == "call_module":
        called = module.get_submodule(str(node.target))
        # torch.export adds this module, which compares the sizes of the inputs.
        return not isinstance(called, GraphModule) and type(called).__name__ != "GuardsFn"
    if node.op == "call_method":
        return True
    schema = getattr(node.target, "_schema", None)
    return node.op == "call_function" and schema is not None and schema.is_mutable
