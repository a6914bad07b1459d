"""The `millrace` command, and `python -m millrace`."""

from __future__ import annotations

import sys

from millrace.command_line import run


def main() -> int:
    """The command line of the process -> its exit code."""
    # `python -m` finds modules of the working directory, such as those of --trusted_modules; a
    # script does not. Here they come after all others, so that they cannot hide any.
    if not sys.flags.safe_path:
        sys.path.append("")
    return run(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
