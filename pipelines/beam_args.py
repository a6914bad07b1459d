"""Beam's own flags: checked for typing mistakes, completed for a run in this process."""

from __future__ import annotations

import importlib
import os
import re
from collections.abc import Sequence
from typing import Any, TypeVar, cast

from apache_beam.options.pipeline_options import (
    DirectOptions,
    GoogleCloudOptions,
    PipelineOptions,
    SetupOptions,
    StandardOptions,
    TestOptions,
)

from common.addresses import address_fault, path_fault
from common.errors import UsageError, one_line, suggest
from common.private_beam.any_runner import flag_parser
from pipelines.dataflow.job_name import job_name
from pipelines.options import all_flags
from pipelines.runners import IN_PROCESS, IN_PROCESS_STREAM, choose_runner, is_dataflow

_FOLDERS = ("--temp_location", "--staging_location", "--template_location")
_SECRET = re.compile(r"secret|password|token|connection_string|access_key|gbek")

_Options = TypeVar("_Options", bound=PipelineOptions)


class CachedOptions(PipelineOptions):
    """Pipeline options that build each of their views once.

    Beam asks for a view for every transform, hundreds of times per pipeline, and builds a parser
    each time: a third of the CPU time of building a pipeline. All views share their values.
    """

    def view_as(self, cls: type[_Options]) -> _Options:
        """Return the view of a class, which changes with these options."""
        views: dict[type[PipelineOptions], PipelineOptions]
        views = self.__dict__.setdefault("_views", {})
        if cls not in views:
            views[cls] = super().view_as(cls)
        return cast(_Options, views[cls])

    def __getstate__(self) -> dict[str, Any]:
        # Beam may pickle a changed copy of the values, which these views would not share.
        return {key: value for key, value in super().__getstate__().items() if key != "_views"}


def beam_options(
    args: Sequence[str], *, streaming: bool = False, name: str | None = None
) -> PipelineOptions:
    """Flags that are not ours -> Beam's options. Raises UsageError for one nobody knows.

    name: of the pipeline, by which its job is named where no flag does. Beam itself drops
    a flag that it does not know. Without `--runner` the pipeline runs in this process, a
    batch one with one worker thread a core. Raises UsageError for a runner that does not fit.
    """
    args = _with_value(args)
    _check_addresses(args)
    known, unknown = flag_parser().parse_known_args(args)
    # First: a runner that is refused may have flags of its own.
    runner = choose_runner(known.runner, streaming=streaming)
    _check_class(runner)
    _refuse(unknown)
    options = CachedOptions(list(args))
    _read_dry_run(options)
    standard, direct = options.view_as(StandardOptions), options.view_as(DirectOptions)
    if streaming:
        standard.streaming = True
    standard.runner = runner
    if runs_in_process(options) and not streaming and not any("direct_" in arg for arg in args):
        direct.direct_num_workers = os.cpu_count() or 1
        if direct.direct_num_workers > 1:
            direct.direct_running_mode = "multi_threading"
    google = options.view_as(GoogleCloudOptions)
    if name is not None and google.job_name is None:
        google.job_name = job_name(name)
    # The code is a package on the workers; what __main__ holds is nobody's concern.
    options.view_as(SetupOptions).save_main_session = False
    return options


def given_flags(args: Sequence[str]) -> dict[str, Any]:
    """Flags that are not ours -> those that say something, by Beam's names. Raises UsageError."""
    args = _with_value(args)
    _check_addresses(args)
    _refuse(flag_parser().parse_known_args(args)[1])
    found: dict[str, Any] = PipelineOptions(list(args)).get_all_options(drop_default=True)
    return found


def is_secret(option: str) -> bool:
    """The name of an option of Beam's -> whether its value is not to be shown."""
    return _SECRET.search(option) is not None


def is_dry_run(options: PipelineOptions) -> bool:
    """Whether the run is to be told, and not started."""
    return bool(options.view_as(TestOptions).dry_run)


def _check_class(runner: str) -> None:
    """A runner -> nothing. Raises UsageError for a path that leads to no class.

    Beam would look for it after a stream has claimed its subscription.
    """
    module, _, name = runner.rpartition(".")
    if not module:
        return
    try:
        getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise UsageError(
            f"--runner {runner}: expected one of Beam's names or the path of a class: "
            f"{one_line(error)}"
        ) from error


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


def runs_in_process(options: PipelineOptions) -> bool:
    """Whether the pipeline runs in this very process, or in children of it."""
    return options.view_as(StandardOptions).runner in (IN_PROCESS, IN_PROCESS_STREAM)


def runs_on_dataflow(options: PipelineOptions) -> bool:
    """Whether the pipeline becomes a job of Dataflow, which goes on after this process."""
    return is_dataflow(options.view_as(StandardOptions).runner)


def beam_flags() -> dict[str, bool]:
    """Nothing -> every flag of Beam and its runners, and whether it takes a value."""
    return flag_parser().flags()


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


def _refuse(unknown: Sequence[str]) -> None:
    """What no flag of Beam takes -> nothing if that is nothing. Raises UsageError."""
    flags = [arg.split("=")[0] for arg in unknown if arg.startswith("-")]
    if flags and flags[0] in all_flags():
        raise UsageError(f"{flags[0]} is a flag of other pipelines, not of this one: see --help")
    if flags:
        known = all_flags().union(beam_flags())
        raise UsageError(f"unknown flag {flags[0]}{suggest(flags[0], known)}: see --help")
    if unknown:
        raise UsageError(f"unexpected argument {unknown[0]!r}: every value belongs to a --flag")
