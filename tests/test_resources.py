"""Setup, status and cleanup on the emulators and the stand-in: nothing to nothing, in any order."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import pytest

from cloud.clients import Cloud
from cloud.endpoints import Endpoints
from examples.google_api.access import IAM, ResourceManager
from examples.google_api.dataflow import Dataflow
from examples.google_api.monitoring import Monitoring
from examples.google_api.server import GoogleApi, google_api
from examples.google_api.service_usage import ServiceUsage
from examples.google_api.vertex import VertexAI
from examples.local_cloud import PROJECT, LocalCloud
from resources.__main__ import main
from resources.config import PIPELINES

SMALL = ("stream_local",)


@dataclass
class World:
    """A project of its own names on servers that tests share."""

    name: str
    folder: Path
    endpoints: Endpoints
    google: GoogleApi
    dataflow: Dataflow
    monitoring: Monitoring
    usage: ServiceUsage
    capsys: pytest.CaptureFixture[str]
    pipelines: tuple[str, ...] = PIPELINES
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def cloud(self) -> Cloud:
        return Cloud(PROJECT, self.endpoints, retry_seconds=5.0)

    @property
    def config(self) -> dict[str, Any]:
        return {
            "project": PROJECT,
            # What the emulator says of all buckets.
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
        """Arguments -> exit code, output, errors."""
        path = self.folder / "millrace.toml"
        lines = [f"{key} = {json.dumps(value)}" for key, value in self.config.items()]
        path.write_text("\n".join(lines))
        places = ",".join(f"{f.name}={getattr(self.endpoints, f.name)}" for f in fields(Endpoints))
        self.capsys.readouterr()
        code = main(
            [*argv, "--config", str(path), "--api_endpoints", places, "--retry_seconds", "5"]
        )
        told = self.capsys.readouterr()
        return code, told.out, told.err

    def fine(self, *argv: str) -> str:
        """Arguments of a run that ends well -> its output."""
        code, out, err = self.run(*argv)
        assert (code, err) == (0, ""), err
        return out

    def plan(self) -> dict[str, str]:
        """Nothing -> the action for each resource that is not as it shall be."""
        code, out, err = self.run("plan", "--json")
        assert not err
        steps = {f"{s['kind']} {s['name']}": s["action"] for s in json.loads(out)}
        found = {name: action for name, action in steps.items() if action != "keep"}
        assert code == (3 if found else 0)
        return found


@pytest.fixture
def make_world(
    stream_emulators: LocalCloud, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> Iterator[Callable[..., World]]:
    """The name of a world, its pipelines -> the world."""
    iam, usage, dataflow = IAM(), ServiceUsage(polls=0), Dataflow(polls=0)
    monitoring = Monitoring()
    manager = ResourceManager(PROJECT, accounts=iam)
    with google_api(VertexAI(polls=0), usage, iam, manager, dataflow, monitoring) as google:
        beside = {
            f.name: google.url
            for f in fields(Endpoints)
            if getattr(stream_emulators.endpoints, f.name) is None
        }
        endpoints = replace(stream_emulators.endpoints, **beside)

        def make(name: str, pipelines: tuple[str, ...] = PIPELINES, **extra: Any) -> World:
            return World(
                name,
                tmp_path,
                endpoints,
                google,
                dataflow,
                monitoring,
                usage,
                capsys,
                pipelines,
                extra,
            )

        yield make


def test_from_nothing_to_nothing_twice(make_world: Callable[..., World], example: Path) -> None:
    world = make_world("twice", model=str(example / "model"))
    for _ in range(2):
        assert set(world.plan().values()) == {"create"}
        made = world.fine("setup", "--load_example", "50")
        assert "created  table millrace-test.twice.twice_batch_results" in made
        assert world.plan() == {}
        assert "0 steps" in world.fine("setup", "--load_example", "50")
        code, _, err = world.run("cleanup", "--yes")
        assert (code, "50 rows of tables would be lost" in err) == (2, True)
        world.fine("cleanup", "--yes", "--project_confirm", PROJECT)
        assert "nothing is there" in world.fine("cleanup")
        # APIs stay enabled.
        world.usage.enabled.clear()
