"""The program that the launcher of a Flex Template runs: it starts the template's pipeline.

The variable MILLRACE_PIPELINE names the pipeline. The launcher passes the template's parameters and
the flags of the Dataflow service as `--name=value`. Flags with an empty value count as not given.
Flags of the service that Beam does not know are dropped with a warning. The pipeline gets all other
flags, and rejects those that it does not know.
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
    """Return the command of the pipeline that the environment names.

    Args:
        environ: The variables of the environment.

    Raises:
        UsageError: MILLRACE_PIPELINE does not name a pipeline.
    """
    name = environ.get(VARIABLE, "")
    if name not in COMMANDS:
        raise UsageError(
            f"{VARIABLE}={name!r}: expected one of {', '.join(COMMANDS)}{suggest(name, COMMANDS)}: "
            "create the template with `make template PIPELINE=...`"
        )
    return COMMANDS[name]


def given(args: Iterable[str]) -> list[str]:
    """Return the arguments that have a value: a field left blank in the console arrives empty.

    White space and line ends around a value are dropped: they come from pasting it.
    """
    kept: list[str] = []
    for raw in args:
        arg = raw.strip()
        if arg.startswith("--"):
            flag, mark, value = arg.partition("=")
            arg = f"{flag}{mark}{value.strip()}"
        if arg == "" and kept and kept[-1].startswith("--") and "=" not in kept[-1]:
            kept.pop()
        elif not (arg.startswith("--") and arg.endswith("=") and arg.count("=") == 1):
            kept.append(arg)
    return kept


def as_switches(args: Iterable[str]) -> list[str]:
    """Turn Beam's switches from `--name=true` into the form that Beam takes: present or absent."""
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
    """Separate the arguments for the pipeline from the flags that only the service knows.

    A flag that neither the pipeline nor Beam knows belongs to the service, unless it is so similar
    to a flag of the pipeline that the user must have misspelled it. A field of the service's
    environment always belongs to the service, however similar it is.

    Args:
        args: The arguments of the program.

    Returns:
        The arguments for the pipeline, and the names of the flags that are dropped.
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
    """Start the pipeline that the environment names, and end the process with its exit code.

    Args:
        args: The arguments of the program.
        environ: The variables of the environment.

    Returns:
        The exit code, if no pipeline was started.
    """
    try:
        command = chosen(environ)
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    kept, dropped = without_the_services(as_switches(given(args)))
    if dropped:
        message = f"warning: {', '.join(dropped)}: neither the pipeline nor Beam has such a flag"
        print(message, file=sys.stderr)
    # Beam reads the arguments of the process too, when it creates options of its own.
    sys.argv[1:] = kept
    run_and_exit(command, kept)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], os.environ))
