"""Presets: the workers and options of a Dataflow job for which no flag was given.

`complete` turns the flags that were given, Dataflow's and the launch command's, into all flags of
the job. Flags that were given always win over a preset.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cloud.regions import region_fault
from common.errors import UsageError
from pipelines.dataflow.facts import labels_of
from pipelines.dataflow.machine_types import ONE_PROCESS
from pipelines.options.launch import AT_LEAST_ONCE, LaunchOptions

_DRIVER = "install-nvidia-driver"
MPS = "use_nvidia_mps"
# The machine family for each type of GPU. A2, A3 and G2 machines come with their GPUs; GPUs are
# attached only to N1 machines.
_MACHINES = {
    "nvidia-l4": "g2-",
    "nvidia-tesla-t4": "n1-",
    "nvidia-tesla-p4": "n1-",
    "nvidia-tesla-p100": "n1-",
    "nvidia-tesla-v100": "n1-",
    "nvidia-tesla-a100": "a2-",
    "nvidia-a100-80gb": "a2-",
    "nvidia-h100-80gb": "a3-",
}


@dataclass(frozen=True, kw_only=True)
class Preset:
    """The workers of a job.

    Attributes:
        fewest: The minimum number of workers; None leaves it to Dataflow.
        most: The maximum number of workers.
        accelerator: The GPUs of each worker, as TYPE:COUNT.
        flexrs_goal: The goal of FlexRS scheduling.
    """

    fewest: int | None
    most: int
    machine_type: str
    disk_size_gb: int = 30
    accelerator: str | None = None
    flexrs_goal: str | None = None


# The jobs of the reference pipelines use n1-standard-4, with 2 to 10 workers for batch and 2 to 20
# for streams.
_PRESETS = {
    ("batch", False): Preset(fewest=2, most=10, machine_type="n1-standard-4"),
    ("stream", True): Preset(fewest=2, most=20, machine_type="n1-standard-4"),
    # The image with CUDA needs 10 GB of disk.
    ("gpu", False): Preset(
        fewest=1, most=4, machine_type="g2-standard-4", disk_size_gb=50, accelerator="nvidia-l4:1"
    ),
    ("gpu", True): Preset(
        fewest=1, most=4, machine_type="g2-standard-4", disk_size_gb=50, accelerator="nvidia-l4:1"
    ),
    # FlexRS chooses the initial number of workers itself.
    ("cheap", False): Preset(
        fewest=None, most=10, machine_type="n1-standard-2", flexrs_goal="COST_OPTIMIZED"
    ),
    ("cheap", True): Preset(fewest=1, most=5, machine_type="n1-standard-2"),
}


def choose_preset(launch: LaunchOptions, pipeline: str) -> Preset:
    """Return the preset of a job.

    Args:
        launch: The flags of the launch command.
        pipeline: The name of the pipeline, such as `batch_local`.

    Raises:
        UsageError: The pipeline cannot use the preset.
    """
    streaming = pipeline.startswith("stream")
    name = launch.preset or ("stream" if streaming else "batch")
    if (name, streaming) not in _PRESETS:
        other = "stream" if name == "batch" else "batch"
        usable = (other, "cheap") if pipeline.endswith("vertex") else (other, "gpu", "cheap")
        raise UsageError(
            f"--preset {name} does not apply to {pipeline}; choose from {', '.join(usable)}"
        )
    preset = _PRESETS[name, streaming]
    if (preset.accelerator or launch.accelerator) and pipeline.endswith("vertex"):
        raise UsageError(
            f"the model of {pipeline} is behind an endpoint, so its workers need no GPU: leave out "
            "--preset gpu and --accelerator"
        )
    return preset


def complete(given: Mapping[str, Any], launch: LaunchOptions, pipeline: str) -> dict[str, Any]:
    """Return all flags of a job: those that were given, completed from its preset.

    Args:
        given: The given flags of Dataflow: a value, or a list of values, by Beam's name of the
            option.
        launch: The flags of the launch command.
        pipeline: The name of the pipeline, such as `batch_local`.

    Raises:
        UsageError: A flag is invalid, or flags exclude each other.
    """
    preset, streaming = choose_preset(launch, pipeline), pipeline.startswith("stream")
    if launch.streaming_mode and not streaming:
        raise UsageError(
            f"--streaming_mode applies to streaming pipelines; {pipeline} is a batch pipeline"
        )
    accelerator = launch.accelerator or preset.accelerator
    if launch.gpu_sharing and not accelerator:
        raise UsageError("--gpu_sharing needs a GPU: pass --preset gpu or --accelerator TYPE")
    flags = {
        "machine_type": preset.machine_type,
        "disk_size_gb": preset.disk_size_gb,
        "max_num_workers": preset.most,
        **({"flexrs_goal": preset.flexrs_goal} if preset.flexrs_goal else {}),
        **given,
    }
    fewest = launch.min_num_workers or _fewest(preset, flags)
    services = [f"min_num_workers={fewest}"] if fewest is not None else []
    experiments = ["use_runner_v2"]
    own = given.get("dataflow_service_options", ())
    has_mode = any(option.startswith("streaming_mode_") for option in own)
    if streaming and not has_mode and launch.streaming_mode != "exactly_once":
        services.append(AT_LEAST_ONCE)
    if accelerator:
        service, experiment = _gpu(accelerator, launch.gpu_sharing or "one_process")
        services.append(service)
        experiments += experiment
    flags["dataflow_service_options"] = merged(own, services)
    flags["experiments"] = merged(given.get("experiments", ()), experiments)
    least = value_of(flags["dataflow_service_options"], "min_num_workers")
    if least and least.isdecimal():
        flags.setdefault("num_workers", int(least))
    check(flags, streaming)
    return flags


def _fewest(preset: Preset, flags: Mapping[str, Any]) -> int | None:
    """Return a preset's minimum number of workers, but no more than --max_num_workers."""
    if preset.fewest is None or flags.get("autoscaling_algorithm") == "NONE":
        return None
    return min(preset.fewest, int(flags["max_num_workers"])) or None


