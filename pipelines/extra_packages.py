"""`--extra_packages`: bring the user's own code to a run in this process, or to its workers.

In this process and its worker processes, the modules of the wheels are importable until the run
ends. Beam stages the wheels for workers elsewhere, which install them when they start.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from common.errors import UsageError, one_line
from model_handlers.wheels import importable, read_wheels, refuse_unfit
from pipelines.options import CloudOptions, ModelOptions
from pipelines.options.flag import Parsed
from pipelines.options.launch import LaunchOptions

if TYPE_CHECKING:
    from apache_beam.options.pipeline_options import PipelineOptions

_FLAG = "--extra_packages"


def packages_of(parsed: Parsed) -> tuple[str, ...]:
    """Return the wheels that a command line names."""
    model = parsed.find(ModelOptions)
    return (model.extra_packages or ()) if model else ()


@contextmanager
def with_packages(parsed: Parsed) -> Iterator[None]:
    """Check the wheels of a command line, and make their modules importable in the block.

    If the workers are elsewhere, wheels that fit only the workers are left out. With a Flex
    Template nothing is made importable: its launcher does that.

    Raises:
        UsageError: A wheel does not exist, is not a wheel, or cannot be used.
    """
    paths = packages_of(parsed)
    launch = parsed.find(LaunchOptions)
    if launch and launch.template:
        _check_buckets(paths)
        yield
        return
    with TemporaryDirectory(prefix="millrace-wheels-", ignore_cleanup_errors=True) as folder:
        wheels = read_wheels(_local(paths, Path(folder), parsed))
        if launch or _is_elsewhere(parsed):
            wheels = [wheel for wheel in wheels if wheel.fits]
        refuse_unfit(wheels)
        with importable(wheels):
            yield


def stage(parsed: Parsed, options: PipelineOptions) -> None:
    """Let Beam stage the wheels of a command line for workers elsewhere.

    Args:
        parsed: All flags of the run.
        options: Beam's options of the run, which are changed.
    """
    from apache_beam.options.pipeline_options import SetupOptions

    paths = packages_of(parsed)
    if paths:
        setup = options.view_as(SetupOptions)
        setup.extra_packages = [*(setup.extra_packages or ()), *paths]


def _check_buckets(paths: Sequence[str]) -> None:
    for path in paths:
        if "://" not in path:
            raise UsageError(
                f"{_FLAG} {path}: the launcher of a template cannot reach the files of this "
                "machine: copy the wheel to a bucket, or build it into the image with "
                "`make template EXTRA=...`"
            )


def _is_elsewhere(parsed: Parsed) -> bool:
    """Return whether a command line starts a Dataflow job."""
    from pipelines.beam_args import given_flags
    from pipelines.runners import is_dataflow

    return is_dataflow(given_flags(parsed.beam_args).get("runner"))


def _local(paths: Sequence[str], folder: Path, parsed: Parsed) -> Iterator[str]:
    """Yield the path of each wheel on this machine; those in buckets are copied to a folder."""
    if any("://" in path for path in paths):
        from cloud.endpoints import Endpoints
        from pipelines.cloud_access import open_storage

        endpoints = Endpoints.resolve(parsed.get(CloudOptions).api_endpoints or ())
        open_storage(endpoints, needed=True)
    for path in paths:
        yield _copied(path, folder) if "://" in path else path


def _copied(path: str, folder: Path) -> str:
    """Copy a wheel to a folder, and return its path there."""
    from apache_beam.io.filesystem import CompressionTypes
    from apache_beam.io.filesystems import FileSystems

    target = folder / os.path.basename(path)
    try:
        with FileSystems.open(path, compression_type=CompressionTypes.UNCOMPRESSED) as source:
            target.write_bytes(source.read())
    except Exception as error:
        # Filesystems raise many kinds of exceptions for a missing file.
        raise UsageError(f"{_FLAG} {path} cannot be read: {one_line(error)}") from error
    return str(target)
