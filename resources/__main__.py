"""The command `python -m resources plan | setup | status | cleanup`.

Exit codes: 0 success (for plan: nothing to do), 1 failure, 2 an error in the command line or in the
configuration file, 3 for plan if there is something to do, 130 interrupted.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence

from cloud.proxies import spare_loopback
from common.addresses import guard_output
from common.errors import MillraceError, UsageError, one_line
from common.memory import MORE_MEMORY, is_of_memory, out_of_memory
from common.retry_notices import print_retries
from common.terminal import print_error


def main(argv: Sequence[str]) -> int:
    """Run the command line and return the exit code."""
    from resources.flags import parse_arguments

    args: argparse.Namespace | None = None
    spare_loopback()
    # These loggers warn about every failed request to Google's metadata server and about every
    # error response.
    for name in ("google.auth", "googleapiclient"):
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        args = parse_arguments(argv)
        guard_output()
        from resources.commands import COMMANDS

        with print_retries(sys.stderr):
            return COMMANDS[args.command](args)
    except KeyboardInterrupt:
        print("\ninterrupted: run the command again to continue", file=sys.stderr)
        return 130
    except Exception as error:
        if args is not None and args.debug:
            raise
        if isinstance(error, MillraceError):
            known = error
        elif is_of_memory(error):
            known = out_of_memory(one_line(error), MORE_MEMORY)
        else:
            known = MillraceError(f"unexpected {type(error).__name__}: {one_line(error)}")
        print_error(known)
        return 2 if isinstance(error, UsageError) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
