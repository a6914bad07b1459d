"""Check the content of a TorchScript file before torch reads it.

The code of the file runs in torch's own interpreter, and some of it (__setstate__) runs while the
file is read. It can call every operator of the process by name. Therefore the code, the classes
that the pickles name, the sizes of the tensors and the records are checked. torchscript_code.py
checks the code.
"""

from __future__ import annotations

import re
from typing import Any, NoReturn

from common.errors import UnsafeModel
from model_handlers.formats.inert_pickle import Instance, read_inert
from model_handlers.formats.model_archive import ModelArchive
from model_handlers.formats.torchscript_code import check_class, check_code, check_type

# Left out are model.json, with which the older format names other records as code, and the folders
# of torch.package.
_RECORDS = re.compile(
    r"version|byteorder|\.format_version|\.storage_alignment|\.data/(version|serialization_id)"
    r"|(data|constants|traced_inputs)(\.pkl|/\d+)|code/.+\.py(\.debug_pkl)?|extra/.*"
)
_LISTS = {"build_intlist": int, "build_doublelist": float, "build_boollist": bool}


def check_torchscript(archive: ModelArchive) -> None:
    """Check a TorchScript file.

    Args:
        archive: The file.

    Raises:
        UnsafeModel: Loading or running the file could do more than compute on tensors.
        ModelError: The file is damaged.
    """
    # torch ignores case when it looks up records.
    code = {name: archive.read(name) for name in archive.names if name.lower().endswith(".py")}
    check_code(code)
    for name in archive.names:
        if not _RECORDS.fullmatch(name):
            _refuse(f"the record {name!r}, which torch.jit.save does not write")
        # torch.jit.load leaves traced_inputs.pkl and extra/ unread.
        if name in ("data.pkl", "constants.pkl") or name.endswith(".debug_pkl"):
            _check_pickle(archive, name)


def _check_pickle(archive: ModelArchive, name: str) -> None:
    """Raise UnsafeModel if a pickle names classes that TorchScript does not have."""
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
        _refuse(f"{module}.{kind} in {name!r}, which is not a class of TorchScript")

    read_inert(archive.read(name), lambda key: archive.size(f"{folder}/{key}"), find)


def _typed(value: Any, text: Any, name: str) -> Any:
    """Return a list or dict, after checking it and the text of its type."""
    if not isinstance(value, list | dict) or not isinstance(text, str):
        _refuse(f"a type for a value other than a list or dict in {name!r}")
    check_type(text, name)
    return value


def _list_of(values: Any, kind: type) -> list[Any]:
    if not isinstance(values, list) or any(type(value) is not kind for value in values):
        _refuse(f"a list with values other than {kind.__name__}")
    return values


def _refuse(what: str) -> NoReturn:
    raise UnsafeModel(
        f"the TorchScript file contains {what}: save the model again with torch.jit.save of the "
        "installed PyTorch"
    )
