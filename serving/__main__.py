"""Serve a model package: python -m serving --model_path build/example/model

`python -m serving run` is the same. Exit codes: 0 ended as it was told to, 1 it could not
serve, 2 wrong flags.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

from model_handlers.errors import MillraceError, UsageError, nearest


def run(argv: Sequence[str]) -> int:
    """A server's flags -> the exit code, when it has ended."""
    from serving.settings import parse

    settings = parse(argv)
    # After the flags: torch and Beam take seconds.
    from serving.server import serve

    return serve(settings)


COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {"run": run}


def main(argv: Sequence[str]) -> int:
    """The command line -> the exit code. Without a command it is `run`."""
    try:
        if not argv or argv[0].startswith("-"):
            return run(argv)
        if argv[0] not in COMMANDS:
            raise UsageError(
                f"unknown command {argv[0]!r}{nearest(argv[0], COMMANDS)}: expected one of "
                f"{', '.join(COMMANDS)}, or flags; see --help"
            )
        return COMMANDS[argv[0]](argv[1:])
    except MillraceError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
