"""Import what a package names, only if the user trusts its module.

A package names the class of its architecture, and functions that prepare rows. The user who starts
a run decides which modules it may import, by their top-level names. A package never decides this
itself, and never contains the code.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import logging
import os
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from importlib.machinery import ModuleSpec
from typing import Any

from common.command_names import as_typed
from common.errors import ManifestError, ModelError, UnsafeModel, UsageError, one_line
from model_handlers.manifests.manifest import Manifest
from model_handlers.model_errors import as_model_error
from model_handlers.steps.chain import Chain
from model_handlers.steps.own_function import Call
from model_handlers.steps.step import Context

_WEIGHTS = ("state_dict", "safetensors")
_IMPORTING = threading.RLock()
# The changed sources about which this process has warned.
_WARNED: set[str] = set()
logger = logging.getLogger("millrace")


@dataclass(frozen=True)
class TrustedCode:
    """The modules that may be imported for a package; none by default.

    Attributes:
        modules: The top-level names of the modules.
        package: The folder of the package if it is on this machine, or None. No module may come
            from this folder.
        warned: The changed sources about which the process that created this has warned. The
            workers that get it do not warn about them again.

    Raises:
        UsageError: A name is not the name of a top-level module.
    """

    modules: tuple[str, ...] = ()
    package: str | None = None
    warned: frozenset[str] = field(default_factory=lambda: frozenset(_WARNED), compare=False)

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
    cannot = f"{what} {name} cannot be imported here"
    with as_model_error(cannot):
        try:
            return getattr(_import(parts, code), member)
        except SystemExit as error:
            raise ModelError(
                f"{cannot}: the module ends the process when it is imported"
            ) from error
        except ModuleNotFoundError as error:
            raise ModelError(
                f"{cannot}: {one_line(error)}: pass its wheel in --extra_packages, or install it"
            ) from error


def steps_context(files: Mapping[str, bytes], code: TrustedCode) -> Context:
    """Return what the steps of a package need.

    Args:
        files: The content of the files of the package.
        code: The modules that may be imported.
    """

    def load(name: str, source_sha256: str | None) -> Callable[..., Any]:
        function: Callable[..., Any] = import_name(name, "function", code)
        if not callable(function):
            raise ModelError(f"function {name}: expected a function, got {type(function).__name__}")
        if source_sha256 is not None:
            _warn(name, source_sha256, code, logger.warning)
        return function

    return Context(files, load)


def source_digest(name: str, code: TrustedCode) -> str | None:
    """Return the hex sha256 of the source file of the module in `module:function`.

    It is that of one file: what the module imports is not part of it.

    Args:
        name: The name of a function in a trusted module.
        code: The modules that may be imported. The parent packages of the module are imported.

    Returns:
        The digest, or None if there is no source file that can be read, for example because the
        module is compiled.

    Raises:
        UnsafeModel: The module is not trusted or comes from the package.
        ModelError: The module is not installed.
    """
    parts = name.partition(":")[0].split(".")
    if parts[0] not in code.modules:
        raise UnsafeModel(f"function {name} is in the module {parts[0]}, which is not trusted")
    with as_model_error(f"the source of function {name} cannot be found"):
        spec = _find(parts, code)
    if not spec.origin or not spec.origin.endswith(".py"):
        return None
    try:
        with open(spec.origin, "rb") as file:
            return hashlib.sha256(file.read()).hexdigest()
    except OSError:
        return None


def record_sources(manifest: Manifest, code: TrustedCode) -> Manifest:
    """Return a manifest whose steps `call` have the digests of the sources of their functions.

    Call this when a model is packaged. A function without a source file gets no digest.

    Args:
        manifest: The manifest of the model.
        code: The modules that may be imported.

    Raises:
        UnsafeModel: A module is not trusted or comes from the package.
        ModelError: A module is not installed.
    """

    def recorded(chain: Chain) -> Chain:
        steps = (
            replace(step, source_sha256=source_digest(step.function, code))
            if isinstance(step, Call)
            else step
            for step in chain.steps
        )
        return replace(chain, steps=tuple(steps))

    return replace(
        manifest,
        inputs=tuple(
            replace(spec, chains=tuple(map(recorded, spec.chains))) for spec in manifest.inputs
        ),
        fields=tuple(replace(spec, chain=recorded(spec.chain)) for spec in manifest.fields),
    )


def warn_of_changes(manifest: Manifest, code: TrustedCode, say: Callable[[str], None]) -> None:
    """Warn of functions whose source is not the one that the model was packaged with.

    The process that starts a run calls this, so that the user sees it. Functions whose modules
    are not installed here are left to the workers, which warn in their log.

    Args:
        manifest: The manifest of the model.
        code: The modules that may be imported.
        say: A function that prints a line.
    """
    for name, digest in manifest.sources.items():
        with suppress(ModelError):
            _warn(name, digest, code, say)


def _warn(name: str, expected: str, code: TrustedCode, say: Callable[[str], None]) -> None:
    """Say in one line, once in a run, that the source of a function changed or cannot be read."""
    found = source_digest(name, code)
    with _IMPORTING:
        key = f"{name} {found}"
        if found == expected or key in code.warned or key in _WARNED:
            return
        _WARNED.add(key)
    if found is None:
        why = "its module has no source file here that can be read, so it may have changed since"
    else:
        why = f"the source of its module has sha256 {found[:12]}..., not {expected[:12]}... as when"
    say(
        f"function {name}: {why} the model was packaged: check that it prepares rows as before, "
        "and package the model again"
    )


def _import(parts: Sequence[str], code: TrustedCode) -> Any:
    """Import a trusted module; each of its parent packages is checked before it is imported."""
    with _IMPORTING, _working_directory_last():
        _find(parts, code)
        return importlib.import_module(".".join(parts))


def _find(parts: Sequence[str], code: TrustedCode) -> ModuleSpec:
    """Return the place of a trusted module, and import its parent packages.

    Each is checked before it is imported.
    """
    with _IMPORTING, _working_directory_last():
        is_installed = any(not is_here(place, parts[0]) for place in places_of(parts[0]))
        for size in range(1, len(parts)):
            name = ".".join(parts[:size])
            _spec(name, parts[0], code, is_installed)
            importlib.import_module(name)
        return _spec(".".join(parts), parts[0], code, is_installed)


def _spec(name: str, top: str, code: TrustedCode, is_installed: bool) -> ModuleSpec:
    """Return the place of a module whose parents are imported. Raise UnsafeModel if it is bad."""
    spec = importlib.util.find_spec(name)
    if spec is None:
        raise ModuleNotFoundError(f"No module named {name!r}")
    # Importing a namespace package, which has no file, runs no code.
    if spec.has_location and spec.origin:
        _check_place(name, spec.origin, code.package)
        if is_installed and is_here(spec.origin, top):
            raise UnsafeModel(
                f"module {name} in the working directory hides the installed one: start the run in "
                "another folder"
            )
    return spec


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


def places_of(top: str) -> Iterator[str]:
    """Yield the places where finders find a top-level module, even if it is already imported.

    Args:
        top: The name of the module.
    """
    for finder in sys.meta_path:
        spec = finder.find_spec(top, None)
        if spec is not None:
            yield from spec.submodule_search_locations or [spec.origin or ""]


def is_here(place: str, top: str) -> bool:
    """Return whether a place is a module of the working directory, or inside of it.

    Args:
        place: The path of a file or a folder.
        top: The top-level name of the module.
    """
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
