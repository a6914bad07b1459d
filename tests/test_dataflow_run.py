"""Jobs for a stand-in of Dataflow.

It checks them against Google's discovery documents, and executes them.
"""

import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from google.cloud import bigquery
from google.cloud.dataflow_v1beta3 import GetJobRequest, Job, JobState, UpdateJobRequest
from google.protobuf.json_format import MessageToDict
from same_scores import assert_scores
from serving_client import running
from waiting import wait_until

from cloud.clients import Cloud
from cloud.endpoints import Endpoints
from examples.google_api.faults import permission_denied
from examples.google_api.server import GoogleApi, google_api
from examples.google_api.staged_pipeline import ExecutingDataflow
from examples.local_cloud import LocalCloud
from pipelines import batch_local, batch_vertex, stream_local
from pipelines.command import Command, main
from pipelines.dataflow.facts import read_facts
from pipelines.dataflow.start import remove_staged
from pipelines.launch import command as launch

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
PROJECT = "my-project"


class Session:
    """A user of Dataflow: types commands, reads their output, and looks at files of the bucket."""

    def __init__(
        self, google: GoogleApi, service: ExecutingDataflow, cloud: Cloud, capsys: Any, home: str
    ) -> None:
        self.google, self.service, self.cloud = google, service, cloud
        self.url = google.url.replace("127.0.0.1", "localhost")
        self._capsys, self.home = capsys, home

    def type(self, command: Command, **given: Any) -> tuple[int, str, str]:
        """Run a command; return the exit code, standard output and standard error."""
        values = {name: value for name, value in given.items() if value is not None}
        argv = [t for n, v in values.items() for t in (f"--{n}", *([] if v is True else [str(v)]))]
        code = main(command, argv)
        captured = self._capsys.readouterr()
        return code, captured.out, captured.err

    def submit(self, command: Command, **given: Any) -> tuple[int, str, str]:
        """Run a command as a job; return the same as `type`."""
        job = {
            "runner": "DataflowRunner",
            "project": PROJECT,
            "region": "us-central1",
            "temp_location": f"{self.home}/tmp",
            "dataflow_endpoint": self.url,
        }
        return self.type(command, **job | given)

    def batch(self, **given: Any) -> dict[str, Any]:
        files = {"input_files": "gs://bucket/rows.parquet", "model": "gs://bucket/model"}
        return files | {"output_files": f"{self.home}/out", "run_id": "r"} | given

    def stream(self, **given: Any) -> dict[str, Any]:
        place = f"projects/{self.cloud.project}"
        flags = {
            "input_subscription": f"{place}/subscriptions/rows",
            "output_topic": f"{place}/topics/out-rows",
            "dead_letter_topic": f"{place}/topics/bad-rows",
            "model": "gs://bucket/model",
        }
        return flags | given

    def files(self, folder: str) -> dict[str, bytes]:
        bucket, prefix = self.cloud.storage().bucket("bucket"), folder.removeprefix("gs://bucket/")
        blobs = self.cloud.storage().list_blobs(bucket, prefix=prefix)
        return {blob.name: blob.download_as_bytes() for blob in blobs}

    def rows(self, folder: str) -> list[dict[str, Any]]:
        """Return the scored rows of a run, without their times and run id."""
        files = self.files(f"{folder}/scores/").values()
        rows = pa.concat_tables([pq.read_table(pa.BufferReader(f)) for f in files]).to_pylist()
        return sorted(
            [{k: v for k, v in r.items() if k not in ("scored_at", "run_id")} for r in rows],
            key=lambda row: row["row_id"],
        )

    def letters(self, folder: str) -> list[dict[str, Any]]:
        files = self.files(f"{folder}/dead_letters/").values()
        rows = [json.loads(line) for f in files for line in f.splitlines()]
        own = ("failed_at", "run_id")
        return sorted(
            [{k: v for k, v in r.items() if k not in own} for r in rows],
            key=lambda row: str(row["row_id"]),
        )


@pytest.fixture(scope="module")
def bucket(stream_emulators: LocalCloud, example: Path) -> Iterator[Cloud]:
    """The emulated cloud, with the example in its bucket, a subscription and topics."""
    cloud = stream_emulators.cloud
    there = cloud.storage().bucket("bucket")
    there.blob("rows.parquet").upload_from_filename(str(example / "transactions.parquet"))
    for path in (example / "model").iterdir():
        there.blob(f"model/{path.name}").upload_from_filename(str(path))
    place = f"projects/{cloud.project}"
    for topic in ("all-rows", "out-rows", "bad-rows"):
        cloud.publisher().create_topic(name=f"{place}/topics/{topic}")
    cloud.subscriber().create_subscription(
        name=f"{place}/subscriptions/rows", topic=f"{place}/topics/all-rows"
    )
    with pytest.MonkeyPatch.context() as patch:
        for variable, address in stream_emulators.environment.items():
            patch.setenv(variable, address)
        yield cloud


