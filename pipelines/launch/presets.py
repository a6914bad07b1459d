"""Presets: what a job on Dataflow gets where no flag says it.

`complete` is pure: Dataflow's flags as they were given, and the launch's own, become all flags
of the job. Flags that were given always win.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cloud.regions import region_fault
from common.errors import UsageError
from pipelines.dataflow.facts import labels_of
from pipelines.options.launch import LaunchOptions

_DRIVER = "install-nvidia-driver"
ONE_PROCESS, MPS = "no_use_multiple_sdk_containers", "use_nvidia_mps"
# A type of machine has the GPUs that Google builds into it, N1 those that are added to it.
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
    """Workers: how many, of which type, with how many GB of disk; what else differs."""

    fewest: int | None
    most: int
    machine_type: str
    disk_size_gb: int = 30
    accelerator: str | None = None
    flexrs_goal: str | None = None


# As the reference's jobs: n1-standard-4, 2 to 10 workers in batch, 2 to 20 in streams.
_PRESETS = {
    ("batch", False): Preset(fewest=2, most=10, machine_type="n1-standard-4"),
    ("stream", True): Preset(fewest=2, most=20, machine_type="n1-standard-4"),
    # The image with CUDA alone takes 10 GB.
    ("gpu", False): Preset(
        fewest=1, most=4, machine_type="g2-standard-4", disk_size_gb=50, accelerator="nvidia-l4:1"
    ),
    ("gpu", True): Preset(
        fewest=1, most=4, machine_type="g2-standard-4", disk_size_gb=50, accelerator="nvidia-l4:1"
    ),
    # FlexRS chooses how many workers it starts with.
    ("cheap", False): Preset(
        fewest=None, most=10, machine_type="n1-standard-2", flexrs_goal="COST_OPTIMIZED"
    ),
    ("cheap", True): Preset(fewest=1, most=5, machine_type="n1-standard-2"),
}


def choose_preset(launch: LaunchOptions, pipeline: str) -> Preset:
    """The launch's flags and a pipeline's name -> the preset. Raises UsageError."""
    streaming = pipeline.startswith("stream")
    name = launch.preset or ("stream" if streaming else "batch")
    if (name, streaming) not in _PRESETS:
        other = "stream" if name == "batch" else "batch"
        raise UsageError(f"--preset {name}: {pipeline} takes {other}, gpu or cheap")
    preset = _PRESETS[name, streaming]
    if (preset.accelerator or launch.accelerator) and pipeline.endswith("vertex"):
        raise UsageError(
            f"the model of {pipeline} is behind an endpoint, its workers need no GPU: leave "
            "--preset gpu and --accelerator out"
        )
    return preset


def complete(given: Mapping[str, Any], launch: LaunchOptions, pipeline: str) -> dict[str, Any]:
    """Dataflow's flags that were given, the launch's, a pipeline -> all flags of the job.

    given: by Beam's names of options, lists as lists. Raises UsageError for flags that
    cannot be together.
    """
    preset, streaming = choose_preset(launch, pipeline), pipeline.startswith("stream")
    if launch.streaming_mode and not streaming:
        raise UsageError(f"--streaming_mode is for streams, {pipeline} is none")
    accelerator = launch.accelerator or preset.accelerator
    if launch.gpu_sharing and not accelerator:
        raise UsageError("--gpu_sharing needs a GPU: say --preset gpu or --accelerator TYPE")
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
        services.append("streaming_mode_at_least_once")
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
    """A preset's smallest number of workers, never more than what was given as the largest."""
    if preset.fewest is None or flags.get("autoscaling_algorithm") == "NONE":
        return None
    return min(preset.fewest, int(flags["max_num_workers"])) or None


def _gpu(accelerator: str, sharing: str) -> tuple[str, list[str]]:
    """A GPU and how it is shared -> the service option, and experiments."""
    kind, _, count = accelerator.partition(":")
    service = f"worker_accelerator=type:{kind};count:{count or 1};{_DRIVER}"
    if sharing == "mps":
        return f"{service};{MPS}", []
    return service, [ONE_PROCESS]


