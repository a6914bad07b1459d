"""Serve a model package: python -m serving --model_path build/example/model

`python -m serving run` is the same. `deploy`, `undeploy` and `status` put packages behind
endpoints of Vertex AI. Exit codes: 0 ended as it was told to, 1 it could not be done,
2 wrong flags, 130 Ctrl-C.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

from common.errors import MillraceError, UsageError, one_line, suggest
from common.memory import MORE_MEMORY, out_of_memory


def run(argv: Sequence[str]) -> int:
    """A server's flags -> the exit code, when it has ended."""
    from serving.listening import listen
    from serving.settings import parse_settings

    settings = parse_settings(argv)
    listener = listen(settings.host, settings.port)
    # After the flags and the port: torch and Beam take seconds.
    from serving.server import serve

    return serve(settings, listener)


def deploy(argv: Sequence[str]) -> int:
    """Deploy's flags -> the exit code."""
    from serving.deploy.flags import parse_deploy

    args = parse_deploy(argv)
    # After the flags: Google's clients take their time.
    from serving.deploy.run import deploy

    return deploy(args)


def undeploy(argv: Sequence[str]) -> int:
    """Undeploy's flags -> the exit code."""
    from serving.deploy.flags import parse_undeploy

    args = parse_undeploy(argv)
    from serving.deploy.undeploy import undeploy

    return undeploy(args)


def status(argv: Sequence[str]) -> int:
    """Status' flags -> the exit code."""
    from serving.deploy.flags import status_parser

    args = status_parser().parse_args(argv)
    from serving.deploy.status import status

    return status(args)


COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {
    "run": run,
    "deploy": deploy,
    "undeploy": undeploy,
    "status": status,
}


def main(argv: Sequence[str]) -> int:
    """The command line -> the exit code. Without a command it is `run`."""
    try:
        if not argv or argv[0].startswith("-"):
            return run(argv)
        if argv[0] not in COMMANDS:
            raise UsageError(
                f"unknown command {argv[0]!r}{suggest(argv[0], COMMANDS)}: expected one of "
                f"{', '.join(COMMANDS)}, or flags; see --help"
            )
        return COMMANDS[argv[0]](argv[1:])
    except MillraceError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1
    except MemoryError as error:
        print(f"error: {out_of_memory(one_line(error), MORE_MEMORY)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as interrupt:
        message = str(interrupt) or "what is done is found again when the command is repeated"
        print(f"stopped: {message}", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
