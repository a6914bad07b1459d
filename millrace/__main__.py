"""The `millrace` command, and `python -m millrace`."""

from __future__ import annotations

import sys

from common.terminal import output_may_close
from millrace.command_line import run


def main() -> int:
    """Run the command line of the process and return the exit code."""
    # `python -m` finds modules in the working directory, for example for --trusted_modules, but a
    # script does not. The directory is added at the end, where its modules cannot hide others.
    if not sys.flags.safe_path:
        sys.path.append("")
    code = 0
    with output_may_close():
        code = run(sys.argv[1:])
    return code


if __name__ == "__main__":
    sys.exit(main())
