"""Fixtures that several test modules share; each gives a function, so that nothing is imported."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import settings

from common.record_batch import derived_ids, source_batch
from examples.local_cloud import (
    INSTALL_COMMAND,
    PUBSUB_COMMAND,
    LocalCloud,
    free_port,
    is_installed,
    local_cloud,
    pubsub_jar,
)
from examples.pubsub_labels import keeping_labels
from examples.transactions.build import build
from model_handlers.manifest import InputSpec, Manifest, OutputSpec
from transforms.provenance import Provenance

# Whoever starts the tests in the background of a shell, or under nohup, has them ignore these
# signals, and what they start.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
# No test depends on how fast the machine is.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


@pytest.fixture(scope="session")
def make_manifest() -> Callable[..., Manifest]:
    """Inputs (one of three float32 columns a, b, c by default) and fields -> a manifest."""

    def make(*inputs: InputSpec, **fields: Any) -> Manifest:
        values: dict[str, Any] = {
            "name": "tiny",
            "version": "3",
            "format": "torchscript",
            "file": "model.pt",
            "sha256": "0" * 64,
            "inputs": inputs or (InputSpec("x", ("a", "b", "c"), shape=(3,)),),
            "outputs": (OutputSpec("total"), OutputSpec("code", shape=(2,))),
            "score_output": "total",
        }
        return Manifest(**values | fields)

    return make


@pytest.fixture(scope="session")
def make_source() -> Callable[..., pa.RecordBatch]:
    """Columns by name -> a source batch with ids r-0, r-1, ..."""

    def make(columns: Mapping[str, Any]) -> pa.RecordBatch:
        rows = pa.record_batch({name: pa.array(values) for name, values in columns.items()})
        return source_batch(derived_ids("r", np.arange(rows.num_rows)), rows)

    return make


@pytest.fixture(scope="session")
def provenance() -> Provenance:
    return Provenance(
        run_id="run 1",
        pipeline="a test",
        model_name="tiny",
        model_version="3",
        model_digest="0" * 64,
    )


@pytest.fixture(scope="session")
def example(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example's folder, small: 2,000 rows to score, 20 of them faulty, and the packages."""
    folder = tmp_path_factory.mktemp("example")
    build(folder, rows=2_000, train_rows=3_000, seed=7)
    return folder


ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="session")
def distribution(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel and the sdist.

    They are built from a copy: setuptools writes into the folder that it builds, where
    another process may be doing the same.
    """
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    for path in ROOT.iterdir():
        if path.is_file():
            shutil.copy(path, source)
        elif (path / "__init__.py").exists() or path.name == "tests":
            leave = shutil.ignore_patterns("__pycache__")
            shutil.copytree(path, source / path.name, ignore=leave)
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return out


NO_EMULATORS = f"the emulators are not installed: {INSTALL_COMMAND}"


@pytest.fixture(scope="session")
def emulators(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCloud]:
    """BigQuery and Cloud Storage of this machine, with an empty bucket `bucket`."""
    if not is_installed():
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(NO_EMULATORS)
    with local_cloud(tmp_path_factory.mktemp("emulators")) as servers:
        servers.cloud.storage().create_bucket("bucket")
        yield servers


NO_PUBSUB = f"the emulator of Pub/Sub is not installed: {PUBSUB_COMMAND}"


@pytest.fixture(scope="session")
def stream_emulators(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCloud]:
    """The same with Pub/Sub, and with an empty dataset `streams`."""
    lacking = NO_EMULATORS if not is_installed() else NO_PUBSUB if pubsub_jar() is None else None
    if lacking:
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(lacking)
    folder = tmp_path_factory.mktemp("stream_emulators")
    with local_cloud(folder, with_pubsub=True, with_labels=False) as servers:
        servers.cloud.storage().create_bucket("bucket")
        servers.cloud.bigquery().create_dataset(f"{servers.cloud.project}.streams")
        yield servers


@pytest.fixture(scope="session")
def labelled_emulators(stream_emulators: LocalCloud) -> Iterator[LocalCloud]:
    """The same, where topics and subscriptions keep their labels."""
    port, endpoints = free_port(), stream_emulators.endpoints
    with keeping_labels(str(endpoints.pubsub), port):
        yield replace(stream_emulators, endpoints=replace(endpoints, pubsub=f"localhost:{port}"))


@pytest.fixture
def make_world(
    labelled_emulators: LocalCloud, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> Iterator[Callable[..., Any]]:
    """The name of a project of its own, its pipelines -> the World of tests/resources_world.py."""
    # Not before a test wants it: clients of Google take seconds.
    from resources_world import worlds

    with worlds(labelled_emulators, tmp_path, capsys) as make:
        yield make


@pytest.fixture
def dataset(emulators: LocalCloud, request: pytest.FixtureRequest) -> Iterator[str]:
    """The name of a dataset of the test's own, with its project."""
    name = f"{emulators.cloud.project}.d{abs(hash(request.node.nodeid)):x}"
    emulators.cloud.bigquery().create_dataset(name)
    yield name
    # The emulator answers the slower the more tables it has.
    emulators.cloud.bigquery().delete_dataset(name, delete_contents=True, not_found_ok=True)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests of a file on the emulators run in one process; each process starts them once."""
    for item in items:
        if {"emulators", "stream_emulators"}.intersection(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.xdist_group(item.path.name))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for lacking in (NO_EMULATORS, NO_PUBSUB):
        skipped = [
            r for r in terminalreporter.stats.get("skipped", ()) if lacking in str(r.longrepr)
        ]
        if skipped:
            terminalreporter.write_line(
                f"{len(skipped)} tests were skipped, since {lacking}", yellow=True
            )
