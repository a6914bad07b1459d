"""Serve a model package: python -m serving --model_path build/example/model

`python -m serving run` is the same command. `deploy` puts a package behind a Vertex AI endpoint,
`undeploy` removes it, and `status` lists endpoints and their models. Exit codes: 0 success, or a
server that was stopped by a signal; 1 the command failed; 2 wrong flags; 130 Ctrl-C.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext

from cloud.proxies import spare_loopback
from common.errors import MillraceError, UsageError, one_line, suggest
from common.memory import MORE_MEMORY, out_of_memory
from common.retry_notices import print_retries
from common.terminal import print_error


def run(argv: Sequence[str]) -> int:
    """Run a server with these flags until it is stopped, and return the exit code.

    Raises:
        UsageError: If a flag is wrong.
        MillraceError: If the server cannot listen on its address, or cannot read a wheel.
    """
    from serving.listening import listen
    from serving.settings import parse_settings

    settings = parse_settings(argv)
    listener = listen(settings.host, settings.port)
    # Imported only now, so that a wrong flag or a port in use is reported at once: importing torch
    # and Beam takes seconds.
    from serving.fetch import extra_packages
    from serving.server import serve

    with extra_packages(settings.extra_packages) if settings.extra_packages else nullcontext():
        return serve(settings, listener)


def deploy(argv: Sequence[str]) -> int:
    """Deploy a package to a Vertex AI endpoint, and return the exit code.

    Raises:
        MillraceError: If a flag is wrong or a step of the deployment fails.
    """
    from serving.deploy.flags import parse_deploy

    args = parse_deploy(argv)
    # Imported only now, so that a wrong flag is reported at once: Google's clients load slowly.
    from serving.deploy.run import deploy

    return deploy(args)


def undeploy(argv: Sequence[str]) -> int:
    """Remove models from a Vertex AI endpoint, and return the exit code.

    Raises:
        MillraceError: If a flag is wrong or a model cannot be removed.
    """
    from serving.deploy.flags import parse_undeploy

    args = parse_undeploy(argv)
    from serving.deploy.undeploy import undeploy

    return undeploy(args)


def status(argv: Sequence[str]) -> int:
    """Print the Vertex AI endpoints and their models, and return the exit code.

    Raises:
        MillraceError: If a flag is wrong or the endpoints cannot be read.
    """
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
    """Run the command that the command line names, `run` by default, and return the exit code."""
    spare_loopback()
    try:
        if not argv or argv[0].startswith("-"):
            return run(argv)
        if argv[0] not in COMMANDS:
            raise UsageError(
                f"unknown command {argv[0]!r}{suggest(argv[0], COMMANDS)}; choose from "
                f"{', '.join(COMMANDS)}, or pass only flags to run the server; see --help"
            )
        with print_retries(sys.stderr):
            return COMMANDS[argv[0]](argv[1:])
    except MillraceError as error:
        print_error(error)
        return 2 if isinstance(error, UsageError) else 1
    except MemoryError as error:
        print_error(out_of_memory(one_line(error), MORE_MEMORY))
        return 1
    except KeyboardInterrupt as interrupt:
        message = (
            str(interrupt) or "run the command again to continue; no finished step is repeated"
        )
        print(f"stopped: {message}", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
