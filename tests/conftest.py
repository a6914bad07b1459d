"""Fixtures that several test modules share, and the hooks that put each test into its tier.

Many fixtures return functions, because test modules do not import from this module.
"""

import gc
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from beam_specs import remember_specs
from command_line import Result, RunCommand, words
from filelock import FileLock
from hypothesis import settings
from prism_runner import NO_PRISM, prism_flags
from property_tests import WHOLE, register_profiles, thinned
from stand_ins import NO_EMULATORS, NO_PUBSUB, need_emulators
from tiers import TIERS, confined, tier_of, uses_emulators

from common.record_batch import derived_ids, source_batch
from examples.local_cloud import (
    LocalCloud,
    free_port,
    local_cloud,
)
from examples.pubsub_labels import keeping_labels
from model_handlers.manifests.manifest import InputSpec, Manifest, OutputSpec
from pipelines.command import Command, main
from transforms.provenance import Provenance

# In the background of a shell, or under nohup, the tests and the processes that they start would
# ignore these signals.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
register_profiles()


@pytest.fixture(scope="session")
def make_manifest() -> Callable[..., Manifest]:
    """A function that builds a manifest from inputs and fields.

    The default input has three float32 columns: a, b and c.
    """

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
    """A function that builds a source batch with the ids r-0, r-1, ... from columns by name."""

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


@pytest.fixture
def run_command(capsys: pytest.CaptureFixture[str]) -> RunCommand:
    """A function that runs a command with flags, and returns exit code, stdout and stderr.

    Flags with the value None are left out.
    """

    def run(command: Command, flags: Mapping[str, Any]) -> Result:
        code = main(command, words(flags))
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.fixture
def no_waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that the code would have slept. Daemon threads, of whatever library, do sleep."""
    waits: list[float] = []
    sleep = time.sleep

    def note(seconds: float) -> None:
        if threading.current_thread().daemon:
            sleep(seconds)
        else:
            waits.append(seconds)

    monkeypatch.setattr(time, "sleep", note)
    return waits


@pytest.fixture
def beam_processes() -> None:
    """Marks tests in which Beam starts processes: workers, or the packaging of a job's sources."""


@pytest.fixture
def multi_processing(beam_processes: None) -> dict[str, Any]:
    """The flags that make Beam's local runner start each worker as a separate process."""
    return {"direct_running_mode": "multi_processing", "direct_num_workers": 2}


@pytest.fixture
def prism(beam_processes: None) -> dict[str, str]:
    """The flags that run a pipeline on Beam's runner Prism."""
    return prism_flags()


@pytest.fixture(scope="session")
def tiny_package(
    tmp_path_factory: pytest.TempPathFactory, make_manifest: Callable[..., Manifest]
) -> tuple[str, Manifest]:
    """The path and the manifest of a package with the model of tests/tiny_model.py."""
    from tiny_model import write_tiny

    folder = tmp_path_factory.mktemp("tiny")
    return str(folder), write_tiny(folder, make_manifest)


