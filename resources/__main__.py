"""python -m resources plan | setup | status | cleanup

Exit codes: 0 done (of plan: nothing is to do), 1 something went wrong, 2 the command line or
the config is wrong, 3 of plan: something is to do, 130 interrupted.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence

from common.addresses import guard_output
from common.errors import MillraceError, UsageError, one_line
from common.memory import MORE_MEMORY, is_of_memory, out_of_memory


def main(argv: Sequence[str]) -> int:
    """The command line -> the exit code."""
    from resources.flags import parse_arguments

    args: argparse.Namespace | None = None
    # They tell each question to Google's metadata server that nobody answered, and each refusal.
    for name in ("google.auth", "googleapiclient"):
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        args = parse_arguments(argv)
        guard_output()
        from resources.commands import COMMANDS

        return COMMANDS[args.command](args)
    except KeyboardInterrupt:
        print("\ninterrupted: run it again to go on", file=sys.stderr)
        return 130
    except Exception as error:
        if args is not None and args.debug:
            raise
        message = f"unexpected {type(error).__name__}: {one_line(error)}"
        if isinstance(error, MillraceError):
            message = str(error)
        elif is_of_memory(error):
            message = str(out_of_memory(one_line(error), MORE_MEMORY))
        print(f"error: {message}", file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