def _gpu(accelerator: str, sharing: str) -> tuple[str, list[str]]:
    """Return the service option and the experiments for a GPU."""
    kind, _, count = accelerator.partition(":")
    service = f"worker_accelerator=type:{kind};count:{count or 1};{_DRIVER}"
    if sharing == "mps":
        return f"{service};{MPS}", []
    return service, [ONE_PROCESS]


def merged(given: Sequence[str], preset: Sequence[str]) -> list[str]:
    """Return the options that were given, and those of a preset with other names.

    Args:
        given: Options that were given, each `name` or `name=value`.
        preset: Options of the preset, in the same form.
    """
    names = {option.partition("=")[0] for option in given}
    return [*given, *(option for option in preset if option.partition("=")[0] not in names)]


def value_of(options: Sequence[str], name: str) -> str | None:
    """Return the value of the option of that name; None if there is none.

    Args:
        options: Options, each `name` or `name=value`.
        name: The name of the option.
    """
    return next((o.partition("=")[2] for o in options if o.partition("=")[0] == name), None)


_PROJECT = r"([a-z0-9.-]+:)?[a-z][a-z0-9-]{4,28}[a-z0-9]"
_PATTERNS = {
    "project": (
        _PROJECT,
        "6 to 30 characters: a-z, 0-9 and -, starting with a letter and not ending with -",
    ),
    "job_name": (
        r"[a-z]([a-z0-9-]{0,61}[a-z0-9])?",
        "1 to 63 characters: a-z, 0-9 and -, starting with a letter and not ending with -",
    ),
    "service_account_email": (r"[^@\s]+@[^@\s]+\.[^@\s]+", "the email address of an account"),
    "subnetwork": (
        r"(https://www\.googleapis\.com/compute/v1/projects/[^/]+/)?"
        r"regions/[^/]+/subnetworks/[^/]+",
        "regions/REGION/subnetworks/NAME, or the whole URL for a shared VPC",
    ),
    "dataflow_kms_key": (
        r"projects/[^/]+/locations/[^/]+/keyRings/[^/]+/cryptoKeys/[^/]+",
        "projects/P/locations/L/keyRings/R/cryptoKeys/K",
    ),
}


