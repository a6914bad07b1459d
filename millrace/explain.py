"""`millrace explain CODE`: print the page of the operating guide that explains an error."""

from __future__ import annotations

from collections.abc import Sequence

from common.command_line import CommandParser
from common.errors import MillraceError
from common.pages import read_page, titles
from common.terminal import columns, print_error


def make_parser() -> CommandParser:
    """Return the parser of the command's flags."""
    parser = CommandParser(
        "millrace explain",
        "Print the page of the operating guide that explains an error.",
        epilog="Without a code, the command lists all codes.",
    )
    parser.add_argument("code", nargs="?", metavar="CODE", help="the code at the end of an error")
    return parser


def main(argv: Sequence[str]) -> int:
    """Print a page, or the codes of all pages, and return the exit code."""
    try:
        code = make_parser().parse_args(argv).code
        print(columns(titles()) if code is None else read_page(code).rstrip())
    except MillraceError as error:
        print_error(error)
        return 2
    return 0
