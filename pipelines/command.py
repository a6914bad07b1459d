"""From a command line to an exit code: what every pipeline does around its graph.

Exit codes: 0 done, 1 the run failed, 2 the command line is wrong, 128 plus the number of the
signal that ended the run: 130 for Ctrl-C, 143 for SIGTERM, 129 if the terminal was closed.
An error is one line on standard error. With `--debug`, its traceback is shown.
"""

from __future__ import annotations

import logging
import os
import re
import signal
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from typing import Any, NoReturn

from cloud.proxies import spare_loopback
from common import errors
from common.addresses import guard_output
from common.interrupts import ended_by_signals
from common.memory import (
    ADVICE,
    imported,
    is_of_memory,
    mentions_memory,
    out_of_memory,
)
from common.retry_notices import print_retries
from common.terminal import print_error
from pipelines.dead_threads import end_when_threads_fail
from pipelines.options import ModelOptions
from pipelines.options.flag import Parsed, parse_flags


@dataclass(frozen=True, kw_only=True)
class Command:
    """The command of a pipeline.

    Attributes:
        name: The module after `pipelines.`, such as `batch_local`.
        about: The description for `--help` and for the template.
        options: The options classes whose flags it takes.
        run: `module:function`, called with Parsed. It returns the exit code, or None for 0. It is
            imported only after the flags are parsed, so `--help` does not wait for torch and Beam.
        beam: Whether it also takes the flags of Beam.
        title: The title of its Flex Template. Empty if it has none.
    """

    name: str
    about: str
    options: tuple[type[Any], ...]
    run: str
    beam: bool = True
    title: str = ""


def main(command: Command, argv: Sequence[str]) -> int:
    """Run a command with these arguments and return its exit code. Errors are printed."""
    spare_loopback()
    with ended_by_signals() as ended_by, print_retries(sys.stderr):
        try:
            return _main(command, argv)
        except KeyboardInterrupt as interrupt:
            is_batch = command.name.startswith(("batch", "replay"))
            before = "nothing was written" if is_batch else "nothing was started"
            say(f"\ninterrupted: {_fate(interrupt) or before}")
            return 128 + (ended_by[0] if ended_by else signal.SIGINT)


def _fate(interrupt: KeyboardInterrupt) -> str:
    """Return what an interrupt says about the run, also if another one interrupted its cleanup."""
    cause: BaseException | None = interrupt
    while cause is not None:
        if isinstance(cause, KeyboardInterrupt) and str(cause):
            return str(cause)
        cause = cause.__context__
    return ""


def _main(command: Command, argv: Sequence[str]) -> int:
    debug = "--debug" in argv
    parsed = None
    try:
        parsed = parse_flags(command.name, command.about, command.options, argv, beam=command.beam)
        debug = any(getattr(group, "debug", False) for group in parsed.groups.values())
        _set_logging(debug)
        return _run(command, parsed) or 0
    except Exception as error:
        # Every error ends here: printed on one line, or raised again for --debug.
        if debug:
            raise
        known = as_known_error(error)
        if parsed is not None:
            text = str(known)
            known = type(known)(text + "".join(split.note(text) for split in parsed.splits))
        print_error(known)
        return 2 if isinstance(known, errors.UsageError) else 1


def run_and_exit(command: Command, argv: Sequence[str]) -> NoReturn:
    """Run a command and end the process with its exit code.

    The process ends at once, without cleaning up the interpreter, because Beam's worker threads
    may still run. The threads of a stream never end, and after a failure a thread may be in native
    code, which crashes when the interpreter shuts down.
    """
    try:
        end_when_threads_fail()
        code = main(command, argv)
    except KeyboardInterrupt:
        # It came before `main` could catch it, or after.
        say("\ninterrupted: nothing was written")
        code = 128 + signal.SIGINT
    # Flushing fails if the terminal is closed.
    with suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


def say(line: str) -> None:
    """Print a line on standard error at once, unless standard error is closed."""
    with suppress(OSError):
        print(line, file=sys.stderr, flush=True)


def _run(command: Command, parsed: Parsed) -> int | None:
    module, _, function = command.run.partition(":")
    with _extra_packages(parsed):
        with imported(module) as found:
            code: int | None = getattr(found, function)(parsed)
        return code


