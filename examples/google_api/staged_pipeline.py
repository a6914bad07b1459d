"""Dataflow as it is to a runner: the pipeline that a job staged is read, told and really run."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Mapping
from typing import Any

from apache_beam.io.filesystems import FileSystems
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.portability import common_urns
from apache_beam.portability.api import beam_runner_api_pb2
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.transforms.environments import EmbeddedPythonEnvironment

from examples.google_api.dataflow import Dataflow, Job
from examples.google_api.faults import Call

_KINDS = {
    common_urns.primitives.PAR_DO.urn: "PAR_DO_KIND",
    common_urns.primitives.GROUP_BY_KEY.urn: "GROUP_BY_KEY_KIND",
    common_urns.primitives.FLATTEN.urn: "FLATTEN_KIND",
    common_urns.primitives.IMPULSE.urn: "READ_KIND",
}


class ExecutingDataflow(Dataflow):
    """Dataflow whose batch jobs, as a runner submits them, run in this process.

    They end as their pipeline does. Streams run until they are drained or cancelled, without
    reading a message. Needs what the staged pipeline needs: its files within reach.
    """

    def __init__(self, *, polls: int = 1) -> None:
        super().__init__(polls=polls)
        self._ends: dict[str, threading.Thread] = {}

    def jobs_create(self, call: Call) -> Job:
        """A job as a runner submits it, begun."""
        job = super().jobs_create(call)
        pipeline = staged_pipeline(job)
        job["pipelineDescription"] = {"originalPipelineTransform": steps(pipeline)}
        if job["type"] == "JOB_TYPE_BATCH":
            self._enter(job, "RUNNING")
            thread = threading.Thread(target=self._run, args=(job, pipeline), daemon=True)
            self._ends[job["id"]] = thread
            thread.start()
        return job

    def wait(self, job_id: str) -> Job:
        """A batch job -> itself, when it has ended."""
        self._ends[job_id].join()
        return self.jobs[job_id]

    def _look(self, job: Job) -> Job:
        runs = job["id"] in self._ends and job["currentState"] == "JOB_STATE_RUNNING"
        return job if runs else super()._look(job)

    def _run(self, job: Job, pipeline: beam_runner_api_pb2.Pipeline) -> None:
        try:
            self.metrics[job["id"]] = run_here(pipeline)
        except Exception as error:
            # Whatever a step raises is what Dataflow tells of a job that failed.
            self.tell(job, "ERROR", str(error))
            end = "FAILED"
        else:
            end = "DONE"
        # One that was cancelled meanwhile stays so.
        if job["currentState"] == "JOB_STATE_RUNNING":
            self._enter(job, end)


def staged_pipeline(job: Mapping[str, Any]) -> beam_runner_api_pb2.Pipeline:
    """A job's JSON -> the pipeline that it says it staged. Raises ValueError if it is another."""
    options = job["environment"]["sdkPipelineOptions"]["options"]
    with FileSystems.open(options["pipelineUrl"]) as handle:
        content = handle.read()
    if hashlib.sha256(content).hexdigest() != options["pipelineProtoHash"]:
        raise ValueError(f"{options['pipelineUrl']} is not what the job was submitted with")
    return beam_runner_api_pb2.Pipeline.FromString(content)


def steps(pipeline: beam_runner_api_pb2.Pipeline) -> list[dict[str, str]]:
    """A pipeline -> its primitive steps, as Dataflow tells them."""
    return [
        {"id": ident, "name": step.unique_name, "kind": _KINDS.get(step.spec.urn, "UNKNOWN_KIND")}
        for ident, step in pipeline.components.transforms.items()
        if not step.subtransforms and step.unique_name
    ]


def run_here(pipeline: beam_runner_api_pb2.Pipeline) -> list[dict[str, Any]]:
    """A staged pipeline -> its metrics, once it has run to its end. Raises what its steps raise.

    Instead of its container, the code of this process does the steps.
    """
    here = EmbeddedPythonEnvironment.default().to_runner_api(None)
    for environment in pipeline.components.environments.values():
        environment.urn, environment.payload = here.urn, here.payload
        # They are in this process already.
        del environment.dependencies[:]
    result = FnApiRunner().run_via_runner_api(pipeline, PipelineOptions([]))
    result.wait_until_finish()
    return [_metric(counter) for counter in result.metrics().query()["counters"]]


def _metric(counter: Any) -> dict[str, Any]:
    """A counter of Beam's -> as Dataflow tells it."""
    return {
        "name": {
            "origin": "user",
            "name": counter.key.metric.name,
            "context": {"step": counter.key.step, "namespace": counter.key.metric.namespace},
        },
        "scalar": counter.result,
    }
