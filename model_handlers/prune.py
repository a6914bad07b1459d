"""Drop from a model what the outputs that are wanted do not need.

The example's model has 13 outputs; computing the two that are written takes a third
to a fifth of the time. The graph is cut, the arithmetic that is left is the same.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from torch.utils import _pytree as pytree

from model_handlers.manifest import Manifest


def keep_outputs(
    module: torch.nn.Module, manifest: Manifest, names: Sequence[str]
) -> torch.nn.Module:
    """A loaded module and the outputs wanted -> a module that returns only these, by name.

    The module comes back as it is where it cannot be cut: plain Python modules, and
    answers that are neither a dict of tensors nor a tuple of them.
    """
    if isinstance(module, torch.jit.ScriptModule):
        return _cut_script(module, manifest, names)
    if isinstance(module, torch.fx.GraphModule):
        return _cut_graph(module, manifest, names)
    return module


class _Selected(torch.jit.ScriptModule):
    """A script module within another, whose forward is defined from source."""

    def __init__(self, model: torch.jit.ScriptModule) -> None:
        super().__init__()
        self.model = model


def _cut_script(
    module: torch.jit.ScriptModule, manifest: Manifest, names: Sequence[str]
) -> torch.nn.Module:
    """A script module -> a frozen one: freezing drops what nobody asks for."""
    returns = str(module.forward.schema.returns[0].type)  # type: ignore[attr-defined]
    every = [spec.name for spec in manifest.outputs]
    if returns.startswith("Dict[str, Tensor]"):
        keys = {name: repr(name) for name in names}
    elif returns.startswith("Tuple[Tensor"):
        keys = {name: str(every.index(name)) for name in names}
    else:
        return module
    if not all(re.fullmatch(r"[\w .-]+", name) for name in names):
        return module
    inputs = ", ".join(f"x{i}" for i in range(len(manifest.inputs)))
    answer = ", ".join(f"{name!r}: out[{key}]" for name, key in keys.items())
    selected = _Selected(module)
    selected.define(
        f"def forward(self, {inputs}):\n    out = self.model({inputs})\n    return {{{answer}}}\n"
    )
    try:
        return torch.jit.freeze(selected.eval())
    except RuntimeError:
        # Freezing refuses modules that change their own attributes.
        return module


def _cut_graph(
    module: torch.fx.GraphModule, manifest: Manifest, names: Sequence[str]
) -> torch.nn.Module:
    """A graph module of torch.export -> the same with fewer outputs and no dead nodes."""
    codegen = module.graph._codegen
    if not isinstance(codegen, torch.fx.graph._PyTreeCodeGen):
        return module
    spec = codegen.pytree_info.out_spec
    if spec is None or any(not child.is_leaf() for child in spec.children()):
        return module
    every = list(spec.context) if spec.type is dict else [s.name for s in manifest.outputs]
    if spec.type not in (dict, tuple, list) or not set(names) <= set(every):
        return module
    (output,) = module.graph.find_nodes(op="output")
    kept = {name: output.args[0][every.index(name)] for name in names}
    flat, out_spec = pytree.tree_flatten(kept)
    output.args = (tuple(flat),)
    codegen.pytree_info = codegen.pytree_info._replace(out_spec=out_spec)
    module.graph.eliminate_dead_code()
    module.recompile()
    return module
