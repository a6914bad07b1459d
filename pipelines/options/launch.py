"""The flags that `python -m pipelines.launch` adds to those of the pipeline that it starts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from pipelines.options.flag import flag
from pipelines.options.forms import ACCELERATOR, AT_LEAST_0, AT_LEAST_1, GCS_PATH

PresetName = Literal["batch", "stream", "gpu", "cheap"]
StreamingMode = Literal["at_least_once", "exactly_once"]
# The service option of that mode.
AT_LEAST_ONCE = "streaming_mode_at_least_once"
GpuSharing = Literal["one_process", "mps"]


def _poll_seconds() -> Any:
    return flag(
        "how often to check the state of the followed job, in seconds",
        30,
        label="Poll seconds",
        form=AT_LEAST_0,
        in_template=False,
    )


@dataclass(frozen=True, kw_only=True)
class LaunchOptions:
    """The launch on Dataflow."""

    template: str | None = flag(
        "Flex Template to start, as `make template` writes it: gs://BUCKET/.../NAME.json "
        "(default: submit the job from this source tree)",
        label="Template",
        form=GCS_PATH,
        metavar="GS_PATH",
        in_template=False,
    )
    preset: PresetName | None = flag(
        "workers of the job. batch: 2 to 10; stream: 2 to 20; gpu: 1 to 4, each with an NVIDIA L4; "
        "cheap: FlexRS for batch, which starts within 6 hours, and small workers for streams. "
        "Dataflow's own flags override the preset (default: batch or stream, "
        "to match the pipeline)",
        label="Preset",
        in_template=False,
    )
    min_num_workers: int | None = flag(
        "minimum number of workers that Dataflow keeps (default: from the preset)",
        label="Minimum number of workers",
        form=AT_LEAST_1,
        in_template=False,
    )
    streaming_mode: StreamingMode | None = flag(
        "mode of a stream; at_least_once costs less, and the sinks guarantee at-least-once "
        "delivery in either mode (default: at_least_once)",
        label="Streaming mode",
        in_template=False,
    )
    accelerator: str | None = flag(
        "type and number of GPUs per worker, such as nvidia-l4 or nvidia-tesla-t4:2 (default: from "
        "the preset)",
        label="Accelerator",
        form=ACCELERATOR,
        metavar="TYPE[:COUNT]",
        in_template=False,
    )
    gpu_sharing: GpuSharing | None = flag(
        "one_process: one SDK process per worker uses the GPU; mps: one SDK process per vCPU, "
        "all sharing the GPU through NVIDIA's Multi-Process Service, each with its own copy of the "
        "model in memory (default: one_process)",
        label="GPU sharing",
        in_template=False,
    )
    wait: bool = flag(
        "follow the job to its end; Ctrl-C stops following and leaves the job running",
        False,
        label="Wait",
        in_template=False,
    )
    poll_seconds: int = _poll_seconds()


@dataclass(frozen=True, kw_only=True)
class AttachOptions:
    """An existing job."""

    attach: str | None = flag(
        "id or name of the job to follow to its end",
        label="Attach",
        metavar="JOB",
        in_template=False,
    )
    project: str | None = flag(
        "project of the job", label="Project", metavar="PROJECT", in_template=False
    )
    region: str | None = flag(
        "region of the job (default: search all regions)",
        label="Region",
        metavar="REGION",
        in_template=False,
    )
    poll_seconds: int = _poll_seconds()
    json_summary: bool = flag(
        "print the report of a batch run as JSON on standard output instead of the summary",
        False,
        label="JSON summary",
        in_template=False,
    )
    debug: bool = flag("show tracebacks", False, label="Debug", in_template=False)
