"""Load tensors and plain containers that torch.save wrote, and refuse pickles of objects."""

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
    "unpickling it could run arbitrary code; save the model with torch.export.save (.pt2), "
    "torch.jit.save (.pt), or its state_dict with safetensors or torch.save"
)


def _rebuild_from_type(build: Any, _: Any, args: Any, *state: Any) -> Any:
    """Rebuild a tensor with attributes; torch.export uses attributes to mark sizes."""
    return build(*args)


# Names in pickles of Python's tensors, in addition to the names in TorchScript's pickles.
_KNOWN = {
    ("torch._tensor", "_rebuild_from_type_v2"): _rebuild_from_type,
    ("torch", "Tensor"): "Tensor",
    ("torch.nn.parameter", "Parameter"): "Parameter",
    ("builtins", "set"): set,
}
_DTYPES = frozenset(name for name in dir(torch) if isinstance(getattr(torch, name), torch.dtype))


def load_plain(data: bytes, what: str = "the model file") -> Any:
    """Load tensors and plain containers from bytes that torch.save wrote.

    Args:
        data: The bytes.
        what: The name of the data in error messages.

    Returns:
        The tensors and containers, on the CPU.

    Raises:
        UnsafeModel: The bytes contain objects other than tensors and plain containers.
        ModelError: The bytes are damaged.
    """

    def refuse(reason: str) -> NoReturn:
        raise UnsafeModel(
            f"{what} is a pickle that contains more than tensors ({reason}): {PICKLE_ADVICE}"
        )

    def find(module: str, name: str) -> Any:
        if module == "torch" and name in _DTYPES:
            return name
        if (module, name) in _KNOWN:
            return _KNOWN[module, name]
        refuse(f"it names {module}.{name}"[:80])

    if not data.startswith(b"PK"):
        refuse("it is not a zip archive")
    archive = ModelArchive(data)
    with as_model_error(f"{what} is damaged and must be copied again"):
        read_inert(archive.read("data.pkl"), lambda key: archive.size(f"data/{key}"), find)
    try:
        return torch.load(io.BytesIO(data), weights_only=True, map_location="cpu")
    except pickle.UnpicklingError as error:
        refuse(one_line(error, 80))
