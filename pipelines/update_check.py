"""Whether a stream that runs can be replaced by a new one, told before anything is started.

Dataflow hands over what is on its way by the names of steps. It refuses a new job that lacks a
step of the old one; so do we, minutes earlier and with the mapping that may be meant.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from dataclasses import replace
from shlex import quote
from typing import Any

import apache_beam as beam
from apache_beam.options.pipeline_options import GoogleCloudOptions
from apache_beam.portability import common_urns

from cloud.clients import Cloud
from model_handlers.errors import UsageError
from pipelines.jobs import VIEWER, Jobs, told

# Of the steps that carry state or a shuffle from one job to the next.
_KINDS = {
    common_urns.primitives.PAR_DO.urn: "par_do",
    common_urns.primitives.GROUP_BY_KEY.urn: "group_by_key",
    common_urns.primitives.FLATTEN.urn: "flatten",
}


def compare(
    old: Mapping[str, str], new: Mapping[str, str], mapping: Mapping[str, str]
) -> list[str]:
    """Steps of the job that runs, those of the new one, names to kinds -> what stands against it.

    mapping: old names to new ones; an empty new name says that the step may go. A step of one is
    found in the other as well if it lies above or below it: Dataflow cuts some in parts.
    """
    faults = [
        f"--transform_name_mapping: the running job has no step {name}"
        for name in mapping
        if not _find(name, old)
    ]
    gone = []
    for name, kind in old.items():
        target = mapping.get(name, name)
        found = _find(target, new) if target else name
        if found is None:
            gone.append(name)
            continue
        other = new.get(found, "")
        if target and kind in _KINDS.values() and other in _KINDS.values() and kind != other:
            faults.append(f"step {name} was a {kind} and is a {other}")
    if gone:
        faults.append(
            f"{'these steps are' if len(gone) > 1 else 'a step is'} gone: {', '.join(gone)}"
        )
        meant = {name: _likeliest(name, old, new) for name in gone}
        faults.append(
            "what was renamed, or may go, is told by "
            f'--transform_name_mapping {quote(json.dumps(meant))} ("" drops what a step holds)'
        )
    return faults


def _find(name: str, steps: Mapping[str, str]) -> str | None:
    """A step's name -> that in `steps` which it is, or lies above or below."""
    if name in steps:
        return name
    near = (s for s in steps if s.startswith(f"{name}/") or name.startswith(f"{s}/"))
    return next(near, None)


def _likeliest(name: str, old: Mapping[str, str], new: Mapping[str, str]) -> str:
    """A step that is gone -> the new one of its kind that it may have become, or an empty name."""
    fresh = [s for s, kind in new.items() if kind == old[name] and _find(s, old) is None]
    return next(iter(difflib.get_close_matches(name, fresh, n=1, cutoff=0.8)), "")


def steps_of(pipeline: beam.Pipeline) -> dict[str, str]:
    """A pipeline that is not started -> its primitive steps by name, with their kinds."""
    transforms = pipeline.to_runner_api().components.transforms.values()
    return {
        step.unique_name: _KINDS.get(step.spec.urn, "")
        for step in transforms
        if not step.subtransforms and step.unique_name
    }


def check_update(pipeline: beam.Pipeline, cloud: Cloud) -> None:
    """A stream that is to replace one that runs -> nothing, or UsageError that names each step."""
    google = pipeline.options.view_as(GoogleCloudOptions)
    jobs = Jobs(replace(cloud, project=google.project, endpoints=_endpoints(cloud, google)))
    with told(f"job {google.job_name} cannot be looked at", VIEWER):
        active = jobs.active(google.job_name, google.region)
        if not active:
            streams = [job.name for job in jobs.listed()[0] if job.streaming and not job.has_ended]
            known = f"; these run: {', '.join(sorted(streams))}" if streams else ""
            raise UsageError(
                f"--update: no job {google.job_name} runs in {google.region}: say --job_name of "
                f"the stream to replace{known}"
            )
        running = jobs.get(active[0].ident, active[0].region, whole=True)
    if not running.streaming:
        raise UsageError(f"--update: job {running.name} is batch, only a stream can be replaced")
    faults = compare(running.steps, steps_of(pipeline), google.transform_name_mapping or {})
    if faults:
        raise UsageError(
            f"--update: job {running.name} ({running.ident}) cannot become this pipeline: "
            f"{'; '.join(faults)}; or drain it, and start anew"
        )


def _endpoints(cloud: Cloud, google: Any) -> Any:
    """Where Beam was told to find Dataflow."""
    return replace(cloud.endpoints, dataflow=google.dataflow_endpoint)
