"""Whether a stream that runs can be replaced by a new one, told before anything is started.

Dataflow hands over what is on its way by the names of steps. It refuses a new job that lacks a
step of the old one; so do we, minutes earlier and with the mapping that may be meant.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from shlex import quote
from typing import Any

import apache_beam as beam
from apache_beam.options.pipeline_options import GoogleCloudOptions
from apache_beam.portability import common_urns

from cloud.clients import Cloud
from common.errors import UsageError
from pipelines.dataflow.held_state import holds_state, leaves, losing
from pipelines.dataflow.jobs import VIEWER, Jobs, job_errors

# Of the steps that carry state or a shuffle from one job to the next.
_KINDS = {
    common_urns.primitives.PAR_DO.urn: "par_do",
    common_urns.primitives.GROUP_BY_KEY.urn: "group_by_key",
    common_urns.primitives.FLATTEN.urn: "flatten",
}

_LOSS = (
    "the messages in it are acknowledged already and would be lost; drain the running job first, "
    "or say --allow_state_loss"
)


def compare(
    old: Mapping[str, str],
    new: Mapping[str, str],
    mapping: Mapping[str, str],
    *,
    allow_state_loss: bool = False,
) -> list[str]:
    """Steps of the job that runs, those of the new one, names to kinds -> what stands against it.

    mapping: old names to new ones; an empty new name says that the step may go. A step of one is
    found in the other as well if it lies above or below it: Dataflow cuts some in parts.
    allow_state_loss: steps may go with the messages that they hold.
    """
    faults = [*_wrong_names(old, new, mapping)]
    lost = [] if allow_state_loss else losing(old, new, mapping)
    if lost:
        faults.append(f"--transform_name_mapping drops the state of {', '.join(lost)}: {_LOSS}")
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
    return [*faults, *_about_gone([name for name in gone if name not in mapping], old, new)]


def _wrong_names(
    old: Mapping[str, str], new: Mapping[str, str], mapping: Mapping[str, str]
) -> Iterator[str]:
    """Names in a mapping that Dataflow would silently pass over."""
    flag = "--transform_name_mapping"
    for name, target in mapping.items():
        for which, steps, given in (("running job", old, name), ("new pipeline", new, target)):
            parts = leaves(given, steps) if given and given not in steps else []
            if parts:
                yield (
                    f"{flag}: {given} is not a step of the {which} but a group of steps, which "
                    f"Dataflow ignores: map each step by its own name: {', '.join(parts)}"
                )
            elif given and _find(given, steps) is None:
                yield f"{flag}: the {which} has no step {given}"


def _about_gone(
    gone: Sequence[str], old: Mapping[str, str], new: Mapping[str, str]
) -> Iterator[str]:
    """Steps that the new pipeline lacks -> what to do about them, without loss of messages."""
    if not gone:
        return
    yield f"{'these steps are' if len(gone) > 1 else 'a step is'} gone: {', '.join(gone)}"
    meant = {name: _likeliest(name, old, new) for name in gone}
    kept = [name for name in gone if not meant[name] and holds_state(name, old[name])]
    if kept:
        yield (
            f"{', '.join(kept)} may hold messages that are acknowledged already: start the new "
            "pipeline with the flag that makes this step, or drain the running job first"
        )
        return
    yield (
        "if they were renamed, or may go, say "
        f'--transform_name_mapping {quote(json.dumps(meant))} ("" removes a step)'
    )


def _find(name: str, steps: Mapping[str, str]) -> str | None:
    """A step's name -> that in `steps` which it is, or lies above or below."""
    if name in steps:
        return name
    near = (s for s in steps if s.startswith(f"{name}/") or name.startswith(f"{s}/"))
    return next(near, None)


def _likeliest(name: str, old: Mapping[str, str], new: Mapping[str, str]) -> str:
    """A step that is gone -> the new one of its kind that it may have become, or an empty name.

    What has no place for the state of the old one is none that it may have become.
    """
    kind = old[name]
    fresh = [s for s in new if new[s] == kind and _find(s, old) is None]
    if holds_state(name, kind):
        fresh = [s for s in fresh if holds_state(s, kind)]
    return next(iter(difflib.get_close_matches(name, fresh, n=1, cutoff=0.8)), "")


def steps_of(pipeline: beam.Pipeline) -> dict[str, str]:
    """A pipeline that is not started -> its primitive steps by name, with their kinds."""
    transforms = pipeline.to_runner_api().components.transforms.values()
    return {
        step.unique_name: _KINDS.get(step.spec.urn, "")
        for step in transforms
        if not step.subtransforms and step.unique_name
    }


def check_update(pipeline: beam.Pipeline, cloud: Cloud, *, allow_state_loss: bool = False) -> None:
    """A stream that is to replace one that runs -> nothing, or UsageError that names each step.

    allow_state_loss: as of `compare`.
    """
    google = pipeline.options.view_as(GoogleCloudOptions)
    jobs = Jobs(replace(cloud, project=google.project, endpoints=_endpoints(cloud, google)))
    with job_errors(f"job {google.job_name} cannot be looked at", VIEWER):
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
    faults = compare(
        running.steps,
        steps_of(pipeline),
        google.transform_name_mapping or {},
        allow_state_loss=allow_state_loss,
    )
    if faults:
        raise UsageError(
            f"--update: job {running.name} ({running.ident}) cannot become this pipeline: "
            f"{'; '.join(faults)}; or drain it, and start the new one without --update"
        )


def _endpoints(cloud: Cloud, google: Any) -> Any:
    """Where Beam was told to find Dataflow."""
    return replace(cloud.endpoints, dataflow=google.dataflow_endpoint)
