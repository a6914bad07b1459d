"""How a CSV file is written: its delimiter, quotes and encoding."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache


@cache
def is_byte_encoding(encoding: str) -> bool:
    """Return whether each byte below 128 stands for itself, and each other byte for a character.

    UTF-8 counts as such an encoding, because only bytes below 128 have a meaning in CSV and JSON.
    A range of a file in such an encoding can be read without what is before it.
    """
    if encoding == "utf-8":
        return True
    text = bytes(range(256)).decode(encoding, "replace")
    return text[:128] == bytes(range(128)).decode("ascii") and len(text) == 256


@dataclass(frozen=True, kw_only=True)
class Dialect:
    """How CSV files are written.

    Attributes:
        delimiter: The character between fields, or None for a comma, or for the character that a
            `sep=` line at the start of the file names.
        quote: The character around quoted values, or None if no value is quoted.
        escape: The character that makes the next character a part of the value, or None.
        encoding: The name of the encoding.
        multiline: Whether quoted values may contain line breaks.
    """

    delimiter: str | None = None
    quote: str | None = '"'
    escape: str | None = None
    encoding: str = "utf-8"
    multiline: bool = False

    @property
    def field_end(self) -> str:
        """The character between fields."""
        return self.delimiter or ","

    @property
    def is_utf8(self) -> bool:
        """Whether the text that is read is UTF-8: stored so, or converted while reading."""
        return self.encoding == "utf-8" or not is_byte_encoding(self.encoding)

    @property
    def one_range(self) -> bool:
        """Whether a file can only be read from its start."""
        return self.multiline or not is_byte_encoding(self.encoding)


PLAIN = Dialect()
