"""Start a pipeline on Dataflow, from this source or from a Flex Template, and follow the job.

python -m pipelines.launch batch_local --input_files gs://B/rows/ --model gs://B/model/ \
    --output_files gs://B/scored --project P --region R --temp_location gs://B/tmp \
    --template gs://B/templates/batch_local.json --wait
python -m pipelines.launch --attach JOB --project P --region R
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import NoReturn

from common.errors import suggest
from pipelines import batch_local, batch_vertex, stream_local, stream_vertex
from pipelines.command import Command, run_and_exit
from pipelines.options import CloudOptions
from pipelines.options.launch import AttachOptions, LaunchOptions

PIPELINES = {
    module.COMMAND.name: module.COMMAND
    for module in (batch_local, batch_vertex, stream_local, stream_vertex)
}
# The parser replaces %(prog)s with the command as it was typed.
ATTACH = Command(
    name="launch",
    about="Follow a Dataflow job to its end. To start a job, run %(prog)s NAME, "
    f"where NAME is one of {', '.join(PIPELINES)}; %(prog)s NAME --help lists its flags. Exit "
    "codes: 0 done; 1 failed; 2 invalid flag; 3 job cancelled; 4 job can no longer be monitored; "
    "130 interrupted with Ctrl-C (the job keeps running).",
    options=(AttachOptions, CloudOptions),
    run="pipelines.launch.run:attach",
    beam=False,
)
# The command as docs/flags.md shows it.
FLAGS = replace(
    ATTACH,
    about="`python -m pipelines.launch NAME` starts a pipeline on Dataflow. It also takes all "
    "flags of the pipeline and of Dataflow.",
    options=(LaunchOptions,),
)


def command(name: str) -> Command:
    """Return the command that starts the pipeline of that name on Dataflow."""
    pipeline = PIPELINES[name]
    return Command(
        name=f"launch {name}",
        about=f"{pipeline.about} This command runs it on Dataflow, from this source or from a "
        "template; --dry_run checks everything and prints the whole request, but starts nothing.",
        options=(LaunchOptions, *pipeline.options),
        run=f"pipelines.launch.run:{name}",
    )


def choose_command(argv: Sequence[str]) -> tuple[Command | None, Sequence[str]]:
    """Return the command that a command line names, and its arguments.

    Args:
        argv: The arguments of `python -m pipelines.launch`.

    Returns:
        The command, or None if no pipeline has the name, and the arguments for it.
    """
    if not argv:
        return ATTACH, ["--help"]
    if argv[0].startswith("-"):
        return ATTACH, argv
    return (command(argv[0]) if argv[0] in PIPELINES else None), argv[1:]


def main(argv: Sequence[str]) -> NoReturn:
    """Run a command line, and end the process with the exit code."""
    chosen, rest = choose_command(argv)
    if chosen is None:
        near = suggest(argv[0], PIPELINES)
        known = ", ".join(PIPELINES)
        sys.stderr.write(f"error: unknown pipeline {argv[0]!r}{near}; choose from {known}\n")
        sys.exit(2)
    run_and_exit(chosen, rest)
