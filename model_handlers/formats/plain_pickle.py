"""Bytes that torch.save wrote -> tensors and plain containers; a pickle of objects is refused."""

from __future__ import annotations

import io
import pickle
from typing import Any, NoReturn

import torch

from common.errors import UnsafeModel, one_line
from model_handlers.formats.inert_pickle import read_inert
from model_handlers.formats.model_archive import ModelArchive
from model_handlers.model_errors import as_model_error

PICKLE_ADVICE = (
    "unpickling it could run any code. Save the model with torch.export.save (.pt2), "
    "torch.jit.save (.pt), or its state_dict with safetensors or torch.save"
)


def _rebuild_from_type(build: Any, _: Any, args: Any, *state: Any) -> Any:
    """A tensor with attributes, which torch.export marks sizes with."""
    return build(*args)


# Of Python's tensors, beside what TorchScript has.
_KNOWN = {
    ("torch._tensor", "_rebuild_from_type_v2"): _rebuild_from_type,
    ("torch", "Tensor"): "Tensor",
    ("torch.nn.parameter", "Parameter"): "Parameter",
    ("builtins", "set"): set,
}
_DTYPES = frozenset(name for name in dir(torch) if isinstance(getattr(torch, name), torch.dtype))


def load_plain(data: bytes, what: str = "the model file") -> Any:
    """torch.save bytes -> what they hold. Raises UnsafeModel if that is more than tensors."""

    def refuse(reason: str) -> NoReturn:
        raise UnsafeModel(f"{what} is a pickle of more than tensors ({reason}): {PICKLE_ADVICE}")

    def find(module: str, name: str) -> Any:
        if module == "torch" and name in _DTYPES:
            return name
        if (module, name) in _KNOWN:
            return _KNOWN[module, name]
        refuse(f"it names {module}.{name}"[:80])

    if not data.startswith(b"PK"):
        refuse("it is no zip archive")
    archive = ModelArchive(data)
    with as_model_error(f"{what} is damaged, copy it again"):
        read_inert(archive.read("data.pkl"), lambda key: archive.size(f"data/{key}"), find)
    try:
        return torch.load(io.BytesIO(data), weights_only=True, map_location="cpu")
    except pickle.UnpicklingError as error:
        refuse(one_line(error, 80))
