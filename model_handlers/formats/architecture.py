"""The class that a package's weights belong to: imported only if the user named its module.

A package names code by `architecture`. Whoever starts a run decides which modules may be
imported for it, by top-level name; a package alone never does, nor does it bring them.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from common.command_names import as_typed
from common.errors import ManifestError, UnsafeModel, UsageError
from model_handlers.model_errors import as_model_error

if TYPE_CHECKING:
    import torch

    from model_handlers.manifest import Manifest

_WEIGHTS = ("state_dict", "safetensors")
_IMPORTING = threading.RLock()


@dataclass(frozen=True)
class TrustedCode:
    """What a package may have imported; by default nothing.

    modules: top-level names. package: the folder that has the package, if it is on this
    machine; no module may come from there. Raises UsageError for a name that is no
    top-level module's.
    """

    modules: tuple[str, ...] = ()
    package: str | None = None

    def __post_init__(self) -> None:
        check_module_names(self.modules)

    @classmethod
    def of_package(cls, modules: Sequence[str], path: str) -> TrustedCode:
        """Modules and a package's path, as read_package takes it -> TrustedCode."""
        if "://" in path:
            return cls(tuple(modules))
        folder = path if os.path.isdir(path) else os.path.dirname(path)
        return cls(tuple(modules), os.path.abspath(folder))


def check_module_names(modules: Sequence[str]) -> None:
    """Names of trusted modules -> nothing. Raises UsageError for one that is not top-level."""
    for name in modules:
        if not name.isidentifier():
            top = name.partition(".")[0]
            advice = f": write {top}, which covers it" if top.isidentifier() else ""
            raise UsageError(
                f"--trusted_modules: expected top-level module names, got {name!r}{advice}"
            )


def check_trusted(manifest: Manifest, modules: Sequence[str]) -> None:
    """A manifest, the top-level modules that the user trusts -> nothing; nothing is imported.

    Raises UnsafeModel if loading the model would import another module, UsageError.
    """
    check_module_names(modules)
    if manifest.format not in _WEIGHTS or not manifest.architecture:
        return
    top = _parse(manifest)[0][0]
    if top not in modules:
        raise UnsafeModel(
            f"model.json names code: its architecture {manifest.architecture} imports the module "
            f"{top}. If you trust that module, add --trusted_modules {','.join([*modules, top])}"
        )


def build_architecture(manifest: Manifest, code: TrustedCode) -> torch.nn.Module:
    """A manifest whose `architecture` is `module:Class` -> an instance of that class.

    Raises UnsafeModel before anything is imported that is not trusted or comes from the
    package; ManifestError if it is not a class of a model.
    """
    import torch

    name = manifest.architecture
    parts, class_name = _parse(manifest)
    check_trusted(manifest, code.modules)
    with as_model_error(f"architecture {name} cannot be imported here"):
        kind = getattr(_import(parts, code), class_name)
    if not (isinstance(kind, type) and issubclass(kind, torch.nn.Module)):
        raise ManifestError(f"architecture {name} is not a torch.nn.Module class")
    with as_model_error(f"architecture {name} cannot be built with architecture_args"):
        return kind(**manifest.architecture_args)


def _parse(manifest: Manifest) -> tuple[list[str], str]:
    """A manifest -> the parts of the module's name, and the class. Raises ManifestError."""
    module, _, name = (manifest.architecture or "").partition(":")
    parts = module.split(".")
    if not all(part.isidentifier() for part in (*parts, name)):
        packaging = as_typed("model_handlers.package")
        raise ManifestError(
            f"format {manifest.format!r} holds weights only: expected architecture "
            f"'module:Class' in model.json (--architecture of {packaging}), "
            f"got {manifest.architecture!r}"
        )
    return parts, name


def _import(parts: Sequence[str], code: TrustedCode) -> Any:
    """The parts of a trusted module's name -> the module; each is looked at before it runs."""
    with _IMPORTING, _working_directory_last():
        is_installed = any(not _is_here(place, parts[0]) for place in _places(parts[0]))
        for size in range(1, len(parts) + 1):
            name = ".".join(parts[:size])
            spec = importlib.util.find_spec(name)
            if spec is None:
                raise ModuleNotFoundError(f"No module named {name!r}")
            # A folder without a file of its own runs nothing.
            if spec.has_location and spec.origin:
                _check_place(name, spec.origin, code.package)
                if is_installed and _is_here(spec.origin, parts[0]):
                    raise UnsafeModel(
                        f"module {name} in the working directory hides the installed one: start "
                        "the run in another folder"
                    )
            module = importlib.import_module(name)
    return module


def _check_place(name: str, file: str, package: str | None) -> None:
    if package and _is_inside(file, package):
        raise UnsafeModel(
            f"module {name} lies in the model package's own folder {package}: code never comes "
            "from a package; install the module, or keep the package in a folder of its own"
        )


@contextmanager
def _working_directory_last() -> Iterator[None]:
    """Meanwhile a module of the working directory is found only if nothing else has its name."""
    before = list(sys.path)
    here = [entry for entry in before if _is_working_directory(entry)]
    sys.path[:] = [entry for entry in before if entry not in here] + here
    during = list(sys.path)
    try:
        yield
    finally:
        # What a module adds while it is imported stays.
        sys.path[:] = before + [entry for entry in sys.path if entry not in during]


def _is_working_directory(entry: str) -> bool:
    return os.path.realpath(entry or ".") == os.path.realpath(".")


def _places(top: str) -> Iterator[str]:
    """A top-level name -> where each finder has it, also if it is imported already."""
    for finder in sys.meta_path:
        spec = finder.find_spec(top, None)
        if spec is not None:
            yield from spec.submodule_search_locations or [spec.origin or ""]


def _is_here(place: str, top: str) -> bool:
    """Whether a place is the working directory's `top`, or is inside of it."""
    here = os.path.realpath(".")
    folders = [os.path.dirname(resolve(place)) for resolve in (os.path.abspath, os.path.realpath)]
    # A module that is part of Python has a word for a place.
    return os.path.isabs(place) and (here in folders or _is_inside(place, os.path.join(here, top)))


def _is_inside(place: str, folder: str) -> bool:
    """Whether a path is a folder or in it, as it is written or with links resolved."""
    return any(
        os.path.commonpath([resolve(place), resolve(folder)]) == resolve(folder)
        for resolve in (os.path.abspath, os.path.realpath)
    )
