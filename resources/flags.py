"""The command line: python -m resources plan | setup | status | cleanup."""

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
# Names for several pipelines, beside their own.
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
                f"{name!r} is no pipeline{suggest(name, (*PIPELINES, *_GROUPS))}: expected some of "
                f"{', '.join((*PIPELINES, *_GROUPS))}"
            )
        chosen |= dict.fromkeys(_GROUPS.get(name, (name,)))
    return tuple(chosen)


def _kinds(known: Sequence[str]) -> Callable[[str], tuple[str, ...]]:
    def parse(text: str) -> tuple[str, ...]:
        for name in names(text):
            if name not in known:
                raise argparse.ArgumentTypeError(
                    f"{name!r} is no kind that this command takes{suggest(name, known)}: expected "
                    f"some of {', '.join(known)}"
                )
        return names(text)

    return parse


def _rows(text: str) -> int:
    if not re.fullmatch(r"[1-9]\d{0,8}", text):
        raise argparse.ArgumentTypeError(f"expected a number of rows from 1, got {text!r}")
    return int(text)


def _age(text: str) -> timedelta:
    found = re.fullmatch(r"(\d{1,6})([smhd])", text)
    if found is None:
        raise argparse.ArgumentTypeError(f"expected a time as 30m, 12h or 7d, got {text!r}")
    return timedelta(seconds=int(found[1]) * _UNITS[found[2]])


def _seconds(text: str) -> float:
    if not re.fullmatch(r"\d{1,6}(\.\d+)?", text):
        raise argparse.ArgumentTypeError(f"expected seconds, got {text!r}")
    return float(text)


def parse_arguments(argv: Sequence[str]) -> argparse.Namespace:
    """The command line -> its arguments, with `command`. Raises UsageError."""
    return make_parser().parse_args(argv)


def make_parser() -> argparse.ArgumentParser:
    """Nothing -> the parser of the four commands."""
    parser = CommandParser(
        "resources", "Set up, look at and remove what the pipelines need of Google Cloud."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, about, known in (
        ("plan", "what setup would do; exit code 3 if there is something to do", NAMES),
        ("setup", "make what is missing; can be run again", NAMES),
        ("status", "what there is, what waits and what runs", (*NAMES, JOB)),
        ("cleanup", "what would be removed; --yes removes it", REMOVABLE),
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
        help=f"default: {CONFIG_NAME}, which may be missing",
    )
    add("--project", help="default: the config's, else that of the credentials")
    add(
        "--kinds",
        type=_kinds(known),
        metavar="A,B",
        help=f"only these: {', '.join(known)}",
    )
    add(
        "--api_endpoints",
        type=_list,
        default=(),
        metavar="SERVICE=ADDRESS,...",
        help="private endpoints or emulators, as in bigquery=http://localhost:9050",
    )
    add(
        "--retry_seconds",
        type=_seconds,
        default=60.0,
        help="how long errors that pass by themselves are waited out (default: 60)",
    )
    add("--debug", action="store_true", help="show tracebacks")


def _add_making(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("--model", metavar="PATH", help="model package to upload (default: the config's)")
    add(
        "--trusted_modules",
        type=_list,
        metavar="A,B",
        help="top-level Python modules that the package's architecture may import (default: the "
        "config's, else none)",
    )
    add(
        "--load_example",
        type=_rows,
        metavar="N",
        help="fill the source table with N example transactions",
    )


def _add_plan(command: argparse.ArgumentParser) -> None:
    _add_making(command)
    command.add_argument("--json", action="store_true", help="for programs")


def _add_status(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--max_age",
        type=_age,
        default=timedelta(days=7),
        metavar="7d",
        help="warn of jobs that are older (default: 7d)",
    )
    command.add_argument("--json", action="store_true", help="for programs")


def _add_cleanup(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("--yes", action="store_true", help="really remove; without it nothing is touched")
    add(
        "--project_confirm",
        metavar="NAME",
        help="the project's name, asked for where rows, files or waiting messages would be lost",
    )
    add(
        "--pipelines",
        type=_pipelines,
        metavar="A,B",
        help="only what these alone need: names, or batch, stream, local, vertex",
    )
    add(
        "--jobs",
        type=names,
        default=(),
        metavar="A,B",
        help="only jobs of these names, or of a pattern as '*-test-*'; nothing else but them",
    )
    add(
        "--truncate",
        action="store_true",
        help="empty tables instead of removing them; without --kinds tables alone",
    )
    add("--cancel", action="store_true", help="cancel streaming jobs instead of draining them")
    add(
        "--wait",
        type=_age,
        default=timedelta(minutes=30),
        metavar="30m",
        help="how long jobs may take to end (default: 30m)",
    )


_ADDERS = {
    "plan": _add_plan,
    "setup": _add_making,
    "status": _add_status,
    "cleanup": _add_cleanup,
}
