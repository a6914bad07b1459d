"""Beam's own flags: rejected if misspelled, and completed for a run in this process."""

from __future__ import annotations

import importlib
import os
import re
from collections.abc import Sequence
from typing import Any, TypeVar, cast

from apache_beam.options.pipeline_options import (
    DebugOptions,
    DirectOptions,
    FlinkRunnerOptions,
    GoogleCloudOptions,
    PipelineOptions,
    PortableOptions,
    SetupOptions,
    StandardOptions,
    TestOptions,
)
from apache_beam.runners.runner import PipelineRunner

from common.addresses import address_fault, path_fault
from common.errors import UsageError, one_line, suggest
from common.private_beam.any_runner import flag_parser
from pipelines.dataflow.job_name import job_name
from pipelines.options import all_flags
from pipelines.runners import IN_PROCESS, choose_runner, is_dataflow

_FOLDERS = ("--temp_location", "--staging_location", "--template_location")
_SECRET = re.compile(r"secret|password|token|connection_string|access_key|gbek")

_Options = TypeVar("_Options", bound=PipelineOptions)


class CachedOptions(PipelineOptions):
    """Pipeline options that build each of their views once.

    Beam requests a view for every transform, hundreds of times per pipeline, and builds a parser
    each time. That took a third of the CPU time of building a pipeline. All views share their
    values.
    """

    def view_as(self, cls: type[_Options]) -> _Options:
        """Return the view of a class. Its values are those of these options."""
        views: dict[type[PipelineOptions], PipelineOptions]
        views = self.__dict__.setdefault("_views", {})
        if cls not in views:
            views[cls] = super().view_as(cls)
        return cast(_Options, views[cls])

    def __getstate__(self) -> dict[str, Any]:
        # Beam removes what must not be sent to a worker. The views would still hold it.
        return {key: value for key, value in super().__getstate__().items() if key != "_views"}


def beam_options(
    args: Sequence[str], *, streaming: bool = False, name: str | None = None
) -> PipelineOptions:
    """Return Beam's options for the flags that no options class declares.

    Without `--runner`, the pipeline runs in this process. A batch pipeline then has one worker
    thread per core.

    Args:
        args: The flags of Beam and its runners.
        streaming: Whether the pipeline is a stream.
        name: The pipeline, from which the job gets its name unless `--job_name` is given.

    Raises:
        UsageError: If Beam does not know a flag (Beam itself would ignore it), if the runner
            does not exist or cannot run the pipeline, or if an address holds credentials.
    """
    args = _with_value(args)
    _check_addresses(args)
    known, unknown = flag_parser().parse_known_args(args)
    # Before unknown flags are rejected: a rejected runner may have flags that Beam does not know.
    runner = choose_runner(known.runner, streaming=streaming)
    _check_class(runner)
    _refuse(unknown)
    options = CachedOptions(list(args))
    _read_dry_run(options)
    standard, direct = options.view_as(StandardOptions), options.view_as(DirectOptions)
    if direct.direct_num_workers < 0:
        raise UsageError(
            f"--direct_num_workers must be at least 0, got {direct.direct_num_workers}"
        )
    standard.runner = runner
    if streaming:
        standard.streaming = True
        if runs_in_process(options):
            _check_stream_here(direct)
    if runs_in_process(options) and not streaming and not any("direct_" in arg for arg in args):
        direct.direct_num_workers = os.cpu_count() or 1
        if direct.direct_num_workers > 1:
            direct.direct_running_mode = "multi_threading"
    google = options.view_as(GoogleCloudOptions)
    if name is not None and google.job_name is None:
        google.job_name = job_name(name)
    # The code is installed on the workers as a package, so they do not need the state of __main__.
    options.view_as(SetupOptions).save_main_session = False
    return options


def _check_stream_here(direct: DirectOptions) -> None:
    """Raise UsageError for flags with which FnApiRunner does not run a stream to its end."""
    if direct.direct_num_workers != 1:
        raise UsageError(
            f"--direct_num_workers must be 1 for a stream, got {direct.direct_num_workers}: "
            f"with several workers, Beam's {IN_PROCESS} forgets work that a step puts off, so a "
            "stream would end at once; use --stream_readers to receive more messages"
        )
    if direct.direct_running_mode == "multi_processing":
        raise UsageError(
            "--direct_running_mode must not be multi_processing for a stream, which would not know "
            "what its worker process has done: leave it out, or use --runner PrismRunner"
        )


