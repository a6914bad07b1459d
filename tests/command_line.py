"""A command as a user types it, and what is printed where it fails."""

from collections.abc import Callable, Mapping
from typing import Any

from pipelines.command import Command

# The exit code, standard output and standard error.
Result = tuple[int, str, str]
RunCommand = Callable[[Command, Mapping[str, Any]], Result]


def words(flags: Mapping[str, Any]) -> list[str]:
    """Flags by name, None for one that is left out -> the words of the command line."""
    return [w for n, v in flags.items() if v is not None for w in (f"--{n}", str(v))]


def assert_one_line_error(result: Result, code: int, *parts: str) -> None:
    """The run ended with that code and printed one line of error: the parts and no internals."""
    got, out, err = result
    assert got == code, err
    assert out == ""
    assert err.count("\n") == 1
    assert err.startswith("error: ")
    for part in parts:
        assert part in err
    internals = "Traceback", "while running", "HTTPConnectionPool", "?projection", "unexpected"
    assert [i for i in internals if i in err and not any(i in part for part in parts)] == []
