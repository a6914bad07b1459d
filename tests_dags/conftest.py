"""A local Airflow, with local servers for Google's APIs and the emulators."""

# ruff: noqa: E402
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from local_google import PROJECT, Alerts, Metrics, RestJobs, Templates, World

from examples.google_api.server import google_api
from examples.local_cloud import LocalCloud, local_cloud

HOME = tempfile.TemporaryDirectory(prefix="airflow-")
DAGS = Path(__file__).parent.parent / "dags"
# Airflow reads these variables when it is imported.
os.environ |= {
    "AIRFLOW_HOME": HOME.name,
    "AIRFLOW__CORE__DAGS_FOLDER": str(DAGS),
    "AIRFLOW__CORE__LOAD_EXAMPLES": "false",
    "AIRFLOW__CORE__UNIT_TEST_MODE": "false",
    "AIRFLOW_CONN_GOOGLE_CLOUD_DEFAULT": json.dumps(
        {
            "conn_type": "google_cloud_platform",
            "extra": {"is_anonymous": True, "project": PROJECT},
        }
    ),
}
sys.path.insert(0, str(DAGS))

from airflow import __version__ as airflow_version

IS_AIRFLOW_2 = airflow_version.startswith("2.")


@pytest.fixture(scope="session", autouse=True)
def _database() -> None:
    if IS_AIRFLOW_2:
        # Airflow's tables refer to the tables of users, which only the web server loads.
        import airflow.providers.fab.auth_manager.models  # noqa: F401
    command = [sys.executable, "-m", "airflow", "db", "migrate"]
    subprocess.run(command, check=True, capture_output=True, cwd=HOME.name)
    if IS_AIRFLOW_2:
        # Airflow 3 does this itself before it runs a DAG.
        parse().sync_to_db()


@pytest.fixture(scope="session")
def emulators(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCloud]:
    with local_cloud(tmp_path_factory.mktemp("emulators")) as servers:
        servers.cloud.storage().create_bucket("bucket")
        servers.cloud.bigquery().create_dataset(f"{PROJECT}.dags")
        yield servers


@pytest.fixture
def world(emulators: LocalCloud, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """Local servers that the hooks of Airflow and the DAGs' own calls use."""
    from airflow.providers.google.cloud.hooks import dataflow as hooks
    from google.auth.credentials import AnonymousCredentials
    from google.cloud.dataflow_v1beta3 import JobsV1Beta3Client
    from google.cloud.dataflow_v1beta3.services.jobs_v1_beta3.transports import (
        JobsV1Beta3RestTransport,
    )
    from millrace_dags import google as calls

    services = (Templates(emulators.environ()), Metrics(), Alerts())
    with google_api(*services) as google:
        world = World(emulators, google, *services)
        monkeypatch.setattr(calls, "build", world.build)
        monkeypatch.setattr(hooks, "build", world.build)

        async def client(*_: Any) -> RestJobs:
            transport = JobsV1Beta3RestTransport(
                host=google.url, url_scheme="http", credentials=AnonymousCredentials()
            )
            return RestJobs(JobsV1Beta3Client(transport=transport))

        monkeypatch.setattr(hooks.AsyncDataflowHook, "initialize_client", client)
        yield world


def parse() -> Any:
    """Parse the DAGs again, because Airflow keeps the params of one run in the DAG."""
    try:
        from airflow.dag_processing.dagbag import DagBag
    except ImportError:
        from airflow.models import DagBag
    return DagBag(str(DAGS))


@pytest.fixture
def dag_bag() -> Any:
    return parse()


@pytest.fixture
def run_dag() -> Callable[..., Any]:
    """A function that runs a DAG, and returns the states of its tasks and, as `run`, of the run."""

    def run(dag_id: str, moment: datetime, **conf: Any) -> dict[str, str]:
        dag = parse().dags[dag_id]
        for task in dag.tasks:
            # Retries and polls are real, but do not wait.
            task.retry_delay, task.retry_exponential_backoff = timedelta(0), False
            task.poll_sleep = 0
        date = {"execution_date" if IS_AIRFLOW_2 else "logical_date": moment}
        found = dag.test(**date, run_conf=conf)
        states = {ti.task_id: str(ti.state) for ti in found.get_task_instances()}
        return states | {"run": str(found.state)}

    return run
