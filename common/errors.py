"""The exceptions of Millrace, all derived from MillraceError.

MillraceError
    UsageError         a flag is missing, unknown or invalid
        SubscriptionInUse  another reader has claimed the subscription of a stream
        UpdateRefused      a stream cannot replace the running one
    ModelError         the model package cannot be used
        ManifestError      model.json does not follow the format of a manifest
        DigestMismatch     a file does not have the expected digest
        UnsafeModel        reading the model file could run code or exhaust the machine
        ContractBroken     the model does not do what its manifest says
    DeviceError        the accelerator is missing or has failed
        MissingDevice      the machine lacks what a part of the model needs
    OutOfMemory        the machine or the process has too little memory
    InputError         a source is missing, unreadable or lacks columns
        InputChanged       a file changed while the run was reading it
    OutputError        a destination cannot be written
        AttemptConflict    another attempt, or a file that no run wrote, is in the way
    EndpointError      a prediction endpoint is missing, refuses requests or stays down
    CredentialsError   no usable Google Cloud credentials were found
    JobError           a Dataflow job cannot be started, or has failed
        JobNotMonitored    a job can no longer be monitored
    RunnerError        a portable runner or its workers cannot be reached, or have stopped
    ServerError        the model server cannot start
    ResourceError      a Google Cloud resource cannot be inspected, created or removed
    TooFewRows         the source has fewer rows than the user expects
    TooManyDeadLetters more rows failed than the user allows
    BalanceError       the rows read differ from the rows scored plus the dead letters

Each message states what was expected, what was found and what to do. These errors are faults of
the run, not of a row, so none of them ever becomes a dead letter.
"""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Iterable

from common.addresses import without_secrets

RPC_ERROR = "gRPC error"
_CONTROLS = ("Cc", "Cf", "Cs", "Zl", "Zp")
# The text of an error of gRPC, after the name of its class in a traceback.
_RPC = re.compile(
    r"(?:[\w.]+: )?<\w+ of RPC that terminated with:\s*status = StatusCode\.(?P<code>\w+)"
    r'\s*details = "(?P<details>.*?)"(?:\s*debug_error_string = ".*?")?\s*>',
    re.DOTALL,
)


class MillraceError(Exception):
    """A run cannot start or continue.

    Args:
        message: One line for the user. User information and queries of the addresses in it are
            hidden.

    Attributes:
        page: The code of the page in docs/operate that explains the error. Empty if the message
            says everything.
    """

    page = "unexpected"

    def __init__(self, message: str = "") -> None:
        super().__init__(visible(without_secrets(message), keep="\n\t"))


class UsageError(MillraceError):
    """A flag is missing, unknown or invalid."""

    # Its message says everything.
    page = ""


class SubscriptionInUse(UsageError):
    """Another reader has claimed the subscription of a stream."""

    page = "subscription-locked"


class UpdateRefused(UsageError):
    """A stream cannot replace the running one."""

    page = "update-refused"


class ModelError(MillraceError):
    """The model package cannot be used."""

    page = "model-refused"


class ManifestError(ModelError):
    """model.json does not follow the format of a manifest."""


class DigestMismatch(ModelError):
    """A file does not have the expected digest."""


class UnsafeModel(ModelError):
    """Reading the model file could run code or exhaust the machine."""


class ContractBroken(ModelError):
    """The model does not do what its manifest says."""


class DeviceError(MillraceError):
    """The accelerator is missing or has failed."""

    page = "device"


class MissingDevice(DeviceError):
    """The machine lacks what a part of the model needs."""


class OutOfMemory(MillraceError):
    """The machine or the process has too little memory."""

    page = "out-of-memory"


class InputError(MillraceError):
    """A source is missing, unreadable or lacks columns."""

    page = "input"


class InputChanged(InputError):
    """A file changed while the run was reading it."""

    page = "input-changed"


class OutputError(MillraceError):
    """A destination cannot be written."""

    page = "output"


