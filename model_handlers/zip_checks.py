"""Refuse zip archives that no writer of model files makes, before anything is unpacked."""

from __future__ import annotations

import stat
import zipfile

from common.errors import UnsafeModel

MAX_ARCHIVE_BYTES = 32 << 30
# The weights of a model hardly compress. The zeros of a zip bomb compress about 1,000 times.
MAX_EXPANSION = 100


def check_names(archive: zipfile.ZipFile, path: str, advice: str) -> None:
    """Raise UnsafeModel if a zip archive has entries that no model file needs.

    Such entries are absolute paths, paths with `..`, links, two entries with the same name, and
    compression that torch-model-archiver does not use. Python's readers of other compressions
    cannot limit how much they unpack.

    Args:
        archive: The open archive.
        path: The name of the archive in error messages.
        advice: What the user can do, for error messages.

    Raises:
        UnsafeModel: The archive has such an entry.
    """
    entries = archive.infolist()
    for entry in entries:
        parts = entry.filename.replace("\\", "/").split("/")
        if entry.filename.startswith(("/", "\\")) or ".." in parts or ":" in parts[0]:
            raise UnsafeModel(
                f"{path}: entry {entry.filename!r} points outside the archive; {advice}"
            )
        if stat.S_ISLNK(entry.external_attr >> 16):
            raise UnsafeModel(f"{path}: entry {entry.filename!r} is a link; {advice}")
        if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise UnsafeModel(
                f"{path}: entry {entry.filename!r} is compressed, but not with deflate; {advice}"
            )
    if len({entry.filename for entry in entries}) != len(entries):
        raise UnsafeModel(f"{path}: two entries have the same name; {advice}")


def check_size(archive: zipfile.ZipFile, packed: int, path: str) -> None:
    """Raise UnsafeModel if a zip archive would expand to more than a model file does.

    Args:
        archive: The open archive.
        packed: The size of the archive, in bytes.
        path: The name of the archive in error messages.

    Raises:
        UnsafeModel: The archive would expand too much.
    """
    size = sum(entry.file_size for entry in archive.infolist())
    if size > MAX_ARCHIVE_BYTES or size > MAX_EXPANSION * packed:
        raise UnsafeModel(
            f"{path}: {packed:,} bytes would expand to {size:,}; the limits are {MAX_EXPANSION} "
            f"times the size of the archive, and {MAX_ARCHIVE_BYTES:,} bytes"
        )
