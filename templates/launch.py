"""What the launcher of a Flex Template runs: the pipeline that MILLRACE_PIPELINE names.

The launcher gives the template's parameters and the service's own flags as `--name=value`.
Those that were left empty count as not given; the service's that Beam does not know are
dropped with a warning. All others are the pipeline's: it refuses what it does not know.
"""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Iterable, Mapping, Sequence

from google.cloud.dataflow_v1beta3.types import FlexTemplateRuntimeEnvironment

from common.errors import UsageError, suggest
from pipelines.beam_args import beam_flags
from pipelines.command import Command, run_and_exit
from pipelines.launch.command import PIPELINES as COMMANDS
from pipelines.options import all_flags

VARIABLE = "MILLRACE_PIPELINE"


def chosen(environ: Mapping[str, str]) -> Command:
    """The environment -> the command that it names. Raises UsageError."""
    name = environ.get(VARIABLE, "")
    if name not in COMMANDS:
        raise UsageError(
            f"{VARIABLE}={name!r}: expected one of {', '.join(COMMANDS)}{suggest(name, COMMANDS)}: "
            "make the template with make template PIPELINE=..."
        )
    return COMMANDS[name]


def given(args: Iterable[str]) -> list[str]:
    """Arguments -> those with a value: a field of the console that nobody touched is empty."""
    kept: list[str] = []
    for arg in args:
        if arg == "" and kept and kept[-1].startswith("--") and "=" not in kept[-1]:
            kept.pop()
        elif not (arg.startswith("--") and arg.endswith("=") and arg.count("=") == 1):
            kept.append(arg)
    return kept


def as_switches(args: Iterable[str]) -> list[str]:
    """Arguments -> the same, with Beam's switches as it wants them: there, or not there."""
    kept, known = [], beam_flags()
    for arg in args:
        flag, _, value = arg.partition("=")
        opposite = f"--no_{flag.removeprefix('--')}"
        if known.get(flag, True) or value.lower() not in ("true", "false"):
            kept.append(arg)
        elif value.lower() == "true":
            kept.append(flag)
        elif opposite in known:
            kept.append(opposite)
    return kept


def without_the_services(args: Sequence[str]) -> tuple[list[str], list[str]]:
    """Arguments -> those for the pipeline, and flags that are nobody's but the service's.

    A flag that nobody knows is the service's, unless it is so near to one of ours that a user
    must have misspelt that; fields of the service's environment may be as near as they like.
    """
    known = all_flags().union(beam_flags())
    fields = {name.replace("_", "") for name in FlexTemplateRuntimeEnvironment.meta.fields}
    kept: list[str] = []
    dropped: list[str] = []
    is_dropped = False
    for arg in args:
        if arg.startswith("--"):
            flag = arg.partition("=")[0]
            is_field = flag.strip("-").replace("_", "").lower() in fields
            is_misspelt = difflib.get_close_matches(flag.lower(), all_flags(), n=1, cutoff=0.8)
            is_dropped = flag not in known and (is_field or not is_misspelt)
            if is_dropped:
                dropped.append(flag)
        if not is_dropped:
            kept.append(arg)
    return kept, dropped


def main(args: Sequence[str], environ: Mapping[str, str]) -> int:
    """Arguments and the environment -> the exit code, where no pipeline is started."""
    try:
        command = chosen(environ)
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    kept, dropped = without_the_services(as_switches(given(args)))
    if dropped:
        message = f"warning: {', '.join(dropped)}: neither the pipeline nor Beam has such a flag"
        print(message, file=sys.stderr)
    # Beam reads the process's arguments as well, where it makes options of its own.
    sys.argv[1:] = kept
    run_and_exit(command, kept)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], os.environ))
