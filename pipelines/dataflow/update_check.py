"""Check whether a new stream can replace a running one, before anything is started.

Dataflow hands over messages in flight by the names of steps, and rejects a new job that lacks a
step of the old one. This check finds the same faults minutes earlier, and suggests a mapping.
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
from common.errors import UpdateRefused, UsageError
from pipelines.dataflow.held_state import holds_state, leaves, losing
from pipelines.dataflow.jobs import VIEWER, Jobs, job_errors

# The kinds of steps that hand over state or a shuffle from one job to the next.
_KINDS = {
    common_urns.primitives.PAR_DO.urn: "par_do",
    common_urns.primitives.GROUP_BY_KEY.urn: "group_by_key",
    common_urns.primitives.FLATTEN.urn: "flatten",
}

_LOSS = (
    "the messages in it are already acknowledged and would be lost; to accept this, pass "
    "--allow_state_loss"
)


def compare(
    old: Mapping[str, str],
    new: Mapping[str, str],
    mapping: Mapping[str, str],
    *,
    allow_state_loss: bool = False,
) -> list[str]:
    """Return what prevents a new pipeline from replacing the running job; empty if nothing does.

    A step counts as found in the other pipeline if that has the step itself, a group that contains
    it, or a part of it, because Dataflow splits some steps into parts.

    Args:
        old: The steps of the running job: their kinds by name.
        new: The steps of the new pipeline: their kinds by name.
        mapping: Old names to new names. An empty new name says that the step may be removed.
        allow_state_loss: Whether steps may be removed together with the messages that they hold.
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
            faults.append(f"step {name} changes its kind from {kind} to {other}")
    return [*faults, *_about_gone([name for name in gone if name not in mapping], old, new)]


def _wrong_names(
    old: Mapping[str, str], new: Mapping[str, str], mapping: Mapping[str, str]
) -> Iterator[str]:
    """Yield a fault for each name in a mapping that Dataflow would silently ignore."""
    flag = "--transform_name_mapping"
    for name, target in mapping.items():
        for which, steps, given in (("running job", old, name), ("new pipeline", new, target)):
            parts = leaves(given, steps) if given and given not in steps else []
            if parts:
                yield (
                    f"{flag}: {given} is a group of steps of the {which}, not a step, and Dataflow "
                    f"ignores it: map each step by its own name: {', '.join(parts)}"
                )
            elif given and _find(given, steps) is None:
                yield f"{flag}: the {which} has no step {given}"


def _about_gone(
    gone: Sequence[str], old: Mapping[str, str], new: Mapping[str, str]
) -> Iterator[str]:
    """Yield which steps the new pipeline lacks, and what to do without losing messages."""
    if not gone:
        return
    yield f"the new pipeline lacks the step{'s' if len(gone) > 1 else ''} {', '.join(gone)}"
    likely = {name: _likeliest(name, old, new) for name in gone}
    kept = [name for name in gone if not likely[name] and holds_state(name, old[name])]
    if kept:
        yield (
            f"{', '.join(kept)} may hold messages that are already acknowledged: start the new "
            "pipeline with the same flags as the running job"
        )
        return
    yield (
        "if a step was renamed or removed on purpose, pass --transform_name_mapping "
        f"{quote(json.dumps(likely))} (an empty name removes the step)"
    )


def _find(name: str, steps: Mapping[str, str]) -> str | None:
    """Return the step of that name; if there is none, a group that contains it, or a part of it."""
    if name in steps:
        return name
    near = (s for s in steps if s.startswith(f"{name}/") or name.startswith(f"{s}/"))
    return next(near, None)


def _likeliest(name: str, old: Mapping[str, str], new: Mapping[str, str]) -> str:
    """Return the new step that a missing step probably became, or an empty name.

    It must be of the same kind, and hold state if the missing step may hold messages.
    """
    kind = old[name]
    fresh = [s for s in new if new[s] == kind and _find(s, old) is None]
    if holds_state(name, kind):
        fresh = [s for s in fresh if holds_state(s, kind)]
    return next(iter(difflib.get_close_matches(name, fresh, n=1, cutoff=0.8)), "")


def steps_of(pipeline: beam.Pipeline) -> dict[str, str]:
    """Return the primitive steps of a pipeline: their kinds by name."""
    transforms = pipeline.to_runner_api().components.transforms.values()
    return {
        step.unique_name: _KINDS.get(step.spec.urn, "")
        for step in transforms
        if not step.subtransforms and step.unique_name
    }


def check_update(pipeline: beam.Pipeline, cloud: Cloud, *, allow_state_loss: bool = False) -> None:
    """Check that a stream can replace the running job that has its name.

    Args:
        pipeline: The new stream, which is not started. Its options name the job.
        cloud: The project, the service addresses and how long to retry.
        allow_state_loss: As for `compare`.

    Raises:
        UsageError: No such stream is running.
        UpdateRefused: The new stream cannot replace it; the message names each step that is in the
            way.
        JobError: Dataflow cannot be queried.
        CredentialsError: There are no credentials that can be used.
    """
    google = pipeline.options.view_as(GoogleCloudOptions)
    jobs = Jobs(replace(cloud, project=google.project, endpoints=_endpoints(cloud, google)))
    with job_errors(f"job {google.job_name} cannot be looked up", VIEWER):
        active = jobs.active(google.job_name, google.region)
        if not active:
            streams = [job.name for job in jobs.listed()[0] if job.streaming and not job.has_ended]
            known = f"; running streams: {', '.join(sorted(streams))}" if streams else ""
            raise UsageError(
                f"--update: no job {google.job_name} is running in {google.region}: pass the "
                f"--job_name of the stream to replace{known}"
            )
        running = jobs.get(active[0].ident, active[0].region, whole=True)
    if not running.streaming:
        raise UsageError(
            f"--update: job {running.name} is a batch job; only a stream can be replaced"
        )
    faults = compare(
        running.steps,
        steps_of(pipeline),
        google.transform_name_mapping or {},
        allow_state_loss=allow_state_loss,
    )
    if faults:
        raise UpdateRefused(
            f"--update: this pipeline cannot replace job {running.name} ({running.ident}): "
            f"{'; '.join(faults)}; to start the new pipeline anyway, drain job {running.name}, and "
            "then start it without --update"
        )


def _endpoints(cloud: Cloud, google: Any) -> Any:
    """Return the service addresses with the address of Dataflow that Beam uses."""
    return replace(cloud.endpoints, dataflow=google.dataflow_endpoint)
