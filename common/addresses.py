"""Addresses as they may be shown: without user information and without their query.

Both hold credentials: a password, a signature, a key. Errors (common/errors.py) leave
them out of every message; whatever prints an address in another way calls these functions.
"""

from __future__ import annotations

import logging
import re
import sys
import traceback
from typing import Any

HIDDEN = "..."
NO_USER = (
    "expected an address without user and password, which would end up in logs: use Application "
    "Default Credentials, an access token or network rules"
)
# The console's own links are made here, of names.
_OURS = re.compile(r"https://console\.cloud\.google\.com/", re.IGNORECASE)
_SCHEME = r"[a-z][a-z0-9+.-]*://"
# Up to the last @ of the host; a password with a slash shows where the port should be.
_USER = re.compile(
    rf"({_SCHEME})(?:[^/\s'\"<>@]*:(?!\d+(?:[/?#\s'\"<>,;)]|$))[^\s'\"<>]*@|[^/\s'\"<>]*@)",
    re.IGNORECASE,
)
# In a path of files, ? stands for any character. What is hidden already keeps the sign behind it.
_QUERY = re.compile(
    r"(?P<url>https?://[^\s'\"<>?#]*)[?#](?!\.{3}[:;,]?(?:\s|$))[^\s'\"<>]*|\?[\w.%~-]+=[^\s'\"<>]*",
    re.IGNORECASE,
)
_FILE_QUERY = re.compile(rf"{_SCHEME}.*\?[\w.%~-]+=", re.IGNORECASE | re.DOTALL)


def without_secrets(text: str) -> str:
    """Any text -> the same with each address in it as it may be shown."""
    if "@" not in text and "?" not in text and "#" not in text:
        return text
    return _QUERY.sub(_hide_query, _USER.sub(rf"\1{HIDDEN}@", text))


def _hide_query(found: re.Match[str]) -> str:
    url = found["url"]
    if url is None:
        return f"?{HIDDEN}"
    return found.group() if _OURS.match(url) else f"{url}?{HIDDEN}"


def shown(address: str) -> str:
    """One address or path -> as it may be shown; what is before an @ of its host is left out.

    Unlike in a text, a password may hold spaces and quotes.
    """
    scheme, mark, rest = address.partition("://")
    if mark and has_user(address):
        rest = f"{HIDDEN}@{rest.rpartition('@')[2]}"
    elif not mark and re.match(r"[^/\s:@]+:[^/\s@]+@", address):
        scheme = f"{HIDDEN}@{address.rpartition('@')[2]}"
    return without_secrets(f"{scheme}{mark}{rest}")


def host_of(url: str) -> str:
    """A URL -> its host and port."""
    return re.split(r"[/?#]", url.partition("://")[2])[0].rpartition("@")[2]


def has_user(address: str) -> bool:
    """Whether an address with a scheme has a user, a password or a token before its host."""
    if not re.match(_SCHEME, address, re.IGNORECASE):
        return False
    host, slash, path = address.partition("://")[2].partition("/")
    broken = re.search(r":(?!\d+$)", host.rpartition("]")[2]) is not None
    return "@" in host or (broken and "@" in slash + path)


def address_fault(address: str) -> str | None:
    """An address -> why it is refused, None if it may be used."""
    return NO_USER if has_user(address) else None


def path_fault(path: str) -> str | None:
    """A path of files -> why it is refused, None if it may be used."""
    if fault := address_fault(path):
        return fault
    if re.match(r"https?://", path, re.IGNORECASE) or _FILE_QUERY.match(path):
        return (
            f"{shown(path)}: expected a path of this machine or gs://BUCKET/PATH, not a web "
            "address or a signed URL: grant the account that runs this access to the bucket, by "
            "Application Default Credentials"
        )
    return None


def _print_error(*error: Any) -> None:
    """An error that nobody caught, as Python gives it -> its traceback, printed."""
    sys.stderr.write(without_secrets("".join(traceback.format_exception(*error))))


class SafeFormatter(logging.Formatter):
    """A formatter of log records, tracebacks included, without secrets of addresses."""

    def format(self, record: logging.LogRecord) -> str:
        """A record -> its text."""
        return without_secrets(super().format(record))


def guard_output() -> None:
    """Nothing -> the root logger's handlers and uncaught errors show no secrets of addresses."""
    sys.excepthook = _print_error
    for handler in logging.getLogger().handlers:
        given = handler.formatter
        pattern, dates = (given._fmt, given.datefmt) if given else (logging.BASIC_FORMAT, None)
        handler.setFormatter(SafeFormatter(pattern, dates))
