"""Import what a package names, only if the user trusts its module.

A package names the class of its architecture, and functions that prepare rows. The user who starts
a run decides which modules it may import, by their top-level names. A package never decides this
itself, and never contains the code.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from common.command_names import as_typed
from common.errors import ManifestError, UnsafeModel, UsageError
from model_handlers.manifest import Manifest
from model_handlers.model_errors import as_model_error
from model_handlers.steps.step import Context

_WEIGHTS = ("state_dict", "safetensors")
_IMPORTING = threading.RLock()


@dataclass(frozen=True)
class TrustedCode:
    """The modules that may be imported for a package; none by default.

    Attributes:
        modules: The top-level names of the modules.
        package: The folder of the package if it is on this machine, or None. No module may come
            from this folder.

    Raises:
        UsageError: A name is not the name of a top-level module.
    """

    modules: tuple[str, ...] = ()
    package: str | None = None

    def __post_init__(self) -> None:
        check_module_names(self.modules)

    @classmethod
    def of_package(cls, modules: Sequence[str], path: str) -> TrustedCode:
        """Create a TrustedCode for a package.

        Args:
            modules: The top-level names of the trusted modules.
            path: The path of the package, as read_package takes it.

        Raises:
            UsageError: A name is not the name of a top-level module.
        """
        if "://" in path:
            return cls(tuple(modules))
        folder = path if os.path.isdir(path) else os.path.dirname(path)
        return cls(tuple(modules), os.path.abspath(folder))


def check_module_names(modules: Sequence[str]) -> None:
    """Raise UsageError unless all names of trusted modules are top-level module names."""
    for name in modules:
        if not name.isidentifier():
            top = name.partition(".")[0]
            advice = f": write {top}, which covers it" if top.isidentifier() else ""
            raise UsageError(
                f"--trusted_modules: expected top-level module names, got {name!r}{advice}"
            )


def check_trusted(manifest: Manifest, modules: Sequence[str]) -> None:
    """Check, without importing anything, that all code that a package names is in trusted modules.

    Args:
        manifest: The manifest of the model.
        modules: The top-level modules that the user trusts.

    Raises:
        UnsafeModel: Loading the model would import a module that is not trusted.
        UsageError: A name is not the name of a top-level module.
        ManifestError: The architecture is not of the form `module:Class`.
    """
    check_module_names(modules)
    named = []
    if manifest.format in _WEIGHTS and manifest.architecture:
        named.append(("architecture", architecture_name(manifest)))
    named += [("function", name) for name in manifest.functions]
    for what, name in named:
        top = name.partition(":")[0].partition(".")[0]
        if top not in modules:
            raise UnsafeModel(
                f"model.json names code: its {what} {name} imports the module {top}. If you trust "
                f"that module, add --trusted_modules {','.join([*modules, top])}"
            )


def architecture_name(manifest: Manifest) -> str:
    """Return the name of the class of a model's architecture, `module:Class`.

    Raises:
        ManifestError: The manifest has no such name.
    """
    name = manifest.architecture or ""
    module, _, member = name.partition(":")
    if not all(part.isidentifier() for part in (*module.split("."), member)):
        packaging = as_typed("model_handlers.package")
        raise ManifestError(
            f"format {manifest.format!r} contains only weights: expected architecture "
            f"'module:Class' in model.json (--architecture of {packaging}), "
            f"got {manifest.architecture!r}"
        )
    return name


def import_name(name: str, what: str, code: TrustedCode) -> Any:
    """Return the class or function that `module:name` names.

    Args:
        name: The name, whose parts are identifiers.
        what: What it is, for messages, such as `architecture`.
        code: The modules that may be imported.

    Raises:
        UnsafeModel: The module is not trusted or comes from the package; it was not imported.
        ModelError: The module cannot be imported, or does not have the name.
    """
    module, _, member = name.partition(":")
    parts = module.split(".")
    if parts[0] not in code.modules:
        raise UnsafeModel(f"{what} {name} is in the module {parts[0]}, which is not trusted")
    with as_model_error(f"{what} {name} cannot be imported here"):
        return getattr(_import(parts, code), member)


def steps_context(files: Mapping[str, bytes], code: TrustedCode) -> Context:
    """Return what the steps of a package need.

    Args:
        files: The content of the files of the package.
        code: The modules that may be imported.
    """
    return Context(files, lambda name: import_name(name, "function", code))


def _import(parts: Sequence[str], code: TrustedCode) -> Any:
    """Import a trusted module; each of its parent packages is checked before it is imported."""
    with _IMPORTING, _working_directory_last():
        is_installed = any(not _is_here(place, parts[0]) for place in _places(parts[0]))
        for size in range(1, len(parts) + 1):
            name = ".".join(parts[:size])
            spec = importlib.util.find_spec(name)
            if spec is None:
                raise ModuleNotFoundError(f"No module named {name!r}")
            # Importing a namespace package, which has no file, runs no code.
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
            f"module {name} is inside the folder of the model package, {package}, and code there "
            "is never imported: install the module, or move the package to a folder without code"
        )


@contextmanager
def _working_directory_last() -> Iterator[None]:
    """Search the working directory last for modules while the block runs."""
    before = list(sys.path)
    here = [entry for entry in before if _is_working_directory(entry)]
    sys.path[:] = [entry for entry in before if entry not in here] + here
    during = list(sys.path)
    try:
        yield
    finally:
        # Entries that a module adds while it is imported stay.
        sys.path[:] = before + [entry for entry in sys.path if entry not in during]


def _is_working_directory(entry: str) -> bool:
    return os.path.realpath(entry or ".") == os.path.realpath(".")


def _places(top: str) -> Iterator[str]:
    """Yield the places where finders find a top-level module, even if it is already imported."""
    for finder in sys.meta_path:
        spec = finder.find_spec(top, None)
        if spec is not None:
            yield from spec.submodule_search_locations or [spec.origin or ""]


def _is_here(place: str, top: str) -> bool:
    """Return whether a place is the module `top` of the working directory, or inside of it."""
    here = os.path.realpath(".")
    folders = [os.path.dirname(resolve(place)) for resolve in (os.path.abspath, os.path.realpath)]
    # A module that is built into Python has a word such as "built-in" instead of a path.
    return os.path.isabs(place) and (here in folders or _is_inside(place, os.path.join(here, top)))


def _is_inside(place: str, folder: str) -> bool:
    """Return whether a path is a folder or in it, with or without following links."""
    return any(
        os.path.commonpath([resolve(place), resolve(folder)]) == resolve(folder)
        for resolve in (os.path.abspath, os.path.realpath)
    )
