"""Wheels with the user's own code: check them, and make their modules importable for a run.

Nothing is installed. The files of the wheels are unpacked into a temporary folder, which comes
first in the path of modules of this process, and of the processes that it starts, until the run
ends. The modules count as installed: a package may import them if the user trusts them.
"""

from __future__ import annotations

import importlib
import os
import re
import shutil
import sys
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryDirectory

from packaging.tags import Tag, sys_tags
from packaging.utils import InvalidWheelFilename, parse_wheel_filename

from common.errors import UsageError, one_line
from model_handlers.trusted_code import is_here, places_of

# The top-level modules of Millrace.
OWN = frozenset(
    (
        *("cloud", "common", "examples", "millrace", "model_handlers", "pipelines", "resources"),
        *("scale_tests", "serving", "transforms"),
    )
)
_FLAG = "--extra_packages"
_SPREAD = re.compile(r"[^/]+\.data/(purelib|platlib)/")
_NO_MODULE = re.compile(r"[^/]+\.(dist-info|data)/")
_AT_START = re.compile(r"(site|user)customize(\.|/|$)")
# Libraries load the modules that it names, such as torch the "backends" of other packages.
_PLUGINS = "entry_points.txt"


@dataclass(frozen=True)
class Wheel:
    """A wheel that was checked.

    Attributes:
        path: The path of its file on this machine.
        name: The name of its distribution, normalized.
        tags: The Python versions and platforms that it is for.
        modules: Its top-level modules, and whether each has code of its own: a folder without
            `__init__.py` shares its name with other packages.
    """

    path: str
    name: str
    tags: frozenset[Tag]
    modules: dict[str, bool]

    @property
    def fits(self) -> bool:
        """Whether the wheel is for this Python and this machine."""
        return not self.tags.isdisjoint(sys_tags())


def read_wheel(path: str) -> Wheel:
    """Return a wheel after checking its name and the names of its files.

    Args:
        path: The path of the wheel on this machine.

    Raises:
        UsageError: The file is not a wheel that can be used.
    """
    name = os.path.basename(path)
    if not name.endswith(".whl"):
        raise UsageError(
            f"{_FLAG} {path}: expected a wheel (.whl): build one with `python -m build --wheel` in "
            "the folder of the package"
        )
    try:
        project, _, _, tags = parse_wheel_filename(name)
    except InvalidWheelFilename as error:
        raise UsageError(
            f"{_FLAG} {path}: expected the name that the build gave the wheel, such as "
            "myteam-1.0-py3-none-any.whl: do not rename wheels"
        ) from error
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except FileNotFoundError as error:
        raise UsageError(f"{_FLAG} {path} does not exist") from error
    except (OSError, zipfile.BadZipFile) as error:
        raise UsageError(f"{_FLAG} {path} is not a wheel: {one_line(error)}") from error
    if not any(re.fullmatch(r"[^/]+\.dist-info/WHEEL", entry) for entry in names):
        raise UsageError(f"{_FLAG} {path} is not a wheel: it has no file WHEEL in its .dist-info")
    _check_files(path, names)
    if project == "millrace":
        raise UsageError(
            f"{_FLAG} {path} is Millrace itself: pass it to Dataflow's workers with Beam's flag "
            "--extra_package"
        )
    return Wheel(path, project, tags, _modules(names))


def read_wheels(paths: Iterable[str]) -> list[Wheel]:
    """Return wheels after checking each, and that their modules have names of their own.

    A wheel may replace an installed package that has its own name, for example an older version.

    Args:
        paths: The paths of the wheels on this machine.

    Raises:
        UsageError: A wheel cannot be used, or one of its modules has the name of another module.
    """
    wheels = [read_wheel(path) for path in paths]
    _check_names(wheels)
    return wheels


