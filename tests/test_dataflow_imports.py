"""Starting a Dataflow job works without the module that reaches into Beam's in-process runner."""

import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from examples.google_api.server import GoogleApi, google_api
from examples.google_api.staged_pipeline import ExecutingDataflow
from examples.local_cloud import LocalCloud

ROOT = Path(__file__).parent.parent
PROJECT = "a-project"
# Makes the import of the module fail, as it would if a release of Beam moved what the module uses.
WITHOUT = """
import sys
sys.modules["common.private_beam.in_process"] = None
from pipelines.command import main
from pipelines.launch.command import PIPELINES, choose_command
command, argv = PIPELINES.get(sys.argv[1]), sys.argv[2:]
if command is None:
    command, argv = choose_command(argv)
sys.exit(main(command, argv))
"""


def without(command: str, *argv: str, env: Any = None) -> "subprocess.CompletedProcess[str]":
    """Run a command without the module."""
    return subprocess.run(
        [sys.executable, "-c", WITHOUT, command, *argv],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env=env,
    )


def texts(flags: dict[str, Any]) -> list[str]:
    """Return flags as arguments."""
    return [text for name, value in flags.items() for text in (f"--{name}", str(value))]


@pytest.fixture
def google() -> Iterator[GoogleApi]:
    with google_api(ExecutingDataflow()) as server:
        yield server


@pytest.fixture
def job(google: GoogleApi, tmp_path: Path) -> dict[str, Any]:
    """The flags of a job on the stand-in, whose workers can read the files of this machine."""
    (tmp_path / "tmp").mkdir()
    return {
        "project": PROJECT,
        "region": "us-central1",
        "temp_location": tmp_path / "tmp",
        "staging_location": tmp_path / "tmp",
        "dataflow_endpoint": google.url.replace("127.0.0.1", "localhost"),
        "sdk_container_image": "an/image",
    }


@pytest.fixture
def batch(example: Path, tmp_path: Path) -> dict[str, Any]:
    return {
        "input_files": example / "transactions.parquet",
        "model": example / "model",
        "output_files": tmp_path / "out",
    }


@pytest.fixture
def stream(stream_emulators: LocalCloud, example: Path) -> dict[str, Any]:
    cloud, place = stream_emulators.cloud, f"projects/{stream_emulators.cloud.project}"
    name = f"t{uuid.uuid4().hex}"
    for topic in (name, f"{name}-out", f"{name}-bad"):
        cloud.publisher().create_topic(name=f"{place}/topics/{topic}")
    cloud.subscriber().create_subscription(
        name=f"{place}/subscriptions/{name}", topic=f"{place}/topics/{name}"
    )
    return {
        "input_subscription": f"{place}/subscriptions/{name}",
        "model": example / "model",
        "output_topic": f"{place}/topics/{name}-out",
        "dead_letter_topic": f"{place}/topics/{name}-bad",
    }


def started(google: GoogleApi) -> list[str]:
    """Return the methods of Dataflow that were called and start something."""
    return [call.method for call in google.calls if call.method.endswith("create")]


@pytest.mark.parametrize("launched", [False, True], ids=["itself", "launch"])
def test_a_batch_job_starts_without_the_module(
    google: GoogleApi, job: dict[str, Any], batch: dict[str, Any], launched: bool
) -> None:
    own = ["launch", "batch_local"] if launched else ["batch_local", "--runner", "DataflowRunner"]
    argv = [*own, *texts(job | batch)]
    dry = without(*argv, "--dry_run")
    assert dry.returncode == 0, dry.stderr
    assert "nothing was created or started" in dry.stdout
    assert started(google) == []
    done = without(*argv)
    assert done.returncode == 0, done.stderr
    assert len(started(google)) == 1


@pytest.mark.parametrize("launched", [False, True], ids=["itself", "launch"])
def test_a_stream_starts_without_the_module(
    google: GoogleApi,
    job: dict[str, Any],
    stream: dict[str, Any],
    launched: bool,
    stream_emulators: LocalCloud,
) -> None:
    own = ["launch", "stream_local"] if launched else ["stream_local", "--runner", "DataflowRunner"]
    argv = [*own, *texts(job | stream)]
    env = stream_emulators.environ()
    dry = without(*argv, "--dry_run", env=env)
    assert dry.returncode == 0, dry.stderr
    assert started(google) == []
    done = without(*argv, env=env)
    assert done.returncode == 0, done.stderr
    assert len(started(google)) == 1


def test_a_run_in_this_process_needs_the_module(batch: dict[str, Any]) -> None:
    done = without("batch_local", *texts(batch), "--json_summary")
    assert done.returncode == 1
    assert "common.private_beam.in_process" in done.stderr
    assert done.stdout == ""


def test_a_dry_run_in_this_process_does_not_need_the_module(batch: dict[str, Any]) -> None:
    done = without("batch_local", *texts(batch), "--dry_run")
    assert done.returncode == 0, done.stderr
