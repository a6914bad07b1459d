"""Addresses as they may be shown: without user information and without a query.

Both may hold credentials: a password, a signature or a key. MillraceError (common/errors.py) hides
them in every message. Code that prints an address in another way must call these functions.
"""

from __future__ import annotations

import logging
import os
import re
import sys
import traceback
from typing import Any

HIDDEN = "..."
NO_USER = (
    "expected an address without user and password, because they would end up in logs: use "
    "Application Default Credentials, an access token or network rules"
)
# Millrace builds the links to the console itself, from names.
_OURS = re.compile(r"https://console\.cloud\.google\.com/", re.IGNORECASE)
_SCHEME = r"[a-z][a-z0-9+.-]*://"
# User information ends at the last @ of the host. A password that contains a slash is recognized
# by the text after the colon, which is not a port.
_USER = re.compile(
    rf"({_SCHEME})(?:[^/\s'\"<>@]*:(?!\d+(?:[/?#\s'\"<>,;)]|$))[^\s'\"<>]*@|[^/\s'\"<>]*@)",
    re.IGNORECASE,
)
# In the path of a file, ? stands for any character. The punctuation after a query that is already
# hidden stays.
_QUERY = re.compile(
    r"(?P<url>https?://[^\s'\"<>?#]*)[?#](?!\.{3}[:;,]?(?:\s|$))[^\s'\"<>]*|\?[\w.%~-]+=[^\s'\"<>]*",
    re.IGNORECASE,
)
_FILE_QUERY = re.compile(rf"{_SCHEME}.*\?[\w.%~-]+=", re.IGNORECASE | re.DOTALL)


def without_secrets(text: str) -> str:
    """Return the text with the user information and query of each address in it hidden."""
    if "@" not in text and "?" not in text and "#" not in text:
        return text
    return _QUERY.sub(_hide_query, _USER.sub(rf"\1{HIDDEN}@", text))


def _hide_query(found: re.Match[str]) -> str:
    url = found["url"]
    if url is None:
        return f"?{HIDDEN}"
    return found.group() if _OURS.match(url) else f"{url}?{HIDDEN}"


def shown(address: str) -> str:
    """Return one address or path with its user information and query hidden.

    Unlike in `without_secrets`, a password may hold spaces and quotes.
    """
    scheme, mark, rest = address.partition("://")
    if mark and has_user(address):
        rest = f"{HIDDEN}@{rest.rpartition('@')[2]}"
    elif not mark and re.match(r"[^/\s:@]+:[^/\s@]+@", address):
        scheme = f"{HIDDEN}@{address.rpartition('@')[2]}"
    return without_secrets(f"{scheme}{mark}{rest}")


def host_of(url: str) -> str:
    """Return the host and port of a URL."""
    return re.split(r"[/?#]", url.partition("://")[2])[0].rpartition("@")[2]


def has_user(address: str) -> bool:
    """Return whether an address with a scheme has a user, a password or a token before its host."""
    if not re.match(_SCHEME, address, re.IGNORECASE):
        return False
    host, slash, path = address.partition("://")[2].partition("/")
    broken = re.search(r":(?!\d+$)", host.rpartition("]")[2]) is not None
    return "@" in host or (broken and "@" in slash + path)


def address_fault(address: str) -> str | None:
    """Return why an address is refused, or None if it may be used."""
    return NO_USER if has_user(address) else None


def path_fault(path: str) -> str | None:
    """Return why a file path is refused, or None if it may be used."""
    if fault := address_fault(path):
        return fault
    if re.match(r"https?://", path, re.IGNORECASE) or _FILE_QUERY.match(path):
        return (
            f"{shown(path)}: expected a local path or gs://BUCKET/PATH, not a web address or a "
            "signed URL: log in with Application Default Credentials, and grant that account "
            "access to the bucket"
        )
    return None


def _print_error(*error: Any) -> None:
    """Print the traceback of an uncaught error, as Python's own hook does, without secrets."""
    sys.stderr.write(without_secrets("".join(traceback.format_exception(*error))))


class SafeFormatter(logging.Formatter):
    """A formatter of log records that hides the secrets of addresses, also in tracebacks."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the text of a record."""
        return without_secrets(super().format(record))


def guard_output() -> None:
    """Make uncaught errors and the root logger's handlers hide the secrets of addresses.

    gRPC prints nothing from now on if it is not imported yet. Its own lines bypass Python's
    loggers, and it raises what went wrong. The variable GRPC_VERBOSITY shows them again.
    """
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    sys.excepthook = _print_error
    for handler in logging.getLogger().handlers:
        given = handler.formatter
        pattern, dates = (given._fmt, given.datefmt) if given else (logging.BASIC_FORMAT, None)
        handler.setFormatter(SafeFormatter(pattern, dates))


def split_gcs_path(address: str) -> tuple[str, str]:
    """Split the address gs://BUCKET/NAME into bucket and name."""
    bucket, _, name = address.removeprefix("gs://").partition("/")
    return bucket, name