def _check_files(path: str, names: Iterable[str]) -> None:
    """Raise UsageError for a file that has no place in a wheel, or that Python would run.

    Only modules that the user names with `--trusted_modules` may run, but Python runs some files
    whenever it starts.
    """
    for name in names:
        inside = _SPREAD.sub("", name, count=1)
        if name.startswith("/") or "\\" in name or ".." in name.split("/"):
            raise UsageError(
                f"{_FLAG} {path} has a file outside its folder, {name[:80]!r}: build the wheel "
                "again"
            )
        if ("/" not in inside and inside.endswith(".pth")) or _AT_START.match(inside):
            raise UsageError(
                f"{_FLAG} {path}: Python would run its {inside} at each start: leave it out, and "
                "name the modules to trust in --trusted_modules"
            )


@contextmanager
def importable(wheels: Sequence[Wheel]) -> Iterator[None]:
    """Make the modules of wheels importable in the block, here and in child processes.

    Args:
        wheels: The wheels; those that do not fit this machine must be left out.

    Raises:
        UsageError: A wheel cannot be unpacked.
    """
    with TemporaryDirectory(prefix="millrace-packages-", ignore_cleanup_errors=True) as folder:
        for wheel in wheels:
            _unpack(wheel, Path(folder))
        before = os.environ.get("PYTHONPATH")
        os.environ["PYTHONPATH"] = os.pathsep.join([folder, before] if before else [folder])
        sys.path.insert(0, folder)
        importlib.invalidate_caches()
        try:
            yield
        finally:
            with suppress(ValueError):
                sys.path.remove(folder)
            if before is None:
                del os.environ["PYTHONPATH"]
            else:
                os.environ["PYTHONPATH"] = before


def refuse_unfit(wheels: Sequence[Wheel]) -> None:
    """Raise UsageError if a wheel is for another Python or another kind of machine."""
    for wheel in wheels:
        if not wheel.fits:
            tags = ", ".join(sorted(map(str, wheel.tags)))
            raise UsageError(
                f"{_FLAG} {wheel.path}: the wheel is for {tags}, and this is Python "
                f"{sys.version_info.major}.{sys.version_info.minor} on {next(sys_tags()).platform}:"
                " build a wheel for it"
            )


def _check_names(wheels: Sequence[Wheel]) -> None:
    seen: dict[str, str] = {}
    for wheel in wheels:
        for module, has_code in wheel.modules.items():
            other = None
            if module in OWN:
                other = "Millrace"
            elif module in sys.stdlib_module_names:
                other = "Python"
            elif has_code and module in seen:
                other = os.path.basename(seen[module])
            elif has_code and _is_of_another(module, wheel.name):
                other = "another package that is installed here"
            if other:
                raise UsageError(
                    f"{_FLAG} {wheel.path}: its module {module} has the name of a module of "
                    f"{other}: rename it"
                )
            if has_code:
                seen[module] = wheel.path


def _modules(names: Sequence[str]) -> dict[str, bool]:
    """Return the top-level modules of the files of a wheel, and whether each has code."""
    found: dict[str, bool] = {}
    for name in names:
        path = _SPREAD.sub("", name, count=1)
        if _NO_MODULE.match(path):
            continue
        first, inner, rest = path.partition("/")
        module = first if inner else first.partition(".")[0]
        if not module.isidentifier() or not (inner or first.endswith((".py", ".so", ".pyd"))):
            continue
        has_code = not inner or rest.startswith("__init__.")
        found[module] = found.get(module, False) or has_code
    return found


def _is_of_another(module: str, distribution: str) -> bool:
    """Return whether a module is installed here, but not by the distribution of that name."""
    if all(is_here(place, module) for place in places_of(module)):
        return False
    try:
        metadata.distribution(distribution)
    except metadata.PackageNotFoundError:
        return True
    return False


def _unpack(wheel: Wheel, folder: Path) -> None:
    """Write the modules and the metadata of a wheel into a folder, as an installer does."""
    try:
        with zipfile.ZipFile(wheel.path) as archive:
            archive.extractall(
                folder, [name for name in archive.namelist() if os.path.basename(name) != _PLUGINS]
            )
    except (OSError, zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:
        raise UsageError(f"{_FLAG} {wheel.path} cannot be unpacked: {one_line(error)}") from error
    for spread in (*folder.glob("*.data/purelib"), *folder.glob("*.data/platlib")):
        shutil.copytree(spread, folder, dirs_exist_ok=True)
    for data in folder.glob("*.data"):
        shutil.rmtree(data)
