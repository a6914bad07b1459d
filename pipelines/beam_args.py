"""Beam's own flags: checked for typing mistakes, completed for a run in this process."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from typing import Any, NoReturn

from apache_beam.options.pipeline_options import (
    DirectOptions,
    GoogleCloudOptions,
    PipelineOptions,
    SetupOptions,
    StandardOptions,
    TestOptions,
    _BeamArgumentParser,
)

from common.addresses import address_fault, path_fault
from common.errors import UsageError, suggest
from pipelines.options import all_flags
from transforms.provenance import utc_now

IN_PROCESS = "FnApiRunner"
# The one of Beam's own runners that reads Pub/Sub.
IN_PROCESS_STREAM = "apache_beam.runners.direct.direct_runner.BundleBasedDirectRunner"


# As the reference names them; `python -m resources` finds jobs by these names.
JOB_NAMES = {
    "batch_local": "pytorch-batch",
    "batch_vertex": "pytorch-batch-vertex",
    "stream_local": "pytorch-streaming",
    "stream_vertex": "pytorch-streaming-vertex",
    "replay": "pytorch-batch-replay",
}


_FOLDERS = ("--temp_location", "--staging_location", "--template_location")
_SECRET = re.compile(r"secret|password|token|connection_string|access_key|gbek")


def beam_options(
    args: Sequence[str], *, streaming: bool = False, name: str | None = None
) -> PipelineOptions:
    """Flags that are not ours -> Beam's options. Raises UsageError for one nobody knows.

    name: of the pipeline, by which its job is named where no flag does. Beam itself drops
    a flag that it does not know. Without `--runner` the pipeline runs in this process, a
    batch one with one worker thread a core: DirectRunner would first try to download
    another runner.
    """
    args = _with_value(args)
    _refuse_unknown(args)
    options = PipelineOptions(list(args))
    _read_dry_run(options)
    standard, direct = options.view_as(StandardOptions), options.view_as(DirectOptions)
    if streaming:
        standard.streaming = True
    _check_runner(standard.runner)
    if standard.runner in (None, "DirectRunner") and streaming:
        standard.runner = IN_PROCESS_STREAM
    if standard.runner is None:
        standard.runner = IN_PROCESS
    if runs_in_process(options) and not streaming and not any("direct_" in arg for arg in args):
        direct.direct_num_workers = os.cpu_count() or 1
        if direct.direct_num_workers > 1:
            direct.direct_running_mode = "multi_threading"
    if runs_in_process(options):
        keep_buffers_whole()
    google = options.view_as(GoogleCloudOptions)
    if name is not None and google.job_name is None:
        google.job_name = f"{JOB_NAMES[name]}-{utc_now():%Y%m%d-%H%M%S}"
    # The code is a package on the workers; what __main__ holds is nobody's concern.
    options.view_as(SetupOptions).save_main_session = False
    return options


def given_flags(args: Sequence[str]) -> dict[str, Any]:
    """Flags that are not ours -> those that say something, by Beam's names. Raises UsageError."""
    args = _with_value(args)
    _refuse_unknown(args)
    found: dict[str, Any] = PipelineOptions(list(args)).get_all_options(drop_default=True)
    return found


def is_secret(option: str) -> bool:
    """The name of an option of Beam's -> whether its value is not to be shown."""
    return _SECRET.search(option) is not None


def is_dry_run(options: PipelineOptions) -> bool:
    """Whether the run is to be told, and not started."""
    return bool(options.view_as(TestOptions).dry_run)


def _with_value(args: Sequence[str]) -> list[str]:
    """Flags -> the same, a `--dry_run` alone as `--dry_run=true`: Beam wants a value."""
    following = [*args[1:], "--"]
    return [
        "--dry_run=true" if arg == "--dry_run" and after.startswith("--") else arg
        for arg, after in zip(args, following, strict=False)
    ]