@pytest.fixture(scope="session")
def example(tmp_path_factory: pytest.TempPathFactory, testrun_uid: str) -> Path:
    """The folder of a small example: its packages and 2,000 rows to score, 20 of which are faulty.

    All workers of pytest-xdist share it, because building it takes seconds.
    """
    # Importing torch takes seconds, and many tests do not need it.
    from examples.transactions.build import build

    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if base.name.startswith("popen-") else base) / f"example-{testrun_uid}"
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            unfinished = tmp_path_factory.mktemp("example")
            build(unfinished, rows=2_000, train_rows=3_000, seed=7)
            unfinished.rename(folder)
    return folder


ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="session")
def distribution(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel and the sdist.

    They are built from a copy, because setuptools writes into the folder that it builds, and
    another process may be doing the same.
    """
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    for path in ROOT.iterdir():
        if path.is_file():
            shutil.copy(path, source)
        elif (path / "__init__.py").exists() or path.name == "tests":
            leave = shutil.ignore_patterns("__pycache__")
            shutil.copytree(path, source / path.name, ignore=leave)
    shutil.copytree(ROOT / "docs" / "operate", source / "docs" / "operate")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return out


@pytest.fixture(scope="session")
def emulators(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCloud]:
    """Emulators of BigQuery and Cloud Storage, with an empty bucket `bucket`."""
    need_emulators()
    with local_cloud(tmp_path_factory.mktemp("emulators")) as servers:
        servers.cloud.storage().create_bucket("bucket")
        yield servers


@pytest.fixture(scope="session")
def stream_emulators(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCloud]:
    """Emulators of Pub/Sub too, with an empty bucket `bucket` and an empty dataset `streams`."""
    need_emulators(pubsub=True)
    folder = tmp_path_factory.mktemp("stream_emulators")
    with local_cloud(folder, with_pubsub=True, with_labels=False) as servers:
        servers.cloud.storage().create_bucket("bucket")
        servers.cloud.bigquery().create_dataset(f"{servers.cloud.project}.streams")
        yield servers


@pytest.fixture(scope="session")
def labelled_emulators(stream_emulators: LocalCloud) -> Iterator[LocalCloud]:
    """The stream emulators behind a proxy that keeps the labels of topics and subscriptions."""
    port, endpoints = free_port(), stream_emulators.endpoints
    with keeping_labels(str(endpoints.pubsub), port):
        yield replace(stream_emulators, endpoints=replace(endpoints, pubsub=f"localhost:{port}"))


@pytest.fixture
def make_world(
    labelled_emulators: LocalCloud, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> Iterator[Callable[..., Any]]:
    """A function that builds the World of tests/resources_world.py for a project and pipelines."""
    # Imported here, because importing Google's clients takes seconds.
    from resources_world import worlds

    with worlds(labelled_emulators, tmp_path, capsys) as make:
        yield make


@pytest.fixture
def dataset(emulators: LocalCloud, request: pytest.FixtureRequest) -> Iterator[str]:
    """The name, with its project, of a dataset that only this test uses."""
    name = f"{emulators.cloud.project}.d{abs(hash(request.node.nodeid)):x}"
    emulators.cloud.bigquery().create_dataset(name)
    yield name
    # The emulator gets slower with each table that it holds.
    emulators.cloud.bigquery().delete_dataset(name, delete_contents=True, not_found_ok=True)


def leave_out_cases(items: list[pytest.Function]) -> None:
    """Deselect the cases of tests marked `exhaustive` that this run skips."""
    lists = defaultdict(list)
    for item in items:
        if item.get_closest_marker("exhaustive"):
            # A case stays in each tier.
            lists[item.function, item.stash[TIER]].append(item)
    left_out = {item for cases in lists.values() for item in {*cases}.difference(thinned(cases))}
    items[:] = [item for item in items if item not in left_out]
    for item in left_out:
        item.config.hook.pytest_deselected(items=[item])


TIER, TRIED = pytest.StashKey[str](), pytest.StashKey[list[str]]()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Function]) -> None:
    """Mark each test with its tier, and keep a file's tests on the emulators in one process."""
    for item in items:
        item.stash[TIER] = tier = tier_of(item)
        item.add_marker(tier)
        if uses_emulators(item):
            item.add_marker(pytest.mark.xdist_group(item.path.name))
    leave_out_cases(items)


def pytest_collection_finish() -> None:
    # The modules imported by now stay loaded. The garbage collector does not need to search them in
    # each test.
    gc.collect()
    gc.freeze()


def pytest_sessionfinish() -> None:
    # Destructors that raise are reported here. Pytest would search all objects five more times.
    gc.collect()
    gc.freeze()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Function) -> Iterator[None]:
    with confined(item.stash[TIER]) as item.stash[TRIED]:
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Function) -> Iterator[None]:
    yield
    if item.stash[TRIED]:
        pytest.fail(item.stash[TRIED][0], pytrace=False)


def pytest_sessionstart() -> None:
    # By now Hypothesis has read its profile.
    if settings().max_examples < WHOLE:
        remember_specs()


def pytest_configure(config: pytest.Config) -> None:
    for tier, cost in TIERS.items():
        config.addinivalue_line("markers", f"{tier}: {cost}")
    config.addinivalue_line("markers", "exhaustive: the fast tiers run only every tenth case")
    config.addinivalue_line("markers", "slow: make test-fast leaves it out")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for lacking in (NO_EMULATORS, NO_PUBSUB, NO_PRISM):
        skipped = [
            r for r in terminalreporter.stats.get("skipped", ()) if lacking in str(r.longrepr)
        ]
        if skipped:
            terminalreporter.write_line(
                f"{len(skipped)} tests were skipped: {lacking}", yellow=True
            )
