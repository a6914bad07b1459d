"""Open a model file that is a zip archive, and make sure that all readers find the same records.

Python's reader and torch's reader find records in different ways: torch ignores case, and Python
skips bytes before the archive. The records that are checked must be the records that are loaded.
Therefore an archive that the two could read differently is refused.
"""

from __future__ import annotations

import io
import struct
import zipfile
from typing import Any

import torch

from common.errors import ModelError, UnsafeModel
from model_handlers.model_errors import as_model_error
from model_handlers.zip_checks import check_names, check_size

_END = struct.Struct("<4s4H2LH")
_END64 = struct.Struct("<4sQ2H2L4Q")
_LOCATOR = struct.Struct("<4sLQL")


class ModelArchive:
    """The records of a model file that is a zip archive.

    Args:
        data: The bytes of the file.

    Attributes:
        names: The names of the records, without the folder at the top of the archive.

    Raises:
        UnsafeModel: Readers could read the archive differently, or it expands too much.
        ModelError: The archive is damaged.
    """

    def __init__(self, data: bytes) -> None:
        with (
            as_model_error("the model file is truncated or damaged and must be copied again"),
            zipfile.ZipFile(io.BytesIO(data)) as archive,
        ):
            _check_end(data)
            check_names(archive, "the model file", "save the model again")
            check_size(archive, len(data), "the model file")
            if not any(entry.CRC for entry in archive.infolist()):
                # torch.serialization.set_crc32_options(False) leaves the checksums out.
                for entry in archive.infolist():
                    entry.CRC = None  # type: ignore[assignment]
            # torch ignores checksums, and some damaged files crash the process that reads them.
            if damaged := archive.testzip():
                raise ModelError(
                    f"the model file is damaged (wrong checksum of {damaged!r}); copy it again"
                )
            entries = {entry.filename.split("/", 1)[-1]: entry for entry in archive.infolist()}
        self.names = list(entries)
        self._data = data
        self._entries = entries
        self._reader: Any = None

    def read(self, name: str) -> bytes:
        """Return the bytes of a record, as torch reads them."""
        return bytes(self._open().get_record(name))

    def size(self, name: str) -> int:
        """Return the size of a record in bytes, or 0 if the archive does not have the record."""
        self._open()
        entry = self._entries.get(name)
        return entry.file_size if entry else 0

    def _open(self) -> Any:
        """Return torch's reader, once it is known to find the same records at the same places."""
        if self._reader is None:
            reader: Any = torch._C.PyTorchFileReader(io.BytesIO(self._data))
            lowered = {name.lower() for name in self.names}
            same = sorted(reader.get_all_records()) == sorted(self.names)
            if not same or len(lowered) != len(self.names):
                raise UnsafeModel(
                    "the model file contains records whose names torch and zip read differently: "
                    "save the model again"
                )
            for name, entry in self._entries.items():
                place = reader.get_record_header_offset(name), reader.get_record_size(name)
                if place != (entry.header_offset, entry.file_size):
                    raise UnsafeModel(
                        f"the model file contains {name!r} twice, at {place[0]:,} and at "
                        f"{entry.header_offset:,}: save the model again"
                    )
            self._reader = reader
        return self._reader


def _check_end(data: bytes) -> None:
    """Raise UnsafeModel unless the directory of a zip archive is at the very end of the file."""
    at = len(data) - _END.size
    signature, _, _, _, _, size, offset, _ = _END.unpack_from(data, max(at, 0))
    locator = at - _LOCATOR.size
    if locator >= _END64.size and data.startswith(b"PK\x06\x07", locator):
        at = locator - _END64.size
        place = _LOCATOR.unpack_from(data, locator)[2]
        signature64, *_, size, offset = _END64.unpack_from(data, at)
        if (signature64, place) != (b"PK\x06\x06", at):
            offset = -1
    if signature != b"PK\x05\x06" or offset + size != at:
        raise UnsafeModel(
            "the model file is a zip archive with a comment, or with extra bytes before, within or "
            "after its directory: save the model again"
        )
