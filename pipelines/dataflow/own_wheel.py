"""A wheel of Millrace, written from the code that runs here: a checkout or an installed wheel.

The setup.py of the project is missing where a wheel was installed, so nothing is built with it.
"""

from __future__ import annotations

import base64
import hashlib
import zipfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from common.errors import UsageError
from model_handlers.wheels import OWN

# The folder that holds the packages.
_ROOT = Path(__file__).resolve().parents[2]
# The files of a checkout that setup.py and pyproject.toml put into a wheel.
_DATA = ("py.typed", "config.properties", "embed.js", "style.css")
_WHEEL = "Wheel-Version: 1.0\nGenerator: millrace\nRoot-Is-Purelib: true\nTag: py3-none-any\n"


def own_distribution() -> metadata.Distribution:
    """Return the distribution of Millrace, whose metadata names what it needs.

    Raises:
        UsageError: Millrace runs from source that is not installed.
    """
    try:
        return metadata.distribution("millrace")
    except metadata.PackageNotFoundError as error:
        raise UsageError(
            "the packages that workers need are unknown, because Millrace is not installed here: "
            "install it (`pip install -e .`), or add --sdk_container_image IMAGE"
        ) from error


def wheel_name() -> str:
    """Return the file name of the wheel that `write_wheel` writes."""
    return f"millrace-{own_distribution().version}-py3-none-any.whl"


def write_wheel(folder: Path) -> Path:
    """Write a wheel of the code that runs here; the same code gives the same bytes.

    Args:
        folder: The folder that gets the wheel.

    Returns:
        The path of the wheel.

    Raises:
        UsageError: Millrace runs from source that is not installed.
    """
    distribution = own_distribution()
    info = f"millrace-{distribution.version}.dist-info"
    described = distribution.read_text("METADATA") or distribution.read_text("PKG-INFO") or ""
    files = {name: (_ROOT / name).read_bytes() for name in sorted(_names(distribution))}
    files |= {f"{info}/METADATA": described.encode(), f"{info}/WHEEL": _WHEEL.encode()}
    record = "".join(f"{name},{_digest(data)},{len(data)}\n" for name, data in files.items())
    files[f"{info}/RECORD"] = f"{record}{info}/RECORD,,\n".encode()
    path = folder / wheel_name()
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            # An entry without a date has the year 1980.
            archive.writestr(zipfile.ZipInfo(name), data, compress_type=zipfile.ZIP_DEFLATED)
    return path


def _names(distribution: metadata.Distribution) -> Iterator[str]:
    """Yield the path of each file of the packages, relative to the folder that holds them."""
    record = distribution.read_text("RECORD") or ""
    place = Path(str(distribution.locate_file(""))).resolve()
    if place == _ROOT and "\nmillrace/__init__.py," in f"\n{record}":
        # Other distributions may have files in folders with such names as `examples`.
        paths = map(str, distribution.files or ())
        yield from (path for path in paths if path.split("/")[0] in OWN and path[-4:] != ".pyc")
        return
    for package in OWN:
        for path in (_ROOT / package).rglob("*"):
            if path.suffix == ".py" or path.name in _DATA:
                yield path.relative_to(_ROOT).as_posix()


def _digest(data: bytes) -> str:
    """Return the hash of a file as the RECORD of a wheel has it."""
    digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=")
    return f"sha256={digest.decode()}"
