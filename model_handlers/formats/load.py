"""Bytes of a model file -> a torch module, for each format, without running code from them.

The format is told from the bytes, not from the file's name. A full pickle is refused
whatever it is called, since unpickling runs code; so is what export_archive.py finds.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import torch

from common.errors import ManifestError, ModelError, UnsafeModel
from model_handlers.formats.architecture import TrustedCode, build_architecture
from model_handlers.formats.export_archive import check_export
from model_handlers.formats.model_archive import ModelArchive
from model_handlers.formats.plain_pickle import PICKLE_ADVICE, load_plain
from model_handlers.formats.torchscript import check_torchscript
from model_handlers.manifest import Manifest
from model_handlers.model_errors import as_model_error

_CPU = torch.device("cpu")
_NO_CODE = TrustedCode()
_NAMES = {
    "pt2": "pt2",
    "torchscript": "torchscript",
    "torch_save": "state_dict or a pickle of torch.save",
    "safetensors": "safetensors",
}


def sniff(data: bytes) -> str:
    """A model file's bytes -> its format. Raises ModelError, UnsafeModel.

    "torch_save" is a zip written by torch.save: a state dict or a full pickle.
    """
    if data[:4] == b"PK\x03\x04":
        return _sniff_zip(data)
    if len(data) > 9 and data[8:9] == b"{" and int.from_bytes(data[:8], "little") < len(data):
        return "safetensors"
    if data[:1] == b"\x80":
        raise UnsafeModel(f"the model file is a Python pickle: {PICKLE_ADVICE}")
    raise ModelError(
        "the model file is none of torch.export (.pt2), TorchScript (.pt), safetensors or a "
        f"state dict; it starts with {data[:8]!r} and has {len(data):,} bytes"
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
        "the model file is a zip archive, but no PyTorch model; a .mar must end in .mar"
    )


def load_module(
    data: bytes,
    manifest: Manifest,
    device: torch.device = _CPU,
    code: TrustedCode = _NO_CODE,
) -> torch.nn.Module:
    """Checked bytes and their manifest -> the module in eval mode, on the device.

    code: what the manifest's architecture may import.

    Raises:
        UnsafeModel: reading the bytes could run code that is in them, or that the manifest
            names and nobody trusts.
        ModelError: the bytes are damaged or of another format than the manifest says.
    """
    found = sniff(data)
    wanted = "torch_save" if manifest.format == "state_dict" else manifest.format
    if found != wanted:
        raise ManifestError(
            f"model.json says format {manifest.format!r}, but the file {manifest.file} is "
            f"{_NAMES[found]}"
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
    """TorchScript bytes -> module, once their code and sizes have been looked at."""
    check_torchscript(ModelArchive(data))
    return torch.jit.load(io.BytesIO(data), map_location="cpu").eval()


def _load_pt2(data: bytes, device: torch.device) -> torch.nn.Module:
    """torch.export bytes -> module, tensors that its graph makes on the same device.

    load_pt2 is called rather than torch.export.load, which falls back to an older
    format that unpickles.
    """
    from torch.export.passes import move_to_device_pass
    from torch.export.pt2_archive._package import load_pt2

    check_export(data)
    program = load_pt2(io.BytesIO(data)).exported_programs["model"]
    if device.type != "cpu":
        program = move_to_device_pass(program, device)
    return program.module()


def _load_safetensors(data: bytes) -> Any:
    """safetensors bytes -> state dict."""
    try:
        from safetensors.torch import load
    except ImportError as error:
        raise ModelError(
            "the model is a safetensors file: install it with pip install 'millrace[safetensors]'"
        ) from error
    return load(data)


def _with_weights(manifest: Manifest, weights: Any, code: TrustedCode) -> torch.nn.Module:
    """A state dict and the manifest that names its class -> module in eval mode."""
    module = build_architecture(manifest, code)
    with as_model_error(f"the weights do not fit {manifest.architecture}"):
        module.load_state_dict(weights)
    return module.eval()
