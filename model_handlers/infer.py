"""Infer the manifest of a bare model file from the answers of the model."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import PurePosixPath
from typing import Any, get_args

import torch

from common.errors import ContractBroken
from common.memory import MORE_MEMORY, check_memory
from model_handlers.formats.load import load_module, sniff
from model_handlers.loaded_model import (
    ROW_FAULTS,
    LoadedModel,
    check_device_works,
    describe_error,
    guard_advice,
)
from model_handlers.manifest import MANIFEST_NAME, DType, InputSpec, Manifest, OutputSpec
from model_handlers.read_package import ModelPackage
from model_handlers.trusted_code import TrustedCode
from model_handlers.try_rows import MADE_UP_ROWS, check_made_up_rows

# What models take most often if not float32.
_OTHER_DTYPES = (torch.float64, torch.float16, torch.bfloat16, torch.int64)


def infer_manifest(
    package: ModelPackage,
    feature_columns: Sequence[str],
    *,
    name: str | None = None,
    version: str = "0",
    architecture: str | None = None,
    trusted_modules: Sequence[str] = (),
    batch_dependence: float | None = None,
    sampled: bool = False,
) -> Manifest:
    """Infer the manifest of a bare model file from the model's answers to rows of zeros.

    The model must have one float32 input `[rows, columns]`. Outputs get the names of the model's
    dict, or else `output`, or `output_0`, `output_1`, ...

    Args:
        package: The model file.
        feature_columns: The columns of the input, in order.
        name: The name of the model; the file name without its suffix by default.
        version: The version of the model.
        architecture: `module:Class` to load weights into, for files that contain only weights.
        trusted_modules: The top-level modules that `architecture` may import.
        batch_dependence: The accepted difference between answers to a row in different batches.
        sampled: Whether the caller will try the model on rows of a sample. If not, it is tried on
            random rows here.

    Raises:
        ModelError: The model cannot be loaded.
        ContractBroken: The outputs do not have one row per input row, or depend on the batch.
    """
    draft = replace(
        _draft(package, feature_columns),
        name=name or PurePosixPath(package.file).stem,
        version=version,
        architecture=architecture,
        batch_dependence=batch_dependence,
    )
    module = load_module(package.data, draft, code=TrustedCode(tuple(trusted_modules)))
    outputs = _probe(module, draft)
    manifest = replace(draft, outputs=outputs, score_output=_score_of(outputs))
    if not sampled:
        model = LoadedModel(
            module=module,
            manifest=manifest,
            outputs=outputs,
            device=torch.device("cpu"),
            batch_rows=MADE_UP_ROWS,
        )
        check_made_up_rows(model)
    return manifest


def load_draft(package: ModelPackage) -> torch.nn.Module:
    """Load a bare model file, whose inputs are not known.

    Args:
        package: The model file.

    Raises:
        ModelError: The file is not a model, or contains only weights.
    """
    return load_module(package.data, _draft(package, ("unknown",)))


def _draft(package: ModelPackage, feature_columns: Sequence[str]) -> Manifest:
    """Return a manifest of a bare model file, in which the outputs are not known yet."""
    found = sniff(package.data)
    return Manifest(
        name=PurePosixPath(package.file).stem,
        version="0",
        format="state_dict" if found == "torch_save" else found,  # type: ignore[arg-type]
        file=package.file,
        sha256=package.sha256,
        inputs=(InputSpec("features", tuple(feature_columns), shape=(len(feature_columns),)),),
        outputs=(OutputSpec("output"),),
    )


def _score_of(outputs: Sequence[OutputSpec]) -> str | None:
    """Return the output that is the score, or None if the user has to choose one."""
    # An integer is more often a class or a count than a score.
    scalars = [s.name for s in outputs if s.shape == () and s.dtype.startswith("float")]
    return scalars[0] if len(scalars) == 1 else None


def _probe(module: torch.nn.Module, draft: Manifest) -> tuple[OutputSpec, ...]:
    """Return the outputs of a module with one input, from its answers to 2 and 3 rows of zeros."""
    two, three = (_answer(module, draft, rows) for rows in (2, 3))
    if list(two) != list(three):
        raise ContractBroken(
            f"model {draft.file}: expected the same outputs for any number of rows, got "
            f"{list(two)} for 2 and {list(three)} for 3"
        )
    for name, tensor in two.items():
        shape = list(tensor.shape)
        if shape[:1] != [2] or list(three[name].shape) != [3, *shape[1:]]:
            raise ContractBroken(
                f"model {draft.file}: output {name!r} has shape {shape} for 2 rows and "
                f"{list(three[name].shape)} for 3: expected the number of rows as the first "
                "dimension; keep the batch dimension in the forward method, and export a .pt2 with "
                "a dynamic batch dimension"
            )
    return tuple(
        OutputSpec(name, _dtype(draft, name, tensor), tuple(tensor.shape[1:]))
        for name, tensor in two.items()
    )


def _answer(module: torch.nn.Module, draft: Manifest, rows: int) -> dict[str, torch.Tensor]:
    """Return the tensors of a module's answer to rows of zeros, by name."""
    try:
        with torch.inference_mode():
            answer = module(torch.zeros(rows, *draft.inputs[0].shape))
    except ROW_FAULTS as error:
        check_memory(error, f"model {draft.file}", MORE_MEMORY)
        check_device_works(error)
        raise ContractBroken(
            f"model {draft.file} fails on {rows} rows of {draft.inputs[0].width} zeros: "
            f"{describe_error(error)}; {_advice(module, (rows, *draft.inputs[0].shape), error)}"
        ) from error
    named: Mapping[Any, Any] = {"output": answer}
    if isinstance(answer, Mapping):
        named = answer
    elif isinstance(answer, tuple | list):
        named = {f"output_{i}": tensor for i, tensor in enumerate(answer)}
    for name, tensor in named.items():
        if not isinstance(name, str) or not isinstance(tensor, torch.Tensor):
            raise ContractBroken(
                f"model {draft.file}: expected a tensor, a tuple of tensors or a dict of named "
                f"tensors, got {type(tensor).__name__} as output {name!r}"
            )
    return dict(named)


