"""Builds command lines, and checks the error line that a failed command prints."""

from collections.abc import Callable, Mapping
from typing import Any

from pipelines.command import Command

# The exit code, standard output and standard error.
Result = tuple[int, str, str]
RunCommand = Callable[[Command, Mapping[str, Any]], Result]


def words(flags: Mapping[str, Any]) -> list[str]:
    """Return the words of a command line from flags by name. Flags that are None are left out."""
    return [w for n, v in flags.items() if v is not None for w in (f"--{n}", str(v))]


def assert_one_line_error(result: Result, code: int, *parts: str) -> None:
    """Check the exit code, and that the only output is one error line with all parts.

    The line must not contain internals such as a traceback.
    """
    got, out, err = result
    assert got == code, err
    assert out == ""
    assert err.count("\n") == 1
    assert err.startswith("error: ")
    for part in parts:
        assert part in err
    internals = "Traceback", "while running", "HTTPConnectionPool", "?projection", "unexpected"
    assert [i for i in internals if i in err and not any(i in part for part in parts)] == []
