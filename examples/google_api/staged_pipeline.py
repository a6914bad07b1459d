"""A stand-in for Dataflow that reads the staged pipeline of a job and runs it in this process."""

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
    """A stand-in for Dataflow whose batch jobs run in this process.

    A batch job that a runner submits succeeds or fails as its pipeline does. The files of the
    pipeline must be accessible from this process. A stream only has the state RUNNING until it is
    drained or cancelled, and reads no messages.

    Args:
        polls: How many reads leave a job in a state before it enters the next one.
    """

    def __init__(self, *, polls: int = 1) -> None:
        super().__init__(polls=polls)
        self._ends: dict[str, threading.Thread] = {}

    def jobs_create(self, call: Call) -> Job:
        """Start a job that a runner submits."""
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
        """Wait for a batch job to end, and return it."""
        self._ends[job_id].join()
        return self.jobs[job_id]

    def _look(self, job: Job) -> Job:
        runs = job["id"] in self._ends and job["currentState"] == "JOB_STATE_RUNNING"
        return job if runs else super()._look(job)

    def _run(self, job: Job, pipeline: beam_runner_api_pb2.Pipeline) -> None:
        try:
            self.metrics[job["id"]] = run_here(pipeline)
        except Exception as error:
            # Dataflow reports the error of a step in a message of the job.
            self.tell(job, "ERROR", str(error))
            end = "FAILED"
        else:
            end = "DONE"
        # A job that was cancelled in the meantime stays cancelled.
        if job["currentState"] == "JOB_STATE_RUNNING":
            self._enter(job, end)


def staged_pipeline(job: Mapping[str, Any]) -> beam_runner_api_pb2.Pipeline:
    """Read the pipeline that a job has staged.

    Args:
        job: The job as JSON, which names the file of the pipeline and its digest.

    Raises:
        ValueError: If the file does not have this digest.
    """
    options = job["environment"]["sdkPipelineOptions"]["options"]
    with FileSystems.open(options["pipelineUrl"]) as handle:
        content = handle.read()
    if hashlib.sha256(content).hexdigest() != options["pipelineProtoHash"]:
        raise ValueError(f"{options['pipelineUrl']} does not have the digest that the job names")
    return beam_runner_api_pb2.Pipeline.FromString(content)


def steps(pipeline: beam_runner_api_pb2.Pipeline) -> list[dict[str, str]]:
    """Return the primitive steps of a pipeline, in the form of Dataflow's API."""
    return [
        {"id": ident, "name": step.unique_name, "kind": _KINDS.get(step.spec.urn, "UNKNOWN_KIND")}
        for ident, step in pipeline.components.transforms.items()
        if not step.subtransforms and step.unique_name
    ]


def run_here(pipeline: beam_runner_api_pb2.Pipeline) -> list[dict[str, Any]]:
    """Run a staged pipeline to its end, with the code of this process in place of its container.

    Args:
        pipeline: The pipeline, whose environments are changed.

    Returns:
        The counters of the pipeline, in the form of Dataflow's API. An error of a step is raised
        as the step raised it.
    """
    here = EmbeddedPythonEnvironment.default().to_runner_api(None)
    for environment in pipeline.components.environments.values():
        environment.urn, environment.payload = here.urn, here.payload
        # This process already has the dependencies.
        del environment.dependencies[:]
    result = FnApiRunner().run_via_runner_api(pipeline, PipelineOptions([]))
    result.wait_until_finish()
    return [_metric(counter) for counter in result.metrics().query()["counters"]]


def _metric(counter: Any) -> dict[str, Any]:
    """Return a counter of Beam in the form of Dataflow's API."""
    return {
        "name": {
            "origin": "user",
            "name": counter.key.metric.name,
            "context": {"step": counter.key.step, "namespace": counter.key.metric.namespace},
        },
        "scalar": counter.result,
    }
