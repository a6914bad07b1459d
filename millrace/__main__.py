"""The `millrace` command, and `python -m millrace`."""

from __future__ import annotations

import sys

from millrace.command_line import run


def main() -> int:
    """Run the command line of the process and return the exit code."""
    # `python -m` finds modules in the working directory, for example for --trusted_modules, but a
    # script does not. The directory is added at the end, where its modules cannot hide others.
    if not sys.flags.safe_path:
        sys.path.append("")
    return run(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
