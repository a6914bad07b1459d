"""Local servers for the Google APIs that the DAGs use: the emulators and scripted services."""

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from googleapiclient.discovery import build

from examples.google_api.dataflow import Dataflow
from examples.google_api.faults import Call
from examples.google_api.monitoring import Monitoring
from examples.google_api.server import GoogleApi, Service
from examples.google_api.store import listed
from examples.local_cloud import LocalCloud

ROOT = Path(__file__).parent.parent
PROJECT, REGION = "millrace-test", "us-central1"
# The Python with the pipelines. Airflow's environment does not have torch.
PIPELINE_PYTHON = os.environ.get("MILLRACE_PYTHON", str(ROOT / ".venv/bin/python"))


class Templates(Dataflow):
    """A Dataflow service that runs the pipeline of a Flex Template in a new process.

    The job ends in the same state as the process. If `runs` is False, nothing runs.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        super().__init__(is_streaming=lambda _: False)
        self.environment, self.runs = environment, True

    def flex_templates_launch(self, call: Call) -> dict[str, Any]:
        answer = super().flex_templates_launch(call)
        if self.runs:
            launch = call.body["launchParameter"]
            given = {**launch["parameters"], "project": PROJECT}
            given["temp_location"] = launch["environment"]["tempLocation"]
            flags = [f"--{name}={value}" for name, value in given.items()]
            done = subprocess.run(
                [PIPELINE_PYTHON, "-m", "pipelines.batch_local", *flags],
                capture_output=True,
                text=True,
                check=False,
                cwd=ROOT,
                env=dict(self.environment),
            )
            self._last = "DONE" if done.returncode == 0 else "FAILED"
            if done.returncode:
                self.tell(answer["job"], "ERROR", done.stderr.strip().splitlines()[-1])
        return answer


class Alerts(Service):
    """A Pub/Sub service that only accepts messages."""

    document = "pubsub.v1"

    def __init__(self) -> None:
        super().__init__()
        self.published: list[dict[str, Any]] = []

    def topics_publish(self, call: Call) -> dict[str, Any]:
        self.published += call.body["messages"]
        return {"messageIds": [str(self.number()) for _ in call.body["messages"]]}


class Metrics(Monitoring):
    """A Cloud Monitoring service whose values are set by metric and by the value of a label."""

    def time_series_list(self, call: Call) -> dict[str, Any]:
        metric, label = call.values["filter"].split(" AND ")
        name, value = (part.split('"')[1] for part in (metric, label))
        found = self.values_by_metric.get(name, {}).get(value)
        points = [{"value": {"int64Value": str(found)}}]
        series = [] if found is None else [{"points": points}]
        return listed(Call(call.number, call.method, {}, None), "timeSeries", series)


class World:
    """The services of Google Cloud that the DAGs use."""

    def __init__(self, emulators: LocalCloud, google: GoogleApi, *services: Any) -> None:
        self.emulators, self.google = emulators, google
        self.templates, self.metrics, self.alerts = services

    def build(self, service: str, version: str, **given: Any) -> Any:
        """Build a client like googleapiclient's, but for the local servers."""
        endpoints = self.emulators.endpoints
        address = {
            "storage": f"{endpoints.storage}/storage/v1/",
            "bigquery": f"{endpoints.bigquery}/bigquery/v2/",
        }.get(service, f"{self.google.url}/")
        return build(service, version, **given | {"client_options": {"api_endpoint": address}})

    def launched(self) -> list[dict[str, Any]]:
        """Return the launch parameters of all launched templates."""
        return [
            call.body["launchParameter"]
            for call in self.google.calls
            if call.method.endswith("flexTemplates.launch")
        ]


class RestJobs:
    """A replacement for Dataflow's asynchronous gRPC client that uses the local REST server."""

    def __init__(self, client: Any) -> None:
        self._client = client

    async def get_job(self, request: Any) -> Any:
        return self._client.get_job(request=request)