def merged(given: Sequence[str], preset: Sequence[str]) -> list[str]:
    """Options as given and of a preset, `name` or `name=value` -> all; of one name that given."""
    names = {option.partition("=")[0] for option in given}
    return [*given, *(option for option in preset if option.partition("=")[0] not in names)]


def value_of(options: Sequence[str], name: str) -> str | None:
    """Options `name=value`, a name -> its value, None where it is not there."""
    return next((o.partition("=")[2] for o in options if o.partition("=")[0] == name), None)


_PROJECT = r"([a-z0-9.-]+:)?[a-z][a-z0-9-]{4,28}[a-z0-9]"
_PATTERNS = {
    "project": (_PROJECT, "6 to 30 of a-z, 0-9 and -"),
    "job_name": (r"[a-z]([a-z0-9-]{0,61}[a-z0-9])?", "1 to 63 of a-z, 0-9 and -, a letter first"),
    "service_account_email": (r"[^@\s]+@[^@\s]+\.[^@\s]+", "an account's email"),
    "subnetwork": (
        r"(https://www\.googleapis\.com/compute/v1/projects/[^/]+/)?"
        r"regions/[^/]+/subnetworks/[^/]+",
        "regions/REGION/subnetworks/NAME, or of a shared VPC the whole URL",
    ),
    "dataflow_kms_key": (
        r"projects/[^/]+/locations/[^/]+/keyRings/[^/]+/cryptoKeys/[^/]+",
        "projects/P/locations/L/keyRings/R/cryptoKeys/K",
    ),
}


def check(flags: Mapping[str, Any], streaming: bool) -> None:
    """All flags of a job -> nothing, or one UsageError that names every wrong one."""
    wrong = [
        f"--{name}: {flags[name]!r}: expected {expected}"
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
        f"--{name} {flags[name]}: expected at least 1"
        for name in ("num_workers", "max_num_workers", "disk_size_gb")
        if flags.get(name) is not None and flags[name] < 1
    ]
    if fewest is not None and not fewest.isdecimal():
        wrong.append(f"min_num_workers={fewest}: expected a number")
    elif fewest is not None and int(fewest) > most:
        wrong.append(f"--min_num_workers {fewest} is more than --max_num_workers {most}")
    if first is not None and first > most:
        wrong.append(f"--num_workers {first} is more than --max_num_workers {most}")
    accelerator = value_of(options, "worker_accelerator") or ""
    kind = re.sub(r"^type:([^;]*).*", r"\1", accelerator)
    family, machine = _MACHINES.get(kind), flags["machine_type"]
    if family and not machine.startswith((family, "custom")):
        wrong.append(f"--machine_type {machine} cannot have {kind}: expected {family}...")
    if accelerator and MPS in accelerator and ONE_PROCESS in flags["experiments"]:
        wrong.append(f"--experiments {ONE_PROCESS} is the opposite of {MPS}: drop one")
    return wrong


def _check_places(flags: Mapping[str, Any]) -> list[str]:
    region, wrong = flags.get("region"), []
    for name, part in (("subnetwork", "regions"), ("dataflow_kms_key", "locations")):
        found = re.search(rf"{part}/([^/]+)/", str(flags.get(name, "")))
        if found and region and found[1] not in (region, "global"):
            wrong.append(f"--{name} is of {found[1]}, the job of --region {region}")
    zone = flags.get("worker_zone")
    if zone and flags.get("worker_region"):
        wrong.append("--worker_zone and --worker_region: expected one of them")
    return wrong


def _check_scheduling(flags: Mapping[str, Any], streaming: bool) -> list[str]:
    if flags.get("flexrs_goal") != "COST_OPTIMIZED":
        return []
    wrong = []
    if streaming:
        wrong.append("--flexrs_goal is for batch, this is a stream: leave it out")
    if value_of(flags["dataflow_service_options"], "worker_accelerator"):
        wrong.append("FlexRS has no GPUs: leave --flexrs_goal or the accelerator out")
    if flags.get("worker_zone") or flags.get("zone"):
        wrong.append("FlexRS chooses the zone itself: leave --worker_zone out")
    if flags.get("autoscaling_algorithm") == "NONE":
        wrong.append("FlexRS chooses the number of workers: leave --autoscaling_algorithm out")
    return wrong
