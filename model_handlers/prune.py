"""Remove the parts of a model that the requested outputs do not need.

The model of the example has 13 outputs. Computing only the two that are written takes a fifth to a
third of the time. The graph is cut; the remaining arithmetic does not change.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from torch.utils import _pytree as pytree

from model_handlers.manifests.manifest import Manifest


def keep_outputs(
    module: torch.nn.Module, manifest: Manifest, names: Sequence[str]
) -> torch.nn.Module:
    """Return a module that computes only some outputs of a model.

    Args:
        module: The loaded module.
        manifest: Its manifest, with all outputs in order.
        names: The outputs to keep.

    Returns:
        A module whose answer is a dict of the outputs by name. If the module cannot be cut, the
        module itself: plain Python modules, and modules that return neither a dict nor a tuple of
        tensors.
    """
    if isinstance(module, torch.jit.ScriptModule):
        return _cut_script(module, manifest, names)
    if isinstance(module, torch.fx.GraphModule):
        return _cut_graph(module, manifest, names)
    return module


class _Selected(torch.jit.ScriptModule):
    """A script module that contains another, with a forward method defined from source."""

    def __init__(self, model: torch.jit.ScriptModule) -> None:
        super().__init__()
        self.model = model


def _cut_script(
    module: torch.jit.ScriptModule, manifest: Manifest, names: Sequence[str]
) -> torch.nn.Module:
    """Return a frozen script module: freezing removes what the kept outputs do not use."""
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
    """Reduce the outputs of a torch.export graph module, and remove its dead nodes."""
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
