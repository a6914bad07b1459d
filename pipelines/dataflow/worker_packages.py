"""What Dataflow's workers install when they start, if no flag names an image that has it already.

Beam stages a requirements file and a wheel of Millrace. Beam's container has Beam, so that the
requirements leave it out.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryDirectory

from apache_beam.options.pipeline_options import (
    DebugOptions,
    GoogleCloudOptions,
    PipelineOptions,
    SetupOptions,
    StandardOptions,
    WorkerOptions,
)
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from common.errors import UsageError, one_line
from pipelines.dataflow.own_wheel import own_distribution, wheel_name, write_wheel
from pipelines.options import DeviceOptions
from pipelines.options.flag import Parsed

TORCH_INDEX = "https://download.pytorch.org/whl/cpu"
# The extras that a worker may need. As in the images, those of the server and of setup are not.
_EXTRAS = frozenset({"safetensors", "delta", "iceberg"})
_IMAGE = "--sdk_container_image IMAGE (`make image` builds one)"


def installs_packages(options: PipelineOptions) -> bool:
    """Return whether the workers of a job install Millrace, because no flag names an image."""
    return not options.view_as(WorkerOptions).sdk_container_image


def names_accelerator(options: PipelineOptions) -> bool:
    """Return whether a flag of Beam or Dataflow requests workers with a GPU."""
    given = [
        *(options.view_as(StandardOptions).resource_hints or ()),
        *(options.view_as(GoogleCloudOptions).dataflow_service_options or ()),
        # The launcher of Flex Templates passes service options as experiments.
        *(options.view_as(DebugOptions).experiments or ()),
    ]
    return any("accelerator" in text for text in given)


def check_workers_packages(parsed: Parsed, options: PipelineOptions) -> None:
    """Check that the workers of a Dataflow job can install what they need.

    Args:
        parsed: All flags of the run.
        options: Beam's options of the run.

    Raises:
        UsageError: The workers need an image, or Millrace is not installed here.
    """
    if not installs_packages(options):
        return
    setup = options.view_as(SetupOptions)
    # Beam builds an image before the start, by a machine that may have a public address.
    is_prebuilt = setup.prebuild_sdk_container_engine is not None
    if options.view_as(WorkerOptions).use_public_ips is False and not is_prebuilt:
        raise UsageError(
            "--no_use_public_ips: workers without public addresses cannot install Millrace's wheel "
            f"and torch when they start: add {_IMAGE}, or leave out --no_use_public_ips"
        )
    device = parsed.find(DeviceOptions)
    if device is not None and (device.device.startswith("cuda") or names_accelerator(options)):
        raise UsageError(
            "without an image, workers install the CPU build of torch, which uses no GPU: add "
            "--sdk_container_image IMAGE (`make image TORCH=cuda` builds one), or request no GPU"
        )
    if setup.requirements_cache not in (None, "skip"):
        raise UsageError(
            f"--requirements_cache {setup.requirements_cache}: without an image, workers download "
            f"their packages when they start: leave it out, or add {_IMAGE}"
        )
    installs(options)


def installs(options: PipelineOptions) -> list[str]:
    """Return what the workers of a job install: lines of a requirements file, then wheels.

    Args:
        options: Beam's options of the run.

    Returns:
        Nothing if the workers have an image.

    Raises:
        UsageError: Millrace is not installed here, or a requirements file cannot be read.
    """
    if not installs_packages(options):
        return []
    wheels = [os.path.basename(path) for path in _extra(options)]
    return [*_requirements(options), *(wheels if _has_own(wheels) else [wheel_name(), *wheels])]


@contextmanager
def staging(options: PipelineOptions) -> Iterator[None]:
    """Let Beam stage what the workers install, if a pipeline is submitted in the block.

    Args:
        options: Beam's options of the run, which are changed.

    Raises:
        UsageError: Millrace is not installed here, or a requirements file cannot be read.
    """
    if not installs_packages(options):
        yield
        return
    setup, extra = options.view_as(SetupOptions), _extra(options)
    with TemporaryDirectory(prefix="millrace-workers-", ignore_cleanup_errors=True) as folder:
        if not _has_own(extra):
            # It comes first, because the wheels of the user may need Millrace.
            setup.extra_packages = [str(write_wheel(Path(folder))), *extra]
        requirements = Path(folder) / "requirements.txt"
        requirements.write_text("\n".join([*_requirements(options), ""]))
        setup.requirements_file = str(requirements)
        # Beam would download each line with pip here, and not find torch's index.
        setup.requirements_cache = "skip"
        yield


def own_requirements() -> list[str]:
    """Return the lines of a requirements file with what Millrace needs besides Beam.

    Each package has the version that is installed here. PyTorch's own index has the CPU build.

    Raises:
        UsageError: Millrace is not installed here.
    """
    name, extras = own_distribution().name, ",".join(sorted(_EXTRAS))
    pins = versions(f"{name}[{extras}]", without=frozenset({"apache-beam"}))
    del pins[name]
    pins["torch"] = f"{Version(pins['torch']).public}+cpu"
    return [
        f"--extra-index-url {TORCH_INDEX}",
        *(f"{package}=={pins[package]}" for package in sorted(pins)),
    ]


def versions(root: str, *, without: frozenset[str] = frozenset()) -> dict[str, str]:
    """Return the installed version of each package that a package needs, and its own.

    Packages that are not installed here are left out: pip chooses their versions on the worker.

    Args:
        root: The package, such as `millrace[delta]`.
        without: Packages that are left out, with what only they need.
    """
    found: dict[str, str] = {}
    waiting, seen = [Requirement(root)], set()
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        key = (name, frozenset(requirement.extras))
        if name in without or key in seen:
            continue
        seen.add(key)
        try:
            distribution = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue
        found[name] = distribution.version
        needed = map(Requirement, distribution.requires or ())
        waiting += [new for new in needed if _applies(new, name, requirement.extras)]
    return found


def _applies(requirement: Requirement, of: str, extras: set[str]) -> bool:
    """Return whether a worker needs a requirement of a package with these extras."""
    if requirement.marker is None:
        return True
    environment = {
        **{key: str(value) for key, value in default_environment().items()},
        "os_name": "posix",
        "sys_platform": "linux",
        # torch's CUDA build needs CUDA's packages on Linux, the CPU build on no platform.
        "platform_system": "" if of == "torch" else "Linux",
        "platform_machine": "x86_64",
    }
    return any(
        requirement.marker.evaluate({**environment, "extra": extra}) for extra in (*extras, "")
    )


def _requirements(options: PipelineOptions) -> list[str]:
    """Return the lines of the requirements file, with those of the user's own at the end."""
    path = options.view_as(SetupOptions).requirements_file
    if path is None:
        return own_requirements()
    try:
        lines = Path(path).read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--requirements_file {path} cannot be read: {one_line(error)}") from error
    return [*own_requirements(), *(line for line in map(str.strip, lines) if line)]


def _extra(options: PipelineOptions) -> list[str]:
    return list(options.view_as(SetupOptions).extra_packages or ())


def _has_own(paths: list[str]) -> bool:
    """Return whether the user passes a wheel of Millrace."""
    return any(os.path.basename(path).startswith("millrace-") for path in paths)