def _read_dry_run(options: PipelineOptions) -> None:
    """Beam takes any text for true. Raises UsageError."""
    test = options.view_as(TestOptions)
    text = str(test.dry_run).lower()
    if text not in ("true", "false"):
        raise UsageError(f"--dry_run: expected true or false, got {test.dry_run!r}")
    test.dry_run = text == "true"


def keep_buffers_whole() -> None:
    """Nothing -> Beam's runner in this process sends what workers put out when it is complete.

    With several workers a clock sends it every second as well, from another thread, while
    elements are added: those added meanwhile are lost (apache_beam/runners/worker/data_plane.py,
    TimeBasedBufferingClosableOutputStream; seen with Beam 2.77, hundreds of 200,000 elements).
    """
    from apache_beam.runners.portability.fn_api_runner import worker_handlers

    worker_handlers.DATA_BUFFER_TIME_LIMIT_MS = 10**9


def runs_in_process(options: PipelineOptions) -> bool:
    """Whether the pipeline runs in this very process, or in children of it."""
    runner = options.view_as(StandardOptions).runner
    return runner.rsplit(".")[-1] == IN_PROCESS or runner == IN_PROCESS_STREAM


def runs_on_dataflow(options: PipelineOptions) -> bool:
    """Whether the pipeline becomes a job of Dataflow, which goes on after this process."""
    runner = str(options.view_as(StandardOptions).runner).rsplit(".")[-1].lower()
    return runner in ("dataflow", "dataflowrunner")


def _check_runner(name: str | None) -> None:
    """A runner's name -> Beam has it, or it is the path of a class. Raises UsageError."""
    known = StandardOptions.KNOWN_RUNNER_NAMES
    # As Beam takes them: in any case, and without their last word.
    short = {
        text for runner in known for text in (runner.lower(), runner.lower()[: -len("runner")])
    }
    if name is not None and "." not in name and name.lower() not in short:
        raise UsageError(
            f"--runner {name}: expected one of {', '.join(known)}{suggest(name, known)}"
        )


class _Parser(_BeamArgumentParser):  # type: ignore[misc]
    """Beam's, which itself prints all flags and exits where a value is wrong."""

    def error(self, message: str) -> NoReturn:
        message = message.removeprefix("argument ")
        raise UsageError(message.replace("invalid loads value", "invalid JSON"))


def _parser() -> _Parser:
    """Nothing -> the parser of all flags of Beam and its runners."""
    parser = _Parser(allow_abbrev=False)
    for kind in PipelineOptions.__subclasses__():
        # Those of this project carry what nobody types.
        if kind.__module__.split(".")[0] != __package__:
            kind._add_argparse_args(parser)
    return parser


def beam_flags() -> dict[str, bool]:
    """Nothing -> every flag of Beam and its runners, and whether it takes a value."""
    return {flag: action.nargs != 0 for flag, action in _parser()._option_string_actions.items()}


def _check_addresses(args: Sequence[str]) -> None:
    """Flags -> nothing. Raises UsageError for an address that holds credentials."""
    flag = ""
    for arg in args:
        value = arg
        if arg.startswith("--"):
            flag, _, value = arg.partition("=")
        fault_of = path_fault if flag in _FOLDERS else address_fault
        if fault := fault_of(value):
            raise UsageError(f"{flag}: {fault}".removeprefix(": "))


def _refuse_unknown(args: Sequence[str]) -> None:
    _check_addresses(args)
    _, unknown = _parser().parse_known_args(list(args))
    flags = [arg.split("=")[0] for arg in unknown if arg.startswith("-")]
    if flags and flags[0] in all_flags():
        raise UsageError(f"{flags[0]} is a flag of other pipelines, not of this one: see --help")
    if flags:
        known = all_flags().union(beam_flags())
        raise UsageError(f"unknown flag {flags[0]}{suggest(flags[0], known)}: see --help")
    if unknown:
        raise UsageError(f"unexpected argument {unknown[0]!r}: every value belongs to a --flag")