def check(flags: Mapping[str, Any], streaming: bool) -> None:
    """Check all flags of a job.

    Args:
        flags: All flags of the job, by Beam's names of options.
        streaming: Whether the job is a stream.

    Raises:
        UsageError: At least one flag is invalid; the message names all of them.
    """
    wrong = [
        f"--{name} {flags[name]!r} is invalid: use {expected}"
        for name, (pattern, expected) in _PATTERNS.items()
        if flags.get(name) is not None and not re.fullmatch(pattern, str(flags[name]))
    ]
    wrong += [
        f"--{name}: {fault}"
        for name in ("region", "worker_region")
        if flags.get(name) is not None and (fault := region_fault(flags[name]))
    ]
    for label in flags.get("labels", ()):
        try:
            labels_of([label])
        except UsageError as error:
            wrong.append(str(error))
    wrong += [*_check_workers(flags), *_check_places(flags), *_check_scheduling(flags, streaming)]
    if wrong:
        raise UsageError("; ".join(wrong))


def _check_workers(flags: Mapping[str, Any]) -> list[str]:
    options = flags["dataflow_service_options"]
    fewest = value_of(options, "min_num_workers")
    first, most = flags.get("num_workers"), flags["max_num_workers"]
    wrong = [
        f"--{name} must be at least 1, got {flags[name]}"
        for name in ("num_workers", "max_num_workers", "disk_size_gb")
        if flags.get(name) is not None and flags[name] < 1
    ]
    if fewest is not None and not fewest.isdecimal():
        wrong.append(
            f"--dataflow_service_options min_num_workers={fewest}: expected a whole number"
        )
    elif fewest is not None and int(fewest) > most:
        wrong.append(f"--min_num_workers {fewest} is more than --max_num_workers {most}")
    if first is not None and first > most:
        wrong.append(f"--num_workers {first} is more than --max_num_workers {most}")
    accelerator = value_of(options, "worker_accelerator") or ""
    kind = re.sub(r"^type:([^;]*).*", r"\1", accelerator)
    family, machine = _MACHINES.get(kind), flags["machine_type"]
    if family and not machine.startswith((family, "custom")):
        wrong.append(
            f"--machine_type {machine} cannot have {kind}: expected a machine type that "
            f"starts with {family}"
        )
    count = re.search(r";count:(\d+)", accelerator)
    if MPS in accelerator and count and int(count[1]) > 1:
        wrong.append(
            f"--gpu_sharing mps needs workers with one GPU, got {count[1]} GPUs: use one GPU, or "
            "--gpu_sharing one_process, which uses all of them"
        )
    if accelerator and MPS in accelerator and ONE_PROCESS in flags["experiments"]:
        wrong.append(f"--experiments {ONE_PROCESS} is the opposite of {MPS}: leave out one of them")
    return wrong


def _check_places(flags: Mapping[str, Any]) -> list[str]:
    region, wrong = flags.get("region"), []
    for name, part in (("subnetwork", "regions"), ("dataflow_kms_key", "locations")):
        found = re.search(rf"{part}/([^/]+)/", str(flags.get(name, "")))
        if found and region and found[1] not in (region, "global"):
            wrong.append(f"--{name} is in {found[1]}, but --region is {region}")
    zone = flags.get("worker_zone")
    if zone and flags.get("worker_region"):
        wrong.append("--worker_zone and --worker_region exclude each other: leave out one of them")
    return wrong


def _check_scheduling(flags: Mapping[str, Any], streaming: bool) -> list[str]:
    if flags.get("flexrs_goal") != "COST_OPTIMIZED":
        return []
    wrong = []
    if streaming:
        wrong.append(
            "--flexrs_goal applies to batch pipelines; this is a stream: leave out --flexrs_goal"
        )
    if value_of(flags["dataflow_service_options"], "worker_accelerator"):
        wrong.append("FlexRS does not support GPUs: leave out --flexrs_goal or the accelerator")
    if flags.get("worker_zone") or flags.get("zone"):
        wrong.append("FlexRS chooses the zone itself: leave out --worker_zone")
    if flags.get("autoscaling_algorithm") == "NONE":
        wrong.append("FlexRS chooses the number of workers: leave out --autoscaling_algorithm")
    return wrong
