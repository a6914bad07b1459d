"""Start a pipeline on Dataflow, from this source or a Flex Template, and follow it.

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
# Its parser puts what was typed for %(prog)s.
ATTACH = Command(
    name="launch",
    about="Follows a job of Dataflow to its end. To start one: %(prog)s NAME, "
    f"with NAME one of {', '.join(PIPELINES)}; NAME --help lists its flags. Exit codes: 0 done, "
    "1 failed, 2 wrong flags, 3 the job was cancelled, 4 it can be followed no more, 130 Ctrl-C, "
    "which leaves it running.",
    options=(AttachOptions, CloudOptions),
    run="pipelines.launch.run:attach",
    beam=False,
)
# For the docs.
FLAGS = replace(
    ATTACH,
    about="`python -m pipelines.launch NAME` starts a pipeline on Dataflow. It takes all flags of "
    "the pipeline and of Dataflow as well.",
    options=(LaunchOptions,),
)


def command(name: str) -> Command:
    """A pipeline's name -> the command that starts it on Dataflow."""
    pipeline = PIPELINES[name]
    return Command(
        name=f"launch {name}",
        about=f"{pipeline.about} Started on Dataflow, from this source or a template; --dry_run "
        "checks everything, prints the whole request and starts nothing.",
        options=(LaunchOptions, *pipeline.options),
        run=f"pipelines.launch.run:{name}",
    )


def choose_command(argv: Sequence[str]) -> tuple[Command | None, Sequence[str]]:
    """A command line -> the command and its arguments; None where its pipeline is none of ours."""
    if not argv:
        return ATTACH, ["--help"]
    if argv[0].startswith("-"):
        return ATTACH, argv
    return (command(argv[0]) if argv[0] in PIPELINES else None), argv[1:]


def main(argv: Sequence[str]) -> NoReturn:
    """A command line -> the process ends with the command's exit code."""
    chosen, rest = choose_command(argv)
    if chosen is None:
        near = suggest(argv[0], PIPELINES)
        known = ", ".join(PIPELINES)
        sys.stderr.write(f"error: {argv[0]!r} is no pipeline{near}: expected one of {known}\n")
        sys.exit(2)
    run_and_exit(chosen, rest)