def _advice(module: torch.nn.Module, shape: Sequence[int], error: Exception) -> str:
    """Return advice for a module that fails on zeros of float32 of this shape."""
    inputs = _inputs_of(module)
    if len(inputs) > 1:
        return (
            f"it takes {len(inputs)} inputs ({', '.join(inputs)}), and --feature_columns describes "
            f"a single one: describe all of them in {MANIFEST_NAME}"
        )
    if odd := [kind for kind in inputs.values() if kind not in ("Tensor", "Optional[Tensor]")]:
        return f"it takes {odd[0]}: wrap it in a module whose forward method takes tensors"
    dtype = next((dtype for dtype in _OTHER_DTYPES if _accepts(module, shape, dtype)), None)
    if dtype is not None:
        name = str(dtype).removeprefix("torch.")
        describe = f"describe its input in {MANIFEST_NAME}, or " if name in get_args(DType) else ""
        return (
            f"it takes {name} instead of float32: {describe}convert the input in its forward "
            f"method, for example with x.to(torch.{name})"
        )
    guard = str(error).startswith("Guard failed: ")
    return "check --feature_columns" + f", and {guard_advice(error)}" * guard


def _inputs_of(module: torch.nn.Module) -> dict[str, str]:
    """Return the names of the inputs that a module needs, and the names of their types."""
    if isinstance(module, torch.jit.ScriptModule):
        arguments = module.forward.schema.arguments[1:]  # type: ignore[attr-defined]
        return {a.name: str(a.type) for a in arguments if not a.has_default_value()}
    if isinstance(module, torch.fx.GraphModule):
        return {node.name: "Tensor" for node in module.graph.find_nodes(op="placeholder")}
    parameters = inspect.signature(module.forward).parameters.values()
    named = {inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD}
    return {p.name: "Tensor" for p in parameters if p.kind in named and p.default is p.empty}


def _accepts(module: torch.nn.Module, shape: Sequence[int], dtype: torch.dtype) -> bool:
    """Return whether a module accepts zeros of this shape and dtype."""
    try:
        with torch.inference_mode():
            module(torch.zeros(*shape, dtype=dtype))
    except ROW_FAULTS:
        return False
    return True


def _dtype(draft: Manifest, name: str, tensor: torch.Tensor) -> DType:
    dtype = str(tensor.dtype).removeprefix("torch.")
    if dtype not in get_args(DType):
        raise ContractBroken(
            f"model {draft.file}: output {name!r} has dtype {dtype}, expected one of "
            f"{', '.join(get_args(DType))}"
        )
    return dtype  # type: ignore[return-value]
