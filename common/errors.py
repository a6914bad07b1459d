"""The one exception tree of the project.

MillraceError
    UsageError         a flag is missing, unknown or has a value that cannot be
    ModelError         the model package cannot be used at all
        ManifestError      model.json is not what the format asks for
        DigestMismatch     the bytes are not the ones that were promised
        UnsafeModel        reading the file could run code or exhaust the machine
        ContractBroken     the model does not do what its manifest says
    DeviceError        the accelerator is missing or failed
    OutOfMemory        the machine, or the process' limit, has too little memory
    InputError         a source is missing, unreadable or lacks columns
    OutputError        a destination cannot be written
    EndpointError      a prediction endpoint is missing, refuses us or stays down
    CredentialsError   there are no Google Cloud credentials that can be used
    JobError           a job elsewhere cannot be started, or has failed
    TooManyDeadLetters more rows failed than the user allows
    BalanceError       rows in differ from rows scored plus rows dead-lettered

Each message says what was expected, what came and what to do. None of these is
ever turned into a dead letter: they are faults of the run, not of a row.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from common.addresses import without_secrets


class MillraceError(Exception):
    """A run cannot start or go on; the message is written for the user.

    Addresses in it are shown without user information and query.
    """

    def __init__(self, message: str = "") -> None:
        super().__init__(without_secrets(message))


class UsageError(MillraceError):
    """A flag is missing, unknown or has a value that cannot be."""


class ModelError(MillraceError):
    """The model package cannot be used at all."""


class ManifestError(ModelError):
    """model.json is not what the format asks for."""


class DigestMismatch(ModelError):
    """The bytes read are not the ones that were promised."""


class UnsafeModel(ModelError):
    """Reading the file could run code or exhaust the machine."""


class ContractBroken(ModelError):
    """The model does not do what its manifest says."""


class DeviceError(MillraceError):
    """The accelerator is missing or failed."""


class OutOfMemory(MillraceError):
    """The machine, or the process' limit, has too little memory."""


class InputError(MillraceError):
    """A source is missing, unreadable or lacks columns."""


class OutputError(MillraceError):
    """A destination cannot be written."""


class EndpointError(MillraceError):
    """A prediction endpoint is missing, refuses us or stays down."""


class CredentialsError(MillraceError):
    """There are no Google Cloud credentials that can be used."""


class JobError(MillraceError):
    """A job elsewhere cannot be started, or has failed."""


class TooManyDeadLetters(MillraceError):
    """More rows failed than the user allows."""


class BalanceError(MillraceError):
    """Rows in differ from rows scored plus rows dead-lettered."""


def suggest(name: str, known: Iterable[str]) -> str:
    """A wrong name, the right ones -> ` (nearest: A, B)`, or nothing if none is near."""
    lowered = {k.lower(): k for k in known}
    close = difflib.get_close_matches(name.lower(), lowered, n=3, cutoff=0.6)
    return f" (nearest: {', '.join(lowered[c] for c in close)})" if close else ""


def one_line(error: BaseException, limit: int = 300) -> str:
    """An exception -> its message in one line, shortened; its class if it has none.

    Addresses are shown without user information and query.
    """
    # Torch may add the frames of its C++ stack.
    text = " ".join(str(error).split("Exception raised from")[0].split())
    text = without_secrets(text) or type(error).__name__
    return text if len(text) <= limit else f"{text[:limit]}..."
