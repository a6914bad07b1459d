"""The command line of `python -m resources plan | setup | status | cleanup`."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path

from common.command_line import CommandParser, names
from common.errors import suggest
from resources.config import CONFIG_NAME, PIPELINES
from resources.kinds.names import JOB, NAMES, REMOVABLE

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
# Names that stand for several pipelines each.
_GROUPS = {
    part: tuple(name for name in PIPELINES if part in name.split("_"))
    for part in ("batch", "stream", "local", "vertex")
}


def _list(text: str) -> tuple[str, ...]:
    return tuple(part for part in text.split(",") if part)


def _pipelines(text: str) -> tuple[str, ...]:
    chosen: dict[str, None] = {}
    for name in names(text):
        if name not in (*PIPELINES, *_GROUPS):
            raise argparse.ArgumentTypeError(
                f"unknown pipeline {name!r}{suggest(name, (*PIPELINES, *_GROUPS))}; choose from "
                f"{', '.join((*PIPELINES, *_GROUPS))}"
            )
        chosen |= dict.fromkeys(_GROUPS.get(name, (name,)))
    return tuple(chosen)


def _kinds(known: Sequence[str]) -> Callable[[str], tuple[str, ...]]:
    def parse(text: str) -> tuple[str, ...]:
        for name in names(text):
            if name not in known:
                raise argparse.ArgumentTypeError(
                    f"this command does not take the kind {name!r}{suggest(name, known)}; choose "
                    f"from {', '.join(known)}"
                )
        return names(text)

    return parse


def _rows(text: str) -> int:
    if not re.fullmatch(r"[1-9]\d{0,8}", text):
        raise argparse.ArgumentTypeError(f"expected 1 to 999999999 rows, got {text!r}")
    return int(text)


def _age(text: str) -> timedelta:
    found = re.fullmatch(r"(\d{1,6})([smhd])", text)
    if found is None:
        raise argparse.ArgumentTypeError(
            f"expected a duration such as 30m, 12h or 7d, got {text!r}"
        )
    return timedelta(seconds=int(found[1]) * _UNITS[found[2]])


def _seconds(text: str) -> float:
    if not re.fullmatch(r"\d{1,6}(\.\d+)?", text):
        raise argparse.ArgumentTypeError(f"expected a number of seconds, got {text!r}")
    return float(text)


def parse_arguments(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the command line.

    Args:
        argv: The arguments after `python -m resources`.

    Returns:
        The arguments, with the name of the command as `command`.

    Raises:
        UsageError: A command or a flag is missing, unknown or invalid.
    """
    return make_parser().parse_args(argv)


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the four commands."""
    parser = CommandParser(
        "resources", "Set up, inspect and remove the Google Cloud resources of the pipelines."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, about, known in (
        ("plan", "print what setup would do; exit with 3 if there is anything to do", NAMES),
        ("setup", "create the missing resources; can be run again", NAMES),
        ("status", "show resources, waiting messages and running jobs", (*NAMES, JOB)),
        ("cleanup", "print what would be removed; --yes removes it", REMOVABLE),
    ):
        command = commands.add_parser(name, help=about, description=about)
        _add_common(command, known)
        _ADDERS[name](command)
    return parser


def _add_common(command: argparse.ArgumentParser, known: Sequence[str]) -> None:
    add = command.add_argument
    add(
        "--config",
        type=Path,
        default=Path(CONFIG_NAME),
        metavar="FILE",
        help=f"configuration file (default: {CONFIG_NAME}, which may be missing)",
    )
    add(
        "--project",
        help="project id (default: from the configuration file, or else from the credentials)",
    )
    add(
        "--kinds",
        type=_kinds(known),
        metavar="A,B",
        help=f"act only on the given kinds; choose from {', '.join(known)}",
    )
    add(
        "--api_endpoints",
        type=_list,
        default=(),
        metavar="SERVICE=ADDRESS,...",
        help="private endpoints or emulators, such as bigquery=http://localhost:9050",
    )
    add(
        "--retry_seconds",
        type=_seconds,
        default=60.0,
        help="how long to retry transient errors, in seconds (default: 60)",
    )
    add("--debug", action="store_true", help="show tracebacks")


def _add_making(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add(
        "--model",
        metavar="PATH",
        help="model package to upload (default: from the configuration file)",
    )
    add(
        "--trusted_modules",
        type=_list,
        metavar="A,B",
        help="top-level Python modules that the package may import (default: from the "
        "configuration file, or else none)",
    )
    add(
        "--load_example",
        type=_rows,
        metavar="N",
        help="fill the source table with N example transactions",
    )


def _add_plan(command: argparse.ArgumentParser) -> None:
    _add_making(command)
    command.add_argument("--json", action="store_true", help="print JSON")


def _add_status(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--max_age",
        type=_age,
        default=timedelta(days=7),
        metavar="7d",
        help="warn about jobs older than this (default: 7d)",
    )
    command.add_argument("--json", action="store_true", help="print JSON")


def _add_cleanup(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("--yes", action="store_true", help="remove; without this flag nothing is changed")
    add(
        "--project_confirm",
        metavar="PROJECT",
        help="the project id, required if rows, files or waiting messages would be lost",
    )
    add(
        "--pipelines",
        type=_pipelines,
        metavar="A,B",
        help="remove the resources of these pipelines, except those that other pipelines need: "
        "names, or the groups batch, stream, local, vertex (default: all configured pipelines)",
    )
    add(
        "--jobs",
        type=names,
        default=(),
        metavar="A,B",
        help="stop only the jobs with these names or patterns (such as '*-test-*'); without "
        "--kinds, remove nothing else",
    )
    add(
        "--truncate",
        action="store_true",
        help="empty tables instead of removing them; without --kinds, act only on tables",
    )
    add("--cancel", action="store_true", help="cancel streaming jobs instead of draining them")
    add(
        "--wait",
        type=_age,
        default=timedelta(minutes=30),
        metavar="30m",
        help="how long to wait for jobs to end (default: 30m)",
    )


_ADDERS = {
    "plan": _add_plan,
    "setup": _add_making,
    "status": _add_status,
    "cleanup": _add_cleanup,
}
