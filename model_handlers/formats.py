"""Bytes of a model file -> a torch module, for each format, without unpickling objects.

The format is told from the bytes, not from the file's name. A full pickle is
refused whatever it is called: unpickling runs code. `.pt2` archives may hold
pickles inside; those are looked for first and refused too.
"""

from __future__ import annotations

import importlib
import io
import json
import zipfile
from collections.abc import Callable, Mapping
from typing import Any

import torch

from model_handlers.contract import Manifest
from model_handlers.errors import ManifestError, ModelError, UnsafeModel

_PICKLE_ADVICE = (
    "unpickling it could run any code. Save the model with torch.export.save (.pt2), "
    "torch.jit.save (.pt), or its state_dict with safetensors or torch.save"
)


def sniff(data: bytes) -> str:
    """A model file's bytes -> its format. Raises ModelError, UnsafeModel.

    "torch_save" is a zip written by torch.save: a state dict or a full pickle.
    """
    if data[:4] == b"PK\x03\x04":
        return _sniff_zip(data)
    if len(data) > 9 and data[8:9] == b"{" and int.from_bytes(data[:8], "little") < len(data):
        return "safetensors"
    if data[:1] == b"\x80":
        raise UnsafeModel(f"the model file is a Python pickle: {_PICKLE_ADVICE}")
    raise ModelError(
        "the model file is none of torch.export (.pt2), TorchScript (.pt), safetensors or a "
        f"state dict; it starts with {data[:8]!r} and has {len(data):,} bytes"
    )


def _sniff_zip(data: bytes) -> str:
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            names = [name.split("/", 1)[-1] for name in archive.namelist()]
    except zipfile.BadZipFile as error:
        raise ModelError(
            f"the model file is truncated or damaged ({error}); copy it again"
        ) from error
    if "archive_format" in names:
        return "pt2"
    if "constants.pkl" in names and any(name.startswith("code/") for name in names):
        return "torchscript"
    if "data.pkl" in names:
        return "torch_save"
    raise ModelError(
        "the model file is a zip archive, but no PyTorch model; a .mar must end in .mar"
    )


def load_module(data: bytes, manifest: Manifest) -> torch.nn.Module:
    """Checked bytes and their manifest -> the module in eval mode, on the CPU.

    Raises:
        UnsafeModel: the bytes hold a pickle of objects.
        ModelError: the bytes are damaged or of another format than the manifest says.
    """
    found = sniff(data)
    wanted = "torch_save" if manifest.format == "state_dict" else manifest.format
    if found != wanted:
        raise ManifestError(
            f"model.json says format {manifest.format!r}, but the file {manifest.file} is {found}"
        )
    loaders: dict[str, Callable[[], torch.nn.Module]] = {
        "torchscript": lambda: _load_torchscript(data),
        "pt2": lambda: _load_pt2(data),
        "torch_save": lambda: _with_weights(manifest, _load_state_dict(data)),
        "safetensors": lambda: _with_weights(manifest, _load_safetensors(data)),
    }
    return loaders[found]()


def _load_torchscript(data: bytes) -> torch.nn.Module:
    """TorchScript bytes -> module. Its unpickler knows only tensors and plain containers."""
    try:
        return torch.jit.load(io.BytesIO(data), map_location="cpu").eval()
    except (RuntimeError, ValueError) as error:
        raise ModelError(f"TorchScript file cannot be loaded: {_cause(error)}") from error


def _load_pt2(data: bytes) -> torch.nn.Module:
    """torch.export bytes -> module. Raises UnsafeModel if anything in it is pickled.

    load_pt2 is called rather than torch.export.load, which falls back to an older
    format that unpickles.
    """
    from torch.export.pt2_archive._package import load_pt2

    try:
        _refuse_pickles_in_pt2(data)
        contents = load_pt2(io.BytesIO(data))
        return contents.exported_programs["model"].module()  # type: ignore[no-any-return]
    except (RuntimeError, ValueError, KeyError, AssertionError, AttributeError) as error:
        raise ModelError(f"torch.export file cannot be loaded: {_cause(error)}") from error


