"""Load the bytes of a model file as a torch module, without running code from them.

The format is detected from the bytes, not from the name of the file. A full pickle is always
refused, because unpickling runs code. So is content that export_archive.py refuses.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping
from typing import Any

import torch

from common.errors import ManifestError, ModelError, UnsafeModel
from model_handlers.formats.architecture import build_architecture
from model_handlers.formats.export_archive import check_export
from model_handlers.formats.model_archive import ModelArchive
from model_handlers.formats.plain_pickle import PICKLE_ADVICE, load_plain
from model_handlers.formats.torchscript import check_torchscript
from model_handlers.manifests.manifest import Manifest
from model_handlers.model_errors import as_model_error
from model_handlers.trusted_code import TrustedCode

_CPU = torch.device("cpu")
_NO_CODE = TrustedCode()
_NAMES = {
    "pt2": "pt2",
    "torchscript": "torchscript",
    "torch_save": "state_dict or a pickle of torch.save",
    "safetensors": "safetensors",
}


# Files that people take for models of PyTorch, by the bytes at their start, and what to do.
_FOREIGN = {
    # The version of the format, then one of the other fields of an ONNX model.
    re.compile(rb"\x08[\x01-\x1f][\x12\x1a\x22\x28\x32\x3a\x42]"): "an ONNX model: convert it "
    "to PyTorch, for example with onnx2torch, and save it with torch.export.save",
    re.compile(rb"\x89HDF"): "an HDF5 file, as Keras writes it: export the model from PyTorch",
    re.compile(rb"GGUF"): "a GGUF file: export the model from PyTorch",
    re.compile(rb"PAR1"): "a Parquet file, which holds rows: pass the file of a model",
}

# The usual keys of the weights in a checkpoint.
_CHECKPOINT = ("state_dict", "model_state_dict", "model_state", "model", "weights")
_WRAPPERS = {
    "module.": "DataParallel or DistributedDataParallel",
    "_orig_mod.": "torch.compile",
}


def sniff(data: bytes) -> str:
    """Detect the format of a model file.

    Args:
        data: The bytes of the file.

    Returns:
        "pt2", "torchscript", "safetensors" or "torch_save". "torch_save" is a zip archive from
        torch.save, which contains a state dict or a full pickle.

    Raises:
        ModelError: The bytes have none of these formats.
        UnsafeModel: The file is a pickle, or an archive that readers could read differently.
    """
    if data[:4] == b"PK\x03\x04":
        return _sniff_zip(data)
    if len(data) > 9 and data[8:9] == b"{" and int.from_bytes(data[:8], "little") < len(data):
        return "safetensors"
    if data[:1] == b"\x80":
        raise UnsafeModel(f"the model file is a Python pickle: {PICKLE_ADVICE}")
    for start, advice in _FOREIGN.items():
        if start.match(data):
            raise ModelError(f"the model file is {advice}")
    raise ModelError(
        "the model file is not a torch.export (.pt2), TorchScript (.pt), safetensors or state dict "
        f"file; it starts with {data[:8]!r} and has {len(data):,} bytes"
    )


def _sniff_zip(data: bytes) -> str:
    names = ModelArchive(data).names
    if "archive_format" in names:
        return "pt2"
    if "constants.pkl" in names and any(name.startswith("code/") for name in names):
        return "torchscript"
    if "data.pkl" in names:
        return "torch_save"
    raise ModelError(
        "the model file is a zip archive, but not a PyTorch model; if it is a TorchServe archive, "
        "its name must end in .mar"
    )


def load_module(
    data: bytes,
    manifest: Manifest,
    device: torch.device = _CPU,
    code: TrustedCode = _NO_CODE,
) -> torch.nn.Module:
    """Load a model.

    Args:
        data: The bytes of the model file, whose digest was checked.
        manifest: The manifest of the model.
        device: The device to put the module on.
        code: The modules that the manifest's architecture may import.

    Returns:
        The module, in eval mode.

    Raises:
        UnsafeModel: Reading the bytes could run code, or the manifest names code in a module that
            is not trusted.
        ModelError: The bytes are damaged, or have a different format from the one that the manifest
            names.
    """
    found = sniff(data)
    wanted = "torch_save" if manifest.format == "state_dict" else manifest.format
    if found != wanted:
        raise ManifestError(
            f"model.json says format {manifest.format!r}, but the file {manifest.file} is "
            f"{_NAMES[found]}: package the model again"
        )
    loaders: dict[str, Callable[[], torch.nn.Module]] = {
        "torchscript": lambda: _load_torchscript(data),
        "pt2": lambda: _load_pt2(data, device),
        "torch_save": lambda: _with_weights(manifest, load_plain(data), code),
        "safetensors": lambda: _with_weights(manifest, _load_safetensors(data), code),
    }
    with as_model_error(f"model {manifest.file} ({_NAMES[found]}) cannot be loaded"):
        return loaders[found]().to(device)


def _load_torchscript(data: bytes) -> torch.nn.Module:
    """Load TorchScript bytes, after checking their code and sizes."""
    check_torchscript(ModelArchive(data))
    return torch.jit.load(io.BytesIO(data), map_location="cpu").eval()


def _load_pt2(data: bytes, device: torch.device) -> torch.nn.Module:
    """Load torch.export bytes; tensors that the graph creates are on the device too.

    This calls load_pt2 instead of torch.export.load, which falls back to an older format that
    unpickles objects.
    """
    # Importing this module defines the operators of models that were quantized with PT2E.
    import torch.ao.quantization.fx._decomposed  # noqa: F401
    from torch.export.passes import move_to_device_pass
    from torch.export.pt2_archive._package import load_pt2

    check_export(data)
    program = load_pt2(io.BytesIO(data)).exported_programs["model"]
    if device.type != "cpu":
        program = move_to_device_pass(program, device)
    return _positional(program.module())


def _positional(module: Any) -> torch.nn.Module:
    """Return the module of a program, made to take its inputs by position.

    A program that was exported with keyword arguments takes only keyword arguments.
    """
    from torch.utils import _pytree as pytree

    codegen = module.graph._codegen
    info = codegen.pytree_info
    if info.in_spec is not None and info.in_spec.num_leaves == len(info.orig_args):
        _, in_spec = pytree.tree_flatten((tuple(info.orig_args), {}))
        codegen.pytree_info = info._replace(in_spec=in_spec)
        module._in_spec = in_spec
        module.recompile()
    loaded: torch.nn.Module = module
    return loaded


def _load_safetensors(data: bytes) -> Any:
    """Load the state dict in safetensors bytes."""
    try:
        from safetensors.torch import load
    except ImportError as error:
        raise ModelError(
            "the model is a safetensors file, and the package to read it is not installed: run "
            "pip install 'millrace[safetensors]'"
        ) from error
    return load(data)


def _with_weights(manifest: Manifest, weights: Any, code: TrustedCode) -> torch.nn.Module:
    """Create the class that the manifest names, load weights into it, and set eval mode."""
    _check_weights(weights)
    module = build_architecture(manifest, code)
    with as_model_error(f"the weights do not match {manifest.architecture}"):
        module.load_state_dict(weights)
    return module.eval()


def _check_weights(weights: Any) -> None:
    """Raise ModelError for a checkpoint of a training run, and for the weights of a wrapper."""
    if not isinstance(weights, Mapping) or not weights:
        return
    names = [str(name) for name in weights]
    for name in _CHECKPOINT:
        if isinstance(weights.get(name), Mapping):
            raise ModelError(
                f"the file is a checkpoint with {', '.join(names[:10])}: save only the weights, "
                f"with torch.save(checkpoint[{name!r}], FILE)"
            )
    for prefix, wrapper in _WRAPPERS.items():
        if all(name.startswith(prefix) for name in names):
            raise ModelError(
                f"the names of all weights start with {prefix!r}, because {wrapper} wrapped the "
                f"model: save the state dict of the model inside it, model.{prefix}state_dict()"
            )
