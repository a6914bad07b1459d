"""The stand-in for Dataflow: jobs whose state advances with each read, and templates."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import google.cloud.dataflow_v1beta3.types as messages

from examples.google_api.discovery import enums_of
from examples.google_api.faults import Call, Refusal
from examples.google_api.server import Service
from examples.google_api.store import listed

Job = dict[str, Any]

_ACTIVE = ("PENDING", "QUEUED", "RUNNING", "DRAINING", "CANCELLING")
# The state that follows after some reads.
_NEXT = {"PENDING": "RUNNING", "DRAINING": "DRAINED", "CANCELLING": "CANCELLED"}
# The state that a job enters at once when a client requests another one.
_REQUESTED = {"DRAINED": "DRAINING", "CANCELLED": "CANCELLING"}
# The fields that only JOB_VIEW_ALL shows.
_WHOLE = ("environment", "pipelineDescription")
_IMPORTANCE = ("UNKNOWN", "DEBUG", "DETAILED", "BASIC", "WARNING", "ERROR")


class Dataflow(Service):
    """The stand-in for Dataflow; tests add jobs with `add`, and fill `messages` and `metrics`.

    Args:
        polls: How many reads leave a job in a state before it enters the next one.
        is_streaming: A function that says from the launch parameters of a template whether the job
            is a stream.
        last: The state in which batch jobs end.

    Attributes:
        jobs: The jobs by id.
        messages: The messages of a job, by its id.
        metrics: The metrics of a job, by its id.
    """

    document = "dataflow.v1b3"
    enums: ClassVar = enums_of(messages)

    def __init__(
        self,
        *,
        polls: int = 1,
        is_streaming: Callable[[Mapping[str, Any]], bool] = lambda p: "stream" in p["jobName"],
        last: str = "DONE",
    ) -> None:
        super().__init__(polls=polls)
        self._is_streaming, self._last = is_streaming, last
        self.jobs: dict[str, Job] = {}
        self.messages: dict[str, list[dict[str, Any]]] = {}
        self.metrics: dict[str, list[dict[str, Any]]] = {}
        self._looks: dict[str, int] = {}

    def add(self, name: str, project: str, location: str, **fields: Any) -> Job:
        """Add a job, by default a pending batch job.

        Args:
            name: The name of the job.
            project: The id of its project.
            location: Its region.
            fields: Further fields of the job, which override the defaults.

        Returns:
            The job.
        """
        job = {
            "id": f"2026-01-01_00_00_00-{self.number()}",
            "name": name,
            "projectId": project,
            "location": location,
            "type": "JOB_TYPE_BATCH",
            "currentState": "JOB_STATE_PENDING",
            "createTime": self.now(),
            **fields,
        }
        self.jobs[job["id"]] = job
        self._enter(job, job["currentState"].removeprefix("JOB_STATE_"))
        return job

    # Jobs

    def jobs_create(self, call: Call) -> Job:
        """Start a job that a runner submits."""
        return self._launch(call, call.body["name"], call.body, bool(call.body.get("replaceJobId")))

    def jobs_get(self, call: Call) -> Job:
        """Return a job, whose state may advance with this read."""
        return self._seen(call, self._look(self._job(call)))

    def jobs_list(self, call: Call) -> dict[str, Any]:
        """List the jobs of a region, whose states may advance with this read."""
        return self._listed(call, lambda job: job["location"] == call.values["location"])

    def jobs_aggregated(self, call: Call) -> dict[str, Any]:
        """List the jobs of all regions, whose states may advance with this read."""
        return self._listed(call, lambda _: True)

    def jobs_update(self, call: Call) -> Job:
        """Drain or cancel a job."""
        job = self._job(call)
        wanted = call.body.get("requestedState", "").removeprefix("JOB_STATE_")
        state = _state(job)
        if wanted not in _REQUESTED:
            raise Refusal(400, f"Requested state {wanted or 'none'} is not supported.")
        if state not in _ACTIVE:
            message = f"Job {job['id']} is in terminal state {state} and cannot be changed."
            raise Refusal(400, message, "FAILED_PRECONDITION")
        if wanted == "DRAINED" and job["type"] != "JOB_TYPE_STREAMING":
            raise Refusal(400, "Batch jobs cannot be drained.")
        job["requestedState"] = f"JOB_STATE_{wanted}"
        self._enter(job, _REQUESTED[wanted])
        return job

    def jobs_get_metrics(self, call: Call) -> dict[str, Any]:
        """Return the metrics of a job."""
        job = self._job(call)
        return {"metricTime": self.now(), "metrics": self.metrics.get(job["id"], [])}

    def messages_list(self, call: Call) -> dict[str, Any]:
        """List the messages of a job that have at least an importance."""
        least = call.values.get("minimumImportance", "JOB_MESSAGE_UNKNOWN")
        found = [
            message
            for message in self.messages.get(self._job(call)["id"], [])
            if _rank(message["messageImportance"]) >= _rank(least)
        ]
        return listed(call, "jobMessages", found)

    def flex_templates_launch(self, call: Call) -> dict[str, Any]:
        """Start a job from a template, or only check its parameters."""
        launch = call.body["launchParameter"]
        if not launch.get("containerSpecGcsPath", "").startswith("gs://"):
            raise Refusal(400, "containerSpecGcsPath is not a path in Cloud Storage.")
        if call.body.get("validateOnly"):
            return {}
        kind = "STREAMING" if self._is_streaming(launch) else "BATCH"
        labels = launch.get("environment", {}).get("additionalUserLabels", {})
        fields = {"type": f"JOB_TYPE_{kind}", "labels": labels}
        return {"job": self._launch(call, launch["jobName"], fields, launch.get("update", False))}

    def tell(self, job: Job, importance: str, text: str) -> None:
        """Add a message to a job, which `messages_list` returns.

        Args:
            job: The job.
            importance: The importance, without Google's prefix `JOB_MESSAGE_`.
            text: The text of the message.
        """
        stored = self.messages.setdefault(job["id"], [])
        stored.append(
            {
                "id": f"msg{len(stored)}",
                "time": self.now(),
                "messageText": text,
                "messageImportance": f"JOB_MESSAGE_{importance}",
            }
        )

    @staticmethod
    def _seen(call: Call, job: Job) -> Job:
        """Return the fields of a job that the requested view shows."""
        if call.values.get("view") == "JOB_VIEW_ALL":
            return job
        return {name: value for name, value in job.items() if name not in _WHOLE}

    def _launch(self, call: Call, name: str, fields: Job, update: bool) -> Job:
        running = [j for j in self.jobs.values() if j["name"] == name and _state(j) in _ACTIVE]
        if running and not update:
            message = f"There is already an active job named {name}."
            raise Refusal(409, message)
        if update and not running:
            raise Refusal(400, f"There is no active job named {name} to update.")
        kept = {k: v for k, v in fields.items() if k not in ("id", "currentState", "name")}
        place = (call.values["projectId"], call.values["location"])
        job = self.add(name, *place, **kept)
        for old in running:
            old["replacedByJobId"], job["replaceJobId"] = job["id"], old["id"]
            self._enter(old, "UPDATED")
        return job

    def _job(self, call: Call) -> Job:
        job = self.jobs.get(call.values["jobId"])
        place = {key: call.values[key] for key in ("projectId", "location") if key in call.values}
        if job is None or not place.items() <= job.items():
            raise Refusal(
                404, f"({call.values['jobId']}): Information about job could not be found."
            )
        return job

    def _listed(self, call: Call, wanted: Callable[[Job], bool]) -> dict[str, Any]:
        kind = call.values.get("filter", "ALL")
        jobs = [
            self._look(job)
            for job in self.jobs.values()
            if job["projectId"] == call.values["projectId"] and wanted(job)
        ]
        kept = [
            j
            for j in jobs
            if kind in ("ALL", "UNKNOWN") or (_state(j) in _ACTIVE) == (kind == "ACTIVE")
        ]
        if name := call.values.get("name"):
            kept = [job for job in kept if job["name"] == name]
        # In this API, `filter` is an enum and not a condition.
        values = {k: v for k, v in call.values.items() if k != "filter"}
        return listed(Call(call.number, call.method, values, None), "jobs", kept)

    def _look(self, job: Job) -> Job:
        """Count a read of a job, which may advance its state, and return the job."""
        state = _state(job)
        follows = _NEXT.get(state)
        if state == "RUNNING" and job["type"] == "JOB_TYPE_BATCH":
            follows = self._last
        self._looks[job["id"]] += 1
        if follows and self._looks[job["id"]] > self.polls:
            self._enter(job, follows)
        return job

    def _enter(self, job: Job, state: str) -> None:
        job["currentState"] = f"JOB_STATE_{state}"
        job["currentStateTime"] = self.now()
        self._looks[job["id"]] = 0
        if state == "FAILED":
            self.tell(job, "ERROR", "Workflow failed.")
        else:
            self.tell(job, "BASIC", f"The job is {state.lower()}.")


def _state(job: Job) -> str:
    return str(job["currentState"]).removeprefix("JOB_STATE_")


def _rank(importance: str) -> int:
    return _IMPORTANCE.index(importance.removeprefix("JOB_MESSAGE_"))