def _refuse_pickles_in_pt2(data: bytes) -> None:
    """torch.export bytes -> nothing, or UnsafeModel.

    Where torch.export's loader would unpickle: objects among the constants, tensors
    marked use_pickle, the older single-file weights, and sample inputs that are not
    plain tensors. Compiled libraries (AOTInductor) are native code. The archive is
    read with the same reader as the loader's, so both see the same entries.
    """
    from torch.export.pt2_archive import constants as layout
    from torch.export.pt2_archive._package import PT2ArchiveReader

    with PT2ArchiveReader(io.BytesIO(data)) as archive:  # type: ignore[no-untyped-call]
        for name in archive.get_file_names():
            if name.startswith(layout.AOTINDUCTOR_DIR):
                raise UnsafeModel(f"the .pt2 holds compiled code ({name}), which is not run")
            if name.startswith((layout.WEIGHTS_DIR, layout.CONSTANTS_DIR)):
                if name.endswith(".pt"):
                    raise UnsafeModel(f"the .pt2 holds a pickle ({name}): {_PICKLE_ADVICE}")
                if name.endswith(".json"):
                    _refuse_pickled_entries(json.loads(archive.read_bytes(name)), name)
            if name.startswith(layout.SAMPLE_INPUTS_DIR):
                _load_state_dict(archive.read_bytes(name))


def _refuse_pickled_entries(config: Mapping[str, Any], name: str) -> None:
    from torch.export.pt2_archive import constants as layout

    plain = (layout.WEIGHT_FILENAME_PREFIX, layout.TENSOR_CONSTANT_FILENAME_PREFIX)
    for fqn, entry in config["config"].items():
        if entry.get("use_pickle") or not entry["path_name"].startswith(plain):
            raise UnsafeModel(
                f"the .pt2 holds a pickled object ({fqn} in {name}): {_PICKLE_ADVICE}"
            )


def _load_state_dict(data: bytes) -> Any:
    """torch.save bytes -> what they hold, tensors and plain containers only."""
    import pickle

    try:
        return torch.load(io.BytesIO(data), weights_only=True, map_location="cpu")
    except pickle.UnpicklingError as error:
        raise UnsafeModel(f"the model file is a full pickle: {_PICKLE_ADVICE}") from error
    except (RuntimeError, ValueError, EOFError) as error:
        raise ModelError(f"state dict cannot be loaded: {_cause(error)}") from error


def _load_safetensors(data: bytes) -> Any:
    """safetensors bytes -> state dict."""
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load
    except ImportError as error:
        raise ModelError(
            "the model is a safetensors file: install it with pip install 'millrace[safetensors]'"
        ) from error
    try:
        return load(data)
    except SafetensorError as error:
        raise ModelError(f"safetensors file cannot be loaded: {error}") from error


def _with_weights(manifest: Manifest, weights: Any) -> torch.nn.Module:
    """A state dict and the manifest that names its class -> module in eval mode."""
    module = _architecture(manifest)
    try:
        module.load_state_dict(weights)
    except (RuntimeError, TypeError, AttributeError) as error:
        raise ModelError(
            f"the weights do not fit {manifest.architecture}: {_cause(error)}"
        ) from error
    return module.eval()


def _architecture(manifest: Manifest) -> torch.nn.Module:
    """The manifest's `module:Class` -> an instance. Raises ManifestError."""
    name = manifest.architecture or ""
    module_name, _, class_name = name.partition(":")
    if not module_name or not class_name:
        raise ManifestError(
            f"format {manifest.format!r} holds weights only: expected architecture "
            f"'module:Class' in model.json, got {manifest.architecture!r}"
        )
    try:
        kind = getattr(importlib.import_module(module_name), class_name)
    except (ImportError, AttributeError) as error:
        raise ManifestError(f"architecture {name} cannot be imported here: {error}") from error
    if not (isinstance(kind, type) and issubclass(kind, torch.nn.Module)):
        raise ManifestError(f"architecture {name} is not a torch.nn.Module class")
    try:
        return kind(**manifest.architecture_args)
    except TypeError as error:
        raise ManifestError(f"architecture {name} cannot be built: {error}") from error


def _cause(error: Exception) -> str:
    """An exception of torch's -> its first telling line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
