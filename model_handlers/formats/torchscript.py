"""What a TorchScript file may hold, looked at before torch reads it.

Its code runs in torch's own interpreter, partly while it is read (__setstate__), and calls any
operator of the process by its name. So its code, the classes that its pickles name, the sizes
of its tensors and its records are checked; torchscript_code.py does it for the code.
"""

from __future__ import annotations

import re
from typing import Any, NoReturn

from common.errors import UnsafeModel
from model_handlers.formats.inert_pickle import Instance, read_inert
from model_handlers.formats.model_archive import ModelArchive
from model_handlers.formats.torchscript_code import check_class, check_code, check_type

# model.json, of an older form, names other records as code; torch.package has its own folders.
_RECORDS = re.compile(
    r"version|byteorder|\.format_version|\.storage_alignment|\.data/(version|serialization_id)"
    r"|(data|constants|traced_inputs)(\.pkl|/\d+)|code/.+\.py(\.debug_pkl)?|extra/.*"
)
_LISTS = {"build_intlist": int, "build_doublelist": float, "build_boollist": bool}


def check_torchscript(archive: ModelArchive) -> None:
    """A TorchScript archive -> nothing. Raises UnsafeModel, ModelError."""
    # Torch finds records whatever their case.
    code = {name: archive.read(name) for name in archive.names if name.lower().endswith(".py")}
    check_code(code)
    for name in archive.names:
        if not _RECORDS.fullmatch(name):
            _refuse(f"the record {name!r}, which torch.jit.save does not write")
        # torch.jit.load leaves traced_inputs.pkl and extra/ unread.
        if name in ("data.pkl", "constants.pkl") or name.endswith(".debug_pkl"):
            _check_pickle(archive, name)


def _check_pickle(archive: ModelArchive, name: str) -> None:
    """A record that is a pickle -> nothing. Raises UnsafeModel."""
    folder = name.removesuffix(".pkl")

    def find(module: str, kind: str) -> Any:
        if module == "torch.jit._pickle":
            if kind == "restore_type_tag":
                return lambda value, text: _typed(value, text, name)
            if kind == "build_tensorlist":
                return list
            if kind in _LISTS:
                return lambda values: _list_of(values, _LISTS[kind])
        if module == "__torch__" or module.startswith("__torch__."):
            check_class(f"{module}.{kind}", name)
            return Instance
        _refuse(f"{module}.{kind} in {name!r}, which is no class of TorchScript")

    read_inert(archive.read(name), lambda key: archive.size(f"{folder}/{key}"), find)


def _typed(value: Any, text: Any, name: str) -> Any:
    """A list or dict and the text of its type -> the same."""
    if not isinstance(value, list | dict) or not isinstance(text, str):
        _refuse(f"a type of something other than a list or dict in {name!r}")
    check_type(text, name)
    return value


def _list_of(values: Any, kind: type) -> list[Any]:
    if not isinstance(values, list) or any(type(value) is not kind for value in values):
        _refuse(f"a list of other values than {kind.__name__}")
    return values


def _refuse(what: str) -> NoReturn:
    raise UnsafeModel(
        f"the TorchScript file holds {what}: save the model again with this version's "
        "torch.jit.save"
    )
