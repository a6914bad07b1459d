"""The parser of every command: wrong command lines are one line."""

import pytest

from common.command_line import CommandParser
from common.errors import UsageError


def parser() -> CommandParser:
    made = CommandParser("resources")
    made.add_argument("--name")
    made.add_argument("--names", nargs="*")
    made.add_argument("paths", nargs="*")
    return made


@pytest.mark.parametrize("flag", ["--name", "--names"])
def test_a_value_of_two_dashes_is_refused(flag: str) -> None:
    with pytest.raises(UsageError, match=f"^{flag} cannot be '--'; see --help$"):
        parser().parse_args([f"{flag}=--"])


def test_what_follows_two_dashes_is_no_flag() -> None:
    parsed = parser().parse_args(["--name=-", "--", "--name=--"])
    assert (parsed.name, parsed.paths) == ("-", ["--name=--"])
