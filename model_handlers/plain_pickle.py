"""Bytes that torch.save wrote -> tensors and plain containers; a pickle of objects is refused."""

from __future__ import annotations

import io
import pickle
import re
from typing import Any

import torch

from model_handlers.errors import UnsafeModel, one_line

PICKLE_ADVICE = (
    "unpickling it could run any code. Save the model with torch.export.save (.pt2), "
    "torch.jit.save (.pt), or its state_dict with safetensors or torch.save"
)


def load_plain(data: bytes, what: str = "the model file") -> Any:
    """torch.save bytes -> what they hold. Raises UnsafeModel if that is more than tensors."""
    try:
        return torch.load(io.BytesIO(data), weights_only=True, map_location="cpu")
    except pickle.UnpicklingError as error:
        found = re.search(r"WeightsUnpickler error: (.*)", str(error))
        # What follows advises to allow the class, which is the opposite of what is wanted.
        reason = found.group(1).split(" was not")[0][:80] if found else one_line(error, 80)
        raise UnsafeModel(
            f"{what} is a pickle of more than tensors ({reason}): {PICKLE_ADVICE}"
        ) from error