class AttemptConflict(OutputError):
    """Another attempt, or a file that no run wrote, is in the way."""

    page = "attempts"


class EndpointError(MillraceError):
    """A prediction endpoint is missing, refuses requests or stays down."""

    page = "endpoint-fails"


class CredentialsError(MillraceError):
    """No usable Google Cloud credentials were found."""

    page = "permissions"


class JobError(MillraceError):
    """A Dataflow job cannot be started, or has failed."""

    page = "job-failed"


class JobNotMonitored(JobError):
    """A job can no longer be monitored."""

    page = "cannot-follow"


class RunnerError(MillraceError):
    """A portable runner or its workers cannot be reached, or have stopped."""

    page = "runner"


class ServerError(MillraceError):
    """The model server cannot start."""

    page = "server"


class ResourceError(MillraceError):
    """A Google Cloud resource cannot be inspected, created or removed."""

    page = "resources"


class TooFewRows(MillraceError):
    """The source has fewer rows than the user expects."""

    page = "input"


class TooManyDeadLetters(MillraceError):
    """More rows failed than the user allows."""

    page = "too-many-dead-letters"


class BalanceError(MillraceError):
    """The rows read differ from the rows scored plus the dead letters."""

    page = "input-changed"


def suggest(name: str, known: Iterable[str]) -> str:
    """Return a question that names the known names most similar to an unknown one.

    Args:
        name: The unknown name.
        known: The names that exist.

    Returns:
        ` (did you mean 'A' or 'B'?)` with up to three names, or an empty text if none is similar.
    """
    return suggestion(similar(name, known))


def suggestion(names: Iterable[str]) -> str:
    """Return a question that names similar names, or an empty text if there are none."""
    close = " or ".join(f"'{name}'" for name in names)
    return f" (did you mean {close}?)" if close else ""


def similar(name: str, known: Iterable[str]) -> list[str]:
    """Return up to three known names that are most similar to an unknown one."""
    lowered = {k.lower(): k for k in known}
    close = difflib.get_close_matches(name.lower(), lowered, n=3, cutoff=0.6)
    return [lowered[c] for c in close]


def shorten_rpcs(text: str) -> str:
    """Return the text with each error of gRPC in it reduced to its status code and its details.

    gRPC writes such an error as a block of several lines, of which the last one says nothing.
    """
    return _RPC.sub(_code_and_details, text) if "of RPC that terminated" in text else text


def _code_and_details(found: re.Match[str]) -> str:
    text = " ".join(found["details"].split())
    details = f": {text}" if text else ""
    return f"{RPC_ERROR} {found['code']}{details}"


def visible(text: str, keep: str = "") -> str:
    """Return a text with its control characters escaped, so that it cannot change a terminal.

    Args:
        text: The text, such as the name of a column.
        keep: The control characters that stay.
    """
    if text.isprintable():
        return text
    # Categories such as Cc and Cf; Zl and Zp separate lines.
    return "".join(
        c.encode("unicode_escape").decode()
        if c not in keep and unicodedata.category(c) in _CONTROLS
        else c
        for c in text
    )


def class_name(value: object) -> str:
    """Return the name of a value's class, or of the nearest base class whose name is a word.

    A class may be made while a program runs, so its name may be any text, such as values of a row.
    """
    names = (kind.__name__ for kind in type(value).__mro__)
    return next(name for name in names if name.isidentifier())


def one_line(error: BaseException, limit: int = 300) -> str:
    """Return the message of an exception in one line.

    Args:
        error: The exception.
        limit: The number of characters after which the message is cut.

    Returns:
        The message, in which user information and queries of addresses are hidden. The name of the
        exception's class if it has no message.
    """
    # Torch may append the frames of its C++ stack.
    text = " ".join(shorten_rpcs(str(error)).split("Exception raised from")[0].split())
    text = visible(without_secrets(text)) or class_name(error)
    return text if len(text) <= limit else f"{text[:limit]}..."
