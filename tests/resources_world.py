"""A project with its own names on the emulators and the stand-in, for tests of resources."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import pytest

from cloud.clients import Cloud
from cloud.endpoints import Endpoints
from examples.google_api.access import IAM, ResourceManager
from examples.google_api.dataflow import Dataflow
from examples.google_api.faults import Call
from examples.google_api.monitoring import Monitoring
from examples.google_api.server import GoogleApi, google_api
from examples.google_api.service_usage import ServiceUsage
from examples.google_api.vertex import VertexAI
from examples.local_cloud import PROJECT, LocalCloud
from resources.__main__ import main
from resources.config import PIPELINES

SMALL, VERTEX = ("stream_local",), ("stream_vertex",)


class SilentDataflow(Dataflow):
    """Dataflow in which one region is missing from the first lists of jobs.

    Attributes:
        silent: The region.
        times: The number of lists that the region is missing from.
    """

    silent, times = "", 0

    def jobs_aggregated(self, call: Call) -> dict[str, Any]:
        answer = super().jobs_aggregated(call)
        if not self.times:
            return answer
        self.times -= 1
        jobs = [job for job in answer.get("jobs", ()) if job["location"] != self.silent]
        return {**answer, "jobs": jobs, "failedLocation": [{"name": self.silent}]}


@dataclass
class World:
    """A project with its own names on servers that several tests share."""

    name: str
    folder: Path
    endpoints: Endpoints
    google: GoogleApi
    dataflow: SilentDataflow
    monitoring: Monitoring
    usage: ServiceUsage
    iam: IAM
    vertex: VertexAI
    capsys: pytest.CaptureFixture[str]
    pipelines: tuple[str, ...] = PIPELINES
    extra: dict[str, Any] = field(default_factory=dict)
    # Trying a model takes seconds, because it starts a process that imports PyTorch.
    tries_models: bool = False

    @property
    def cloud(self) -> Cloud:
        return Cloud(PROJECT, self.endpoints, retry_seconds=5.0)

    @property
    def config(self) -> dict[str, Any]:
        return {
            "project": PROJECT,
            # The emulator reports this location for every bucket.
            "location": "us",
            "bucket": f"{self.name}-bucket",
            "dataset": self.name,
            "prefix": self.name,
            "job_prefix": self.name,
            "service_account": f"{self.name}-worker"[:30],
            "pipelines": list(self.pipelines),
            **self.extra,
        }

    def run(self, *argv: str) -> tuple[int, str, str]:
        """Run the command and return its exit code, standard output and standard error."""
        path = self.folder / "millrace.toml"
        lines = [f"{key} = {_toml(value)}" for key, value in self.config.items()]
        path.write_text("\n".join(lines))
        places = ",".join(f"{f.name}={getattr(self.endpoints, f.name)}" for f in fields(Endpoints))
        self.capsys.readouterr()
        command, *rest = argv
        common = ("--config", str(path), "--api_endpoints", places, "--retry_seconds", "5")
        with pytest.MonkeyPatch.context() as patch:
            if not self.tries_models:
                patch.setattr("resources.commands.try_package", lambda *_: None)
            code = main([command, *common, *rest])
        printed = self.capsys.readouterr()
        return code, printed.out, printed.err

    def fine(self, *argv: str) -> str:
        """Run the command, check that it succeeds, and return its output."""
        code, out, err = self.run(*argv)
        assert (code, err) == (0, ""), err
        return out

    def plan(self) -> dict[str, str]:
        """Return the action of plan for each resource that is not up to date."""
        code, out, err = self.run("plan", "--json")
        assert not err
        steps = {f"{s['kind']} {s['name']}": s["action"] for s in json.loads(out)}
        found = {name: action for name, action in steps.items() if action != "keep"}
        assert code == (3 if found else 0)
        return found


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {json.dumps(v)}" for key, v in value.items()) + "}"
    return json.dumps(value)


@contextmanager
def worlds(
    servers: LocalCloud, folder: Path, capsys: pytest.CaptureFixture[str]
) -> Iterator[Callable[..., World]]:
    """Start the stand-in beside emulators that keep labels, and yield a maker of worlds."""
    iam, usage, dataflow = IAM(), ServiceUsage(polls=0), SilentDataflow(polls=0)
    monitoring, vertex = Monitoring(), VertexAI(polls=0)
    manager = ResourceManager(PROJECT, accounts=iam)
    with google_api(vertex, usage, iam, manager, dataflow, monitoring) as google:
        beside = {
            f.name: google.url
            for f in fields(Endpoints)
            if getattr(servers.endpoints, f.name) is None
        }
        endpoints = replace(servers.endpoints, **beside)

        def make(name: str, pipelines: tuple[str, ...] = PIPELINES, **extra: Any) -> World:
            return World(
                name,
                folder,
                endpoints,
                google,
                dataflow,
                monitoring,
                usage,
                iam,
                vertex,
                capsys,
                pipelines,
                extra,
            )

        yield make