def given_flags(args: Sequence[str]) -> dict[str, Any]:
    """Return the flags of Beam that do not have their default value, by Beam's option names.

    Raises:
        UsageError: If Beam does not know a flag, or if an address holds credentials.
    """
    args = _with_value(args)
    _check_addresses(args)
    _refuse(flag_parser().parse_known_args(args)[1])
    found: dict[str, Any] = PipelineOptions(list(args)).get_all_options(drop_default=True)
    return found


def is_secret(option: str) -> bool:
    """Return whether the value of a Beam option must not be shown."""
    return _SECRET.search(option) is not None


def is_dry_run(options: PipelineOptions) -> bool:
    """Return whether the run must be printed and not started."""
    return bool(options.view_as(TestOptions).dry_run)


def _check_class(runner: str) -> None:
    """Raise UsageError if a runner is given by a path at which there is no class of a runner.

    Beam would look for the class only after a stream has claimed its subscription.
    """
    module, _, name = runner.rpartition(".")
    if not module:
        return
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise UsageError(
            f"--runner {runner} must be the name of a Beam runner or the path of a class: "
            f"{one_line(error)}"
        ) from error
    if not (isinstance(found, type) and issubclass(found, PipelineRunner)):
        raise UsageError(
            f"--runner {runner} must be the name of a Beam runner or the path of a class: it is "
            "not a subclass of apache_beam.runners.PipelineRunner"
        )


def _with_value(args: Sequence[str]) -> list[str]:
    """Return the flags with `--dry_run=true` for a bare `--dry_run`: Beam requires a value."""
    following = [*args[1:], "--"]
    return [
        "--dry_run=true" if arg == "--dry_run" and after.startswith("--") else arg
        for arg, after in zip(args, following, strict=False)
    ]


def _read_dry_run(options: PipelineOptions) -> None:
    """Set dry_run to a truth value, or raise UsageError. Beam would take any text for true."""
    test = options.view_as(TestOptions)
    text = str(test.dry_run).lower()
    if text not in ("true", "false"):
        raise UsageError(f"--dry_run must be true or false, got {test.dry_run!r}")
    test.dry_run = text == "true"


def runs_in_process(options: PipelineOptions) -> bool:
    """Return whether the pipeline runs in this process or in its child processes."""
    return options.view_as(StandardOptions).runner == IN_PROCESS


def shares_process(options: PipelineOptions) -> bool:
    """Return whether the workers are threads of this process, whatever the runner is."""
    if runs_in_process(options):
        return True
    runner = str(options.view_as(StandardOptions).runner)
    # Prism, and Flink if Beam starts it, have such workers by default.
    master = options.view_as(FlinkRunnerOptions).flink_master
    local = runner == "PrismRunner" or (runner == "FlinkRunner" and master.startswith("["))
    kind = str(options.view_as(PortableOptions).environment_type or (local and "LOOPBACK")).upper()
    processes = "use_loopback_process_worker=True"
    return kind == "LOOPBACK" and processes not in (options.view_as(DebugOptions).experiments or ())


def runs_on_dataflow(options: PipelineOptions) -> bool:
    """Return whether the pipeline becomes a Dataflow job, which outlives this process."""
    return is_dataflow(options.view_as(StandardOptions).runner)


def beam_flags() -> dict[str, bool]:
    """Return every flag of Beam and its runners, and whether it takes a value."""
    return flag_parser().flags()


def _check_addresses(args: Sequence[str]) -> None:
    """Raise UsageError if the value of a flag is an address that holds credentials."""
    flag = ""
    for arg in args:
        value = arg
        if arg.startswith("--"):
            flag, _, value = arg.partition("=")
        fault_of = path_fault if flag in _FOLDERS else address_fault
        if fault := fault_of(value):
            raise UsageError(f"{flag}: {fault}".removeprefix(": "))


def _refuse(unknown: Sequence[str]) -> None:
    """Raise UsageError if there are arguments that Beam does not know."""
    flags = [arg.split("=")[0] for arg in unknown if arg.startswith("-")]
    if flags and flags[0] in all_flags():
        raise UsageError(
            f"this pipeline does not take {flags[0]}, which belongs to other pipelines: see --help"
        )
    if flags:
        known = all_flags().union(beam_flags())
        raise UsageError(f"unknown flag {flags[0]}{suggest(flags[0], known)}: see --help")
    if unknown:
        raise UsageError(f"unexpected argument {unknown[0]!r}: put a --flag before each value")
