"""From a command line to an exit code: what all pipelines do around their graph.

Exit codes: 0 done, 1 the run failed, 2 the command line is wrong, 128 + a signal's number where
one ended it: 130 for Ctrl-C, 143 for SIGTERM, 129 where the terminal was closed.
An error is one line on standard error; `--debug` shows the traceback as well.
"""

from __future__ import annotations

import importlib
import logging
import os
import re
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, NoReturn

from common import errors
from common.addresses import guard_output
from common.memory import ADVICE, is_of_memory, mentions_memory, out_of_memory
from pipelines.dead_threads import end_when_threads_fail
from pipelines.options.flag import Parsed, parse_flags


@dataclass(frozen=True, kw_only=True)
class Command:
    """A pipeline's command.

    run: `module:function`, called with Parsed; imported only when flags are read, so
        that `--help` does not wait for torch and Beam. What it returns is the exit code, None
        for 0.
    beam: it takes Beam's flags as well. title: of its template, where it has one.
    """

    name: str
    about: str
    options: tuple[type[Any], ...]
    run: str
    beam: bool = True
    title: str = ""


def main(command: Command, argv: Sequence[str]) -> int:
    """A command and its arguments -> the exit code."""
    with ended_by_signals() as ended_by:
        try:
            return _main(command, argv)
        except KeyboardInterrupt as interrupt:
            say(f"\ninterrupted: {str(interrupt) or 'nothing was written'}")
            return 128 + (ended_by[0] if ended_by else signal.SIGINT)


def _main(command: Command, argv: Sequence[str]) -> int:
    debug = "--debug" in argv
    try:
        parsed = parse_flags(command.name, command.about, command.options, argv, beam=command.beam)
        debug = any(getattr(group, "debug", False) for group in parsed.groups.values())
        _set_logging(debug)
        return _run(command, parsed) or 0
    except Exception as error:
        # The one place where every error ends: told in a line, or raised for --debug.
        if debug:
            raise
        known = as_known_error(error)
        say(f"error: {known}")
        return 2 if isinstance(known, errors.UsageError) else 1


def run_and_exit(command: Command, argv: Sequence[str]) -> NoReturn:
    """A command and its arguments -> the end of the process, with the exit code.

    Beam's worker threads may still run: after a failure native code, which crashes when
    the interpreter is taken down around it, and in a stream for ever. So the process
    ends at once.
    """
    end_when_threads_fail()
    code = main(command, argv)
    # The terminal may be closed.
    with suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


@contextmanager
def ended_by_signals() -> Iterator[list[int]]:
    """During the block SIGTERM and SIGHUP interrupt as Ctrl-C does; gives the one that came.

    It interrupts once: a shell that closes sends SIGHUP a second time, which must not stop the
    cleaning up. Under nohup SIGHUP stays ignored.
    """
    came: list[int] = []

    def interrupt(number: int, _: Any) -> None:
        if not came:
            came.append(number)
            raise KeyboardInterrupt

    before = {}
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:
                before[number] = signal.signal(number, interrupt)
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def say(line: str) -> None:
    """A line -> standard error, at once, if anybody is there to read it."""
    with suppress(OSError):
        print(line, file=sys.stderr, flush=True)


def _run(command: Command, parsed: Parsed) -> int | None:
    module, _, function = command.run.partition(":")
    return getattr(importlib.import_module(module), function)(parsed)  # type: ignore[no-any-return]


def _set_logging(debug: bool) -> None:
    """Beam logs each error of a worker with its traceback; without --debug one line says it."""
    logging.basicConfig(level=logging.INFO if debug else logging.WARNING)
    guard_output()
    if not debug:
        logging.getLogger("apache_beam").setLevel(logging.CRITICAL)
        # It tells each question to Google's metadata server that nobody answered.
        logging.getLogger("google.auth").setLevel(logging.ERROR)
        for handler in logging.getLogger().handlers:
            handler.addFilter(_is_news)


def _is_news(record: logging.LogRecord) -> bool:
    """Not: RunInference cannot measure a model's memory without SciPy, said once a worker.

    Nor what gRPC logs of lack of memory, which one line says at the end.
    """
    raised = record.exc_info[1] if record.exc_info else None
    if raised is not None and is_of_memory(raised):
        return False
    return not record.getMessage().startswith("Resource module is not available")


_NAMES = {
    name: kind
    for name, kind in vars(errors).items()
    if isinstance(kind, type) and issubclass(kind, errors.MillraceError)
}
# What Beam says of a worker process whose connection is gone.
_WORKER_GONE = "Channel closed prematurely"
# Beam adds the step's name to whatever a worker raises.
_WHERE = re.compile(r" \[while running '[^']*'\]")
_RAISED = re.compile(rf"^(?:[\w.]+\.)?({'|'.join(_NAMES)}): (.*)$", re.MULTILINE)


def as_known_error(error: BaseException) -> errors.MillraceError:
    """Any exception -> the error of ours that caused it, else one that tells it in a line.

    A worker's exception reaches the runner as the text of its traceback, so ours are
    looked for in the text as well.
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
            "a worker process ended in the midst of its work, as one does that the system kills "
            f"for lack of memory; {ADVICE}"
        )
    return errors.MillraceError(
        f"unexpected {type(error).__name__}: {last_line(str(error))}; run again with --debug for "
        "the traceback"
    )


def find_raised(text: str) -> errors.MillraceError | None:
    """A traceback, or several -> the last error of ours in it, None if there is none."""
    found = _RAISED.findall(text)
    return _NAMES[found[-1][0]](_WHERE.sub("", found[-1][1])) if found else None


def last_line(text: str) -> str:
    """A text -> its last line, without the step in which it was said; empty if there is none."""
    lines = [line.strip() for line in _WHERE.sub("", text).splitlines() if line.strip()]
    return lines[-1] if lines else ""