def _extra_packages(parsed: Parsed) -> AbstractContextManager[None]:
    """Return a block in which the modules of `--extra_packages` can be imported."""
    model = parsed.find(ModelOptions)
    if model is None or not model.extra_packages:
        return nullcontext()
    # Imported only here, because it imports Arrow.
    from pipelines.extra_packages import with_packages

    return with_packages(parsed)


def _set_logging(debug: bool) -> None:
    """Show Beam's log only with --debug: it holds a traceback for each error of a worker."""
    logging.basicConfig(level=logging.INFO if debug else logging.WARNING)
    guard_output()
    if not debug:
        logging.getLogger("apache_beam").setLevel(logging.CRITICAL)
        # It warns about each request to Google's metadata server that gets no response.
        logging.getLogger("google.auth").setLevel(logging.ERROR)
        for handler in logging.getLogger().handlers:
            handler.addFilter(_is_news)


# The loggers of Prism, and of the workers whose log it passes on.
_OF_RUNNERS = ("PrismJobServer", "PrismRunner", "_Prism", "SdkWorker@")
# The modules of Beam that log to the root logger what a job server says, and that it starts slowly.
_OF_JOB_SERVERS = ("portable_runner", "subprocess_server")


def _is_news(record: logging.LogRecord) -> bool:
    """Return whether a log record is of use to the user.

    Three kinds are not: the warning of RunInference that it cannot measure the memory of a model
    without SciPy, which each worker logs; what gRPC logs when memory is short; and what a runner's
    job server and its workers log, at any level. One line reports the error at the end.
    """
    raised = record.exc_info[1] if record.exc_info else None
    if raised is not None and is_of_memory(raised):
        return False
    if record.name.startswith(_OF_RUNNERS) or record.module in _OF_JOB_SERVERS:
        return False
    return not record.getMessage().startswith("Resource module is not available")


_NAMES = {
    name: kind
    for name, kind in vars(errors).items()
    if isinstance(kind, type) and issubclass(kind, errors.MillraceError)
}
# In the error that Beam raises when the connection to a worker process is lost.
_WORKER_GONE = "Channel closed prematurely"
# Beam adds the name of the step to every exception of a worker.
_WHERE = re.compile(r" \[while running '[^']*'\]")
_RAISED = re.compile(rf"^(?:[\w.]+\.)?({'|'.join(_NAMES)}): (.*)$", re.MULTILINE)


def as_known_error(error: BaseException) -> errors.MillraceError:
    """Return the project error that caused an exception, or a new one that reports it in a line.

    The exception of a worker reaches the runner as the text of its traceback, so the text is
    searched for project errors as well.
    """
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, errors.MillraceError):
            return type(cause)(_WHERE.sub("", str(cause)))
        if is_of_memory(cause):
            return out_of_memory(last_line(str(cause)) or type(cause).__name__)
        cause = cause.__cause__ or cause.__context__
    found = find_raised(str(error))
    if found is not None:
        return found
    if mentions_memory(str(error)):
        return out_of_memory(last_line(str(error)))
    if _WORKER_GONE in str(error):
        return errors.MillraceError(
            "a worker process ended unexpectedly, perhaps because the system ran out of memory and "
            f"killed it; {ADVICE}"
        )
    text = last_line(str(error))
    if not text.startswith(errors.RPC_ERROR):
        text = f"{type(error).__name__}: {text}".removesuffix(": ")
    return errors.MillraceError(f"unexpected {text}; run again with --debug to see the traceback")


def find_raised(text: str) -> errors.MillraceError | None:
    """Return the last project error in the text of one or more tracebacks, or None."""
    found = _RAISED.findall(text)
    return _NAMES[found[-1][0]](_WHERE.sub("", found[-1][1])) if found else None


def last_line(text: str) -> str:
    """Return the last line of a text that is not blank, without the step's name, or ""."""
    short = _WHERE.sub("", errors.shorten_rpcs(text))
    lines = [line.strip() for line in short.splitlines() if line.strip()]
    return lines[-1] if lines else ""
