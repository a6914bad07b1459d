"""Beam's own flags: checked for typing mistakes, completed for a run in this process."""

from __future__ import annotations

import os
from collections.abc import Sequence

from apache_beam.options.pipeline_options import (
    DirectOptions,
    PipelineOptions,
    SetupOptions,
    StandardOptions,
    _BeamArgumentParser,
)

from model_handlers.errors import UsageError, nearest
from pipelines.options import all_flags

IN_PROCESS = "FnApiRunner"


def beam_options(args: Sequence[str]) -> PipelineOptions:
    """Flags that are not ours -> Beam's options. Raises UsageError for one nobody knows.

    Beam itself drops a flag that it does not know. Without `--runner` the pipeline
    runs in this process with one worker thread a core: DirectRunner would first try
    to download another runner.
    """
    _refuse_unknown(args)
    options = PipelineOptions(list(args))
    standard, direct = options.view_as(StandardOptions), options.view_as(DirectOptions)
    if standard.runner is None:
        standard.runner = IN_PROCESS
    if runs_in_process(options) and not any("direct_" in arg for arg in args):
        direct.direct_num_workers = os.cpu_count() or 1
        if direct.direct_num_workers > 1:
            direct.direct_running_mode = "multi_threading"
    # The code is a package on the workers; what __main__ holds is nobody's concern.
    options.view_as(SetupOptions).save_main_session = False
    return options


def runs_in_process(options: PipelineOptions) -> bool:
    """Whether the pipeline runs in this very process, or in children of it."""
    return bool(options.view_as(StandardOptions).runner.rsplit(".")[-1] == IN_PROCESS)


def _refuse_unknown(args: Sequence[str]) -> None:
    parser = _BeamArgumentParser(allow_abbrev=False)
    for kind in PipelineOptions.__subclasses__():
        kind._add_argparse_args(parser)
    _, unknown = parser.parse_known_args(list(args))
    flags = [arg.split("=")[0] for arg in unknown if arg.startswith("-")]
    if flags:
        known = {option for action in parser._actions for option in action.option_strings}
        raise UsageError(
            f"unknown flag {flags[0]}{nearest(flags[0], known | all_flags())}: see --help"
        )
    if unknown:
        raise UsageError(f"unexpected argument {unknown[0]!r}: every value belongs to a --flag")