@pytest.fixture
def session(bucket: Cloud, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Iterator[Session]:
    service = ExecutingDataflow()
    with google_api(service) as google:
        yield Session(google, service, bucket, capsys, f"gs://bucket/{tmp_path.name}")


def printed(out: str) -> dict[str, str]:
    """Return the values of printed lines by their names."""
    return dict(line.split(maxsplit=1) for line in out.splitlines())  # type: ignore[misc]


def test_a_job_scores_the_same_rows_as_a_run_in_this_process(session: Session) -> None:
    code, out, err = session.submit(batch_local.COMMAND, **session.batch())
    assert (code, err) == (0, "")
    assert session.google.methods() == ["jobs.create"]
    lines = printed(out)
    assert lines["run"] == "r"
    assert lines["report"] == f"{session.home}/out/r/report.json"
    assert lines["console"].endswith(f"us-central1/{lines['job']}?project={PROJECT}")
    place = f"--attach {lines['job']} --project {PROJECT} --region us-central1"
    assert f"{place} --api_endpoints dataflow=http://localhost:" in lines["follow"]

    assert session.service.wait(lines["job"])["currentState"] == "JOB_STATE_DONE"
    code, out, _ = attach(session, lines["job"])
    assert code == 0
    assert re.search(r"^scored +1,980$", out, re.MULTILINE)

    here = f"{session.home}/here"
    assert session.type(batch_local.COMMAND, **session.batch(output_files=here))[0] == 0
    folders = (f"{session.home}/out/r", f"{here}/r")
    assert session.rows(folders[0]) == session.rows(folders[1])
    assert session.letters(folders[0]) == session.letters(folders[1])
    assert len(session.rows(folders[0])) == 1_980
    report = json.loads(session.files(folders[0])[f"{folders[0][12:]}/report.json"])
    assert (report["balanced"], report["rows_in"], report["pipeline"]) == (
        True,
        2_000,
        "batch_local",
    )


def job_of(session: Session, ident: str) -> Job:
    request = GetJobRequest(
        project_id=PROJECT, location="us-central1", job_id=ident, view="JOB_VIEW_ALL"
    )
    jobs = Cloud(PROJECT, Endpoints(dataflow=session.google.url)).dataflow().jobs
    return jobs.get_job(request=request)


def attach(session: Session, ident: str, **flags: Any) -> tuple[int, str, str]:
    place = {"attach": ident, "project": PROJECT, "region": "us-central1"}
    return session.type(launch.ATTACH, **place, api_endpoints=f"dataflow={session.url}", **flags)


def test_a_job_with_an_endpoint_scores_the_same_rows_as_a_run_in_this_process(
    session: Session, example: Path
) -> None:
    with running(example / "model") as served:
        flags = {"endpoint_url": f"http://{served.client.address}", "run_id": "v"}
        code, out, _ = session.submit(batch_vertex.COMMAND, **session.batch(**flags))
        assert code == 0
        assert session.service.wait(printed(out)["job"])["currentState"] == "JOB_STATE_DONE"
        here = session.batch(**flags, output_files=f"{session.home}/here")
        assert session.type(batch_vertex.COMMAND, **here)[0] == 0
    job, local = (session.rows(f"{session.home}/{part}/v") for part in ("out", "here"))
    assert [row["row_id"] for row in job] == [row["row_id"] for row in local]
    assert len(job) == 1_980
    assert_scores([r["score"] for r in job], [r["score"] for r in local])


def test_a_job_removes_the_files_of_an_exported_table(session: Session) -> None:
    client, table = session.cloud.bigquery(), f"{session.cloud.project}.streams.exported"
    config = bigquery.LoadJobConfig(source_format="PARQUET")
    rows = io.BytesIO(session.files("gs://bucket/rows.parquet")["rows.parquet"])
    client.load_table_from_file(rows, table, job_config=config).result()
    source = {"input_files": None, "input_table": table, "read_method": "export"}
    code, out, err = session.submit(
        batch_local.COMMAND,
        **session.batch(**source, billing_project=session.cloud.project),
    )
    assert (code, err) == (0, "")
    job = session.service.wait(printed(out)["job"])
    assert job["currentState"] == "JOB_STATE_DONE", session.service.messages[job["id"]]
    assert len(session.rows(f"{session.home}/out/r")) == 1_980
    assert session.files(f"{session.home}/tmp/millrace") == {}


def test_a_failed_job_says_why_and_its_facts_name_the_files_to_remove(
    session: Session,
) -> None:
    bucket = session.cloud.storage().bucket("bucket")
    manifest = json.loads(session.files("gs://bucket/model/model.json")["model/model.json"])
    manifest["golden"]["outputs"] = {
        name: [[2.0e9] * len(row) if isinstance(row, list) else 2.0e9 for row in rows]
        for name, rows in manifest["golden"]["outputs"].items()
    }
    bucket.blob("broken/model.json").upload_from_string(json.dumps(manifest))
    bucket.copy_blob(bucket.blob(f"model/{manifest['file']}"), bucket, f"broken/{manifest['file']}")
    flags = session.batch(model="gs://bucket/broken", json_summary=True)
    code, out, _ = session.submit(batch_local.COMMAND, **flags)
    assert code == 0
    ident = json.loads(out)["job"]
    assert session.service.wait(ident)["currentState"] == "JOB_STATE_FAILED"
    facts = read_facts(
        MessageToDict(Job.pb(job_of(session, ident)).environment.sdk_pipeline_options)["options"]
    )
    assert facts is not None
    (staging,) = facts.staging
    # A worker that is killed leaves the files that it had written.
    left = f"{staging.removeprefix('gs://bucket/')}/{facts.attempt}-half.parquet"
    bucket.blob(left).upload_from_string("x")
    code, _, err = attach(session, ident)
    assert code == 1
    assert "known-good row" in err.splitlines()[-1]
    remove_staged(facts)
    assert session.files(staging) == {}
    assert session.files(facts.report or "") == {}


def test_a_stream_is_started_replaced_and_drained(session: Session) -> None:
    flags = session.stream(max_batch_wait_ms=50)
    code, out, err = session.submit(stream_local.COMMAND, **flags)
    # The emulator does not accept labels, so there is no advice to remove one.
    assert (code, err.count("\n")) == (0, 1)
    assert err.startswith("with --max_batch_wait_ms, Dataflow acknowledges messages before their")
    assert "drain it, because a cancel loses what it holds" in err
    first = printed(out)
    assert first["subscription"] == flags["input_subscription"]
    assert job_of(session, first["job"]).type_.name == "JOB_TYPE_STREAMING"
    again = {"update": True, "job_name": first["name"]}
    code, _, err = session.submit(stream_local.COMMAND, **session.stream(**again))
    assert code == 2
    assert "ScoreStream/Gather/Key" in err

    code, out, err = session.submit(stream_local.COMMAND, **flags | again)
    assert code == 0, err
    second = printed(out)
    assert second["name"] == first["name"]
    old = job_of(session, first["job"])
    assert old.current_state.name == "JOB_STATE_UPDATED"
    assert old.replaced_by_job_id == second["job"]
    request_state(session, second["job"], JobState.JOB_STATE_DRAINED)


def request_state(session: Session, ident: str, state: JobState) -> None:
    """Request a state of a job, and wait until the job is in it."""
    request = UpdateJobRequest(
        project_id=PROJECT, location="us-central1", job_id=ident, job=Job(requested_state=state)
    )
    Cloud(PROJECT, Endpoints(dataflow=session.google.url)).dataflow().jobs.update_job(
        request=request
    )
    wait_until(lambda: job_of(session, ident).current_state == state)


def test_a_rejected_job_is_reported_in_one_line_and_leaves_no_files(session: Session) -> None:
    fault = permission_denied("dataflow.jobs.create", "projects/my-project")
    session.google.faults = lambda call: fault if call.method.endswith("jobs.create") else None
    code, out, err = session.submit(batch_local.COMMAND, **session.batch())
    assert (code, out) == (1, "")
    assert err.startswith("error: job pytorch-batch-")
    assert "dataflow.jobs.create" in err
    assert "roles/dataflow.developer" in err
    assert err.count("\n") == 1
    assert session.files(f"{session.home}/out") == {}


def test_a_second_job_with_the_name_of_a_running_job_is_rejected(
    session: Session,
) -> None:
    flags = session.stream(job_name="the-one")
    code, out, _ = session.submit(stream_local.COMMAND, **flags)
    assert code == 0
    code, _, err = session.submit(stream_local.COMMAND, **flags, allow_shared_subscription=True)
    assert code == 1
    assert "already an active job named the-one" in err
    assert "the-one; choose another --job_name, or pass --update to replace that job" in err
    assert err.count("\n") == 1
    request_state(session, printed(out)["job"], JobState.JOB_STATE_CANCELLED)


@pytest.mark.parametrize("flag", ["temp_location", "staging_location"])
def test_a_missing_bucket_is_reported_before_the_start(session: Session, flag: str) -> None:
    flags = session.batch() | {flag: "gs://no-such-bucket/tmp"}
    code, _, err = session.submit(batch_local.COMMAND, **flags)
    assert code == 1
    assert f"--{flag}" in err
    assert "bucket no-such-bucket does not exist" in err
    assert err.count("\n") == 1
    assert session.google.calls == []
