"""How the libraries for Delta Lake and Apache Iceberg reach Cloud Storage, and their errors."""

from __future__ import annotations

import re
from functools import cache
from typing import Any

import pyarrow.fs as pa_fs

from cloud.clients import credentials
from cloud.endpoints import Endpoints, is_plain, rest_url
from common.errors import one_line
from transforms.files.store import READER, SILENT_SECONDS, arrow_storage

_SCHEMES = ("gs", "gcs")
# The library of Delta Lake writes a colon as a coloured arrow, and names each request.
_ARROW = re.compile("\\s*\x1b\\[\\d+m\u21b3\x1b\\[0m\\s*")
_REQUEST = re.compile(r"Error performing (list request: Error performing )?[A-Z]+ .*? - (?=[A-Z])")
# Arrow's client appends what it did to its status.
_STATUS = re.compile(r"google::cloud::Status\((\w+): .*? last message of (.*?) error_info=.*")
# The status of an answer, in the words of each library, and what to do about it.
_ADVICE = (
    (
        r"\b403\b|PERMISSION_DENIED|access denied",
        f"grant the account the role {READER}",
    ),
    (r"\b401\b|UNAUTHENTICATED", "the credentials were rejected: log in again"),
    (r"\b404\b|NOT_FOUND|Not found", "check that the files of the table are complete"),
    (
        r"error sending request|UNAVAILABLE|\b50[0-9]\b",
        "check the network and --api_endpoints, or try again later",
    ),
    (
        r"service account file|oauth|metadata\.google\.internal",
        "use the credentials of a service account, of gcloud, or of a Google Cloud machine",
    ),
)


def delta_options(root: str) -> dict[str, str] | None:
    """Return the storage options for the library of Delta Lake, or None for other filesystems.

    Args:
        root: The folder of the table.

    Raises:
        CredentialsError: There are no usable credentials.
    """
    if root.partition("://")[0] not in _SCHEMES:
        return None
    address = Endpoints.resolve().storage
    credentials(address)
    options = {"retry_timeout": f"{SILENT_SECONDS}s", "max_retries": "100"}
    if address is not None:
        options["google_base_url"] = rest_url(address)
    if is_plain(address):
        options |= {"google_skip_signature": "true", "allow_http": "true"}
    return options


def iceberg_files() -> Any:
    """Return the access to files for the library of Iceberg.

    It ignores the properties of a table, which could name code to run, or a server that would then
    receive the credentials.
    """
    from pyiceberg.io.pyarrow import PyArrowFileIO

    files = PyArrowFileIO()
    others, ours = files.fs_by_scheme, cache(arrow_storage)

    def filesystem(scheme: str, place: str | None = None) -> pa_fs.FileSystem:
        return ours() if scheme in _SCHEMES else others(scheme, place)

    files.fs_by_scheme = filesystem
    return files


def explain(error: Exception) -> str:
    """Return the message of a library's error and what to do about it, in one line."""
    whole = " ".join(_ARROW.sub(": ", str(error)).split()) or type(error).__name__
    whole = _STATUS.sub(r"\1: \2", _REQUEST.sub("", whole))
    text = one_line(Exception(whole.removeprefix("Kernel error -> ")))
    advice = next((advice for words, advice in _ADVICE if re.search(words, text)), "")
    text = text if text.endswith("...") else text.rstrip(".")
    return f"{text}; {advice}" if advice else text
