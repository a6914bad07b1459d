"""Print what a model package takes, does and gives.

python -m model_handlers.inspect_package package/
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from common.command_line import CommandParser
from common.errors import MillraceError, UsageError
from common.terminal import output_may_close, print_error


def make_parser() -> CommandParser:
    """Return the parser of the command's flags."""
    parser = CommandParser(
        "model_handlers.inspect_package",
        "Print what a model package takes, does and gives. The model is not loaded.",
    )
    parser.add_argument(
        "package", help="folder with model.json, or .mar, on any filesystem that Beam supports"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command, and return its exit code.

    Returns:
        0 if the package was printed, 1 if it cannot be read, 2 for wrong arguments.
    """
    try:
        path = make_parser().parse_args(argv).package
        # Imported only here, because --help must not wait for NumPy and Arrow.
        from model_handlers.packaging.show import show
        from model_handlers.read_package import read_package

        text = show(read_package(path), path)
        with output_may_close():
            print(text)
    except MillraceError as error:
        print_error(error)
        return 2 if isinstance(error, UsageError) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
