"""Tests setup, status and cleanup on the emulators and the stand-in."""

import io
import json
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httplib2
import pyarrow as pa
import pytest
import requests
from google.cloud import aiplatform_v1
from google.cloud.bigquery import Dataset, SchemaField, Table
from grpc._channel import _UnaryUnaryMultiCallable
from pyarrow import parquet
from resources_world import SMALL, VERTEX, World

from common.errors import ResourceError
from common.terminal import Progress
from examples.google_api.faults import Call, Refusal, api_disabled, permission_denied
from examples.local_cloud import PROJECT, LocalCloud
from pipelines.stream.config import Subscription
from pipelines.stream.subscription import open_subscription
from resources.config import Config
from resources.declaration import declare
from resources.kinds.catalog import open_kinds
from resources.kinds.names import REMOVABLE
from resources.package import open_package
from resources.setup import set_up
from transforms.bigquery.schema import table_fields
from transforms.row_schemas import REFERENCE_STREAM_SCHEMA


def test_setup_and_cleanup_run_twice_from_nothing_to_nothing(
    make_world: Callable[..., World], example: Path
) -> None:
    world = make_world("twice", model=str(example / "model"))
    for _ in range(2):
        assert set(world.plan().values()) == {"create"}
        made = world.fine("setup", "--load_example", "50")
        assert "created  table millrace-test.twice.twice_batch_results" in made
        assert world.plan() == {}
        assert "0 changes" in world.fine("setup", "--load_example", "50")
        code, _, err = world.run("cleanup", "--yes")
        assert (code, "50 table rows would be lost" in err) == (2, True), err
        world.fine("cleanup", "--yes", "--project_confirm", PROJECT)
        assert "nothing to remove" in world.fine("cleanup")
        # APIs stay enabled.
        world.usage.enabled.clear()


class Killed(BaseException):
    """An exception that stands for the end of the process."""


class Calls:
    """Counts the requests that change something, and raises Killed when `left` are used up."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.left: int | None = None
        self.changes: list[str] = []
        for holder, name, describe in (
            (requests.Session, "send", lambda _, request, **__: (request.method, request.url)),
            (httplib2.Http, "request", lambda _, uri, method="GET", **__: (method, uri)),
            (_UnaryUnaryMultiCallable, "with_call", _grpc_call),
            (_UnaryUnaryMultiCallable, "__call__", _grpc_call),
        ):
            monkeypatch.setattr(holder, name, self._counted(getattr(holder, name), describe))

    def _counted(self, carry_out: Any, describe: Any) -> Any:
        def counted(*args: Any, **rest: Any) -> Any:
            answer = carry_out(*args, **rest)
            method, name = describe(*args, **rest)
            if method not in ("GET", "HEAD") and not name.endswith(":getIamPolicy?alt=json"):
                self.changes.append(f"{method} {name}")
                if self.left is not None:
                    self.left -= 1
                    if self.left < 0:
                        raise Killed
            return answer

        return counted


def _grpc_call(callable_: Any, *_: Any, **__: Any) -> tuple[str, str]:
    name = callable_._method if isinstance(callable_._method, str) else callable_._method.decode()
    verb = name.rpartition("/")[2]
    return ("GET" if verb.startswith(("Get", "List")) else "POST", name)


def test_killed_after_any_call_setup_and_cleanup_continue_where_they_stopped(
    make_world: Callable[..., World], example: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = make_world("killed", SMALL, model=str(example / "pytorch_autoencoder.mar"))
    calls = Calls(monkeypatch)
    cleanup = ("cleanup", "--yes", "--project_confirm", PROJECT)
    for command, action in ((("setup",), "keep"), (cleanup, "create")):
        kills = 0
        while True:
            # Each run is killed after its first call that changes something.
            calls.left = 0
            try:
                code, _, err = world.run(*command)
            except Killed:
                kills += 1
                continue
            assert (code, err) == (0, "")
            break
        calls.left = None
        # A call whose response was lost is not made a second time.
        assert kills == len(calls.changes)
        calls.changes.clear()
        assert kills > 20
        left = world.plan()
        assert set(left.values()) <= {action}
        # APIs stay enabled.
        assert not any(name.startswith("service") for name in left)


def test_two_concurrent_setups_end_in_one_state(
    make_world: Callable[..., World], example: Path
) -> None:
    world = make_world("both", SMALL, model=str(example / "model"))
    config = Config(**{**world.config, "pipelines": SMALL})
    package = open_package(str(example / "model"))
    resources = declare(config, model_digest=package.digest)
    barrier = threading.Barrier(2)

    def run(_: int) -> None:
        kinds = open_kinds(world.cloud, config, package)
        barrier.wait()
        while True:
            try:
                set_up(resources, kinds, Progress(io.StringIO(), io.StringIO()))
            except ResourceError as error:
                # The emulator refuses concurrent changes in this way. BigQuery does not.
                if "DuckLake" not in str(error):
                    raise
            else:
                return

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(run, range(2)))
    assert world.plan() == {}
    world.fine("cleanup", "--yes")
    assert "nothing to remove" in world.fine("cleanup")


def everything(world: World) -> dict[str, Any]:
    """Return everything that the servers hold, including what setup did not create."""
    bigquery, storage = world.cloud.bigquery(), world.cloud.storage()
    place = f"projects/{PROJECT}"
    tables = [t for d in bigquery.list_datasets() for t in bigquery.list_tables(d.reference)]
    policy = world.cloud.discovered("cloudresourcemanager", "v3").projects()
    return {
        "tables": {str(t.reference): bigquery.get_table(t).num_rows for t in tables},
        "datasets": sorted(d.dataset_id for d in bigquery.list_datasets()),
        "objects": sorted(
            f"{b.name}/{o.name}" for b in storage.list_buckets() for o in b.list_blobs()
        ),
        "topics": sorted(t.name for t in world.cloud.publisher().list_topics(project=place)),
        "subscriptions": sorted(
            s.name for s in world.cloud.subscriber().list_subscriptions(project=place)
        ),
        "jobs": {j["name"]: j["currentState"] for j in world.dataflow.jobs.values()},
        "accounts": world.iam.emails(),
        "policy": policy.getIamPolicy(resource=place, body={}).execute().get("bindings", []),
        "models": sorted(m["displayName"] for m in world.vertex.store.all()),
    }


# Suffixes that lead to names like those of Millrace, and unusual ones.
@pytest.mark.parametrize(
    "names",
    [["", "x", "c1-b_"], ["-input-vertex-2", "-output-sub-vertexx"], ["_batch_results_2", "-9"]],
    ids=["short", "vertex", "results"],
)
def test_undeclared_resources_are_never_touched(
    make_world: Callable[..., World], request: pytest.FixtureRequest, names: list[str]
) -> None:
    world = make_world(f"among{request.node.callspec.id}", VERTEX)
    world.fine("setup")
    stem = world.name
    bigquery, storage = world.cloud.bigquery(), world.cloud.storage()
    publisher, subscriber = world.cloud.publisher(), world.cloud.subscriber()
    vertex = world.cloud.vertex("us-central1")
    bucket = storage.bucket(f"{stem}-bucket")
    parent = f"projects/{PROJECT}/locations/us-central1"
    # This table has the name of the source table. The model below has that of the registered model.
    bigquery.query_and_wait(f"CREATE TABLE `{PROJECT}.{stem}.frameworks` AS SELECT 1 AS a")
    for name in names:
        table = re.sub(r"\W", "_", f"{stem}_other{name}")
        bigquery.query_and_wait(f"CREATE TABLE `{PROJECT}.{stem}.{table}` AS SELECT 1 AS a")
        topic = f"projects/{PROJECT}/topics/{stem}-other{name}"
        publisher.create_topic(name=topic)
        subscription = f"projects/{PROJECT}/subscriptions/{stem}-other{name}"
        subscriber.create_subscription(name=subscription, topic=topic)
        for path in (
            f"other{name}/models/m",
            f"frameworks/pytorch-autoencoder/dataflow/current.json{name}.bak",
            f"frameworks/pytorch-autoencoder/dataflow/models-other{name}/m",
            f"frameworks/pytorch-autoencoder/dataflow/other{name}",
        ):
            bucket.blob(path).upload_from_string(b"mine")
        for job in (f"other{name}-streaming-1", f"{stem}x-streaming{name}-1", f"{stem}-{name}"):
            world.dataflow.add(
                job, PROJECT, "us-central1", type="JOB_TYPE_STREAMING",
                currentState="JOB_STATE_RUNNING",
            )  # fmt: skip
    # Someone else subscribes to a topic of Millrace.
    ours = f"projects/{PROJECT}/topics/{stem}-output-vertex"
    subscriber.create_subscription(
        name=f"projects/{PROJECT}/subscriptions/{stem}-someones", topic=ours
    )
    vertex.models.upload_model(
        aiplatform_v1.UploadModelRequest(
            parent=parent,
            model=aiplatform_v1.Model(
                display_name=stem, container_spec={"image_uri": "some/image"}
            ),
            model_id=stem,
        )
    )
    account = f"{stem}-worker@{PROJECT}.iam.gserviceaccount.com"
    policy = world.cloud.discovered("cloudresourcemanager", "v3").projects()
    project = f"projects/{PROJECT}"
    now = policy.getIamPolicy(resource=project, body={}).execute()
    for binding in now["bindings"]:
        binding["members"].append("user:someone@example.com")
    conditional = {"title": "t", "expression": "true"}
    member, else_ = f"serviceAccount:{account}", "user:else@example.com"
    now["bindings"].append(
        {"role": "roles/dataflow.worker", "members": [else_], "condition": conditional}
    )
    policy.setIamPolicy(resource=project, body={"policy": now}).execute()

    before = everything(world)
    code, out, err = world.run("cleanup", "--yes")
    assert (code, err) == (0, ""), err
    after = everything(world)

    gone = {kind: [n for n in before[kind] if n not in after[kind]] for kind in before}
    declared = {r.name for r in declare(Config(**{**world.config, "pipelines": VERTEX}))}
    for kind in ("tables", "topics", "subscriptions"):
        assert gone[kind]
        assert {*gone[kind]} <= declared
    assert gone["accounts"] == [account]
    for kind in ("datasets", "objects", "jobs", "models"):
        assert before[kind] == after[kind], kind
    for binding in after["policy"]:
        assert member not in binding["members"]
        assert "condition" in binding or "user:someone@example.com" in binding["members"]
    assert len(after["policy"]) == len(before["policy"])
    assert ours in after["topics"]
    for kept in ("bucket", "dataset", "topic", "registry_model", "table"):
        assert f"kept  {kept} " in out


def test_a_preview_changes_nothing_and_reports_what_would_be_lost(
    make_world: Callable[..., World], monkeypatch: pytest.MonkeyPatch
) -> None:
    world = make_world("dry", SMALL)
    world.fine("setup", "--load_example", "30")
    calls = Calls(monkeypatch)
    preview = world.fine("cleanup")
    apply = f"nothing was changed; to apply, pass --yes and --project_confirm {PROJECT}"
    # Without Cloud Monitoring, the number of waiting messages is unknown.
    assert re.search(rf"{apply} \((an unknown .* and )?30 table rows would be lost\)", preview)
    kept = world.fine("cleanup", "--kinds", "topic")
    assert kept.rstrip().endswith("nothing was changed; to apply, pass --yes")
    assert re.search(r"remove +table +millrace-test\.dry\.frameworks +30 rows, [\d.]+ k?B", preview)
    assert calls.changes == []
    for wrong in ((), ("--project_confirm", "other")):
        code, _, err = world.run("cleanup", "--yes", *wrong)
        assert (code, "to confirm, pass --project_confirm millrace-test" in err) == (2, True)
        assert calls.changes == []
    # What holds no rows can be removed without a confirmation.
    world.fine("cleanup", "--yes", "--kinds", "topic,subscription,role")


def test_truncated_tables_are_kept(make_world: Callable[..., World]) -> None:
    world = make_world("cut", SMALL)
    world.fine("setup", "--load_example", "30")
    out = world.fine("cleanup", "--truncate", "--yes", "--project_confirm", PROJECT)
    assert "truncated  table millrace-test.cut.frameworks" in out
    assert "4 emptied, 0 kept, 0 failed" in out
    # The emulator's num_rows still counts the removed rows.
    count = f"SELECT COUNT(*) FROM `{PROJECT}.cut.frameworks`"
    assert [tuple(row) for row in world.cloud.bigquery().query_and_wait(count)] == [(0,)]
    assert world.plan() == {}
    world.fine("cleanup", "--yes", "--project_confirm", PROJECT)


def test_jobs_are_drained_before_their_resources_are_removed(
    make_world: Callable[..., World], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("resources.jobs._POLL_SECONDS", 0.0)
    world = make_world("drain", ("batch_local", "stream_local"))
    world.dataflow.polls = 2
    world.fine("setup")
    for kind, name in (("STREAMING", "streaming-1"), ("BATCH", "batch-1"), ("BATCH", "batch-x-2")):
        world.dataflow.add(
            f"drain-{name}", PROJECT, "us-central1", type=f"JOB_TYPE_{kind}",
            currentState="JOB_STATE_RUNNING",
        )  # fmt: skip
    # While the jobs run, their resources are kept.
    code, _, err = world.run("cleanup", "--yes", "--kinds", "topic,subscription")
    running = "job drain-streaming-1 is still running, so cleanup kept "
    assert (code, running in err) == (1, True)
    # They are also kept if another job is selected.
    every = ("--kinds", ",".join(REMOVABLE))
    stream = (*every, "--pipelines", "stream")
    code, out, err = world.run("cleanup", "--yes", *stream, "--jobs", "*-9")
    assert (code, "is still running" in err, "removed" in out.replace("0 removed", "")) == (
        1,
        True,
        False,
    )
    calls = Calls(monkeypatch)
    out = world.fine("cleanup", "--yes", *stream, "--jobs", "*-1")
    assert "draining  job drain-streaming-1" in out
    states = {j["name"]: j["currentState"][10:] for j in world.dataflow.jobs.values()}
    assert states["drain-streaming-1"] == "DRAINED"
    assert calls.changes[0].startswith("PUT")
    # Everything that the batch pipeline also needs still exists.
    left = world.plan()
    assert left
    assert all("input" in n or "output" in n or "roles/pubsub" in n or "stream" in n or
               "dead-letters" in n or "model-update" in n for n in left)  # fmt: skip
    out = world.fine("cleanup", "--yes")
    states = {j["name"]: j["currentState"][10:] for j in world.dataflow.jobs.values()}
    assert {states["drain-batch-1"], states["drain-batch-x-2"]} <= {"CANCELLED", "DONE"}
    assert "nothing to remove" in world.fine("cleanup")


def test_a_region_that_does_not_respond_does_not_count_as_one_without_jobs(
    make_world: Callable[..., World], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("resources.jobs._POLL_SECONDS", 0.0)
    world = make_world("silent", SMALL)
    world.fine("setup")
    job = world.dataflow.add(
        "silent-streaming-1", PROJECT, "us-east1", type="JOB_TYPE_STREAMING",
        currentState="JOB_STATE_RUNNING",
    )  # fmt: skip
    world.dataflow.polls, world.dataflow.silent = 10**6, "us-east1"
    world.dataflow.times = 10**6
    out = world.fine("status")
    assert "warning: jobs of us-east1 could not be listed: more jobs may run there" in out
    code, out, err = world.run("cleanup", "--yes", "--retry_seconds", "0")
    assert (code, "removed  " not in out) == (1, True)
    assert "cannot inspect jobs: " in err
    assert "jobs of us-east1 could not be listed" in err
    # Transient errors are retried, also while a job ends.
    world.dataflow.polls = 0
    world.dataflow.times = 1
    out = world.fine("cleanup", "--yes", "--cancel")
    assert job["currentState"] == "JOB_STATE_CANCELLED"
    assert out.index("ended  job silent-streaming-1") < out.index("removed  subscription")


def test_a_job_that_does_not_end_in_time_keeps_what_it_uses(
    make_world: Callable[..., World], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("resources.jobs._POLL_SECONDS", 0.0)
    world = make_world("slow", SMALL)
    world.dataflow.polls = 10**6
    world.fine("setup")
    job = world.dataflow.add(
        "slow-streaming-1", PROJECT, "us-central1", type="JOB_TYPE_STREAMING",
        currentState="JOB_STATE_RUNNING",
    )  # fmt: skip
    code, out, err = world.run("cleanup", "--yes", "--wait", "0m")
    todo = "run the command again, or add --cancel"
    assert (code, f"slow-streaming-1 did not end within 0 minutes: {todo}" in err) == (1, True)
    assert "removed  " not in out
    assert world.plan() == {}
    world.dataflow.polls = 0
    out = world.fine("cleanup", "--yes", "--cancel")
    assert job["currentState"] in ("JOB_STATE_CANCELLED", "JOB_STATE_DRAINED")


def test_cleanup_continues_after_an_error_and_reports_it_at_the_end(
    make_world: Callable[..., World],
) -> None:
    world = make_world("goes-on", SMALL, dataset="goes_on")
    world.fine("setup")

    def refuse(call: Call) -> Refusal | None:
        if call.method.endswith("setIamPolicy"):
            return permission_denied("resourcemanager.projects.setIamPolicy", PROJECT)
        return None

    world.google.faults = refuse
    code, out, err = world.run("cleanup", "--yes")
    assert code == 1
    assert err.count("grant the account the role roles/resourcemanager.projectIamAdmin") == 8
    assert "removed  bucket goes-on-bucket" in out
    assert "kept  account goes-on-worker@" in out
    world.google.faults = lambda _: None
    world.fine("cleanup", "--yes")
    assert "nothing to remove" in world.fine("cleanup")


def test_status_shows_jobs_waiting_messages_and_warnings(
    make_world: Callable[..., World],
) -> None:
    world = make_world("seen", SMALL)
    world.fine("setup", "--load_example", "20")
    subscription = f"projects/{PROJECT}/subscriptions/seen-input-sub-local"
    now = datetime.now(UTC)
    for days, name in ((91, "forgotten"), (1, "new")):
        job = world.dataflow.add(
            f"seen-streaming-{name}",
            PROJECT,
            "us-central1",
            type="JOB_TYPE_STREAMING",
            currentState="JOB_STATE_RUNNING",
            createTime=(now - timedelta(days=days)).isoformat().replace("+00:00", "Z"),
            jobMetadata={"pubsubDetails": [{"subscription": subscription}]},
        )
        world.dataflow.metrics[job["id"]] = [
            {"name": {"origin": "dataflow/v1b3", "name": metric}, "scalar": value}
            for metric, value in (
                ("TotalVcpuTime", days * 4 * 86400),
                ("TotalMemoryUsage", days * 15 * 1024 * 86400),
                ("TotalPdUsage", days * 30 * 86400),
            )
        ]
    world.dataflow.polls = 100
    # A job of any name is shown if it reads a subscription of Millrace.
    world.dataflow.add(
        "third",
        PROJECT,
        "us-central1",
        jobMetadata={"pubsubDetails": [{"subscription": subscription}]},
    )
    # A job of another prefix is not shown. A job of Millrace is shown in any region.
    world.dataflow.add("other-streaming-1", PROJECT, "us-central1")
    world.dataflow.add("seen-batch-vertex-1", PROJECT, "europe-west4")
    world.monitoring.values_by_metric = {
        "num_undelivered_messages": {"seen-input-sub-local": 1234, "another": 7},
        "oldest_unacked_message_age": {"seen-input-sub-local": 7200},
    }
    lonely = f"projects/{PROJECT}/topics/seen-output-local"
    world.cloud.subscriber().delete_subscription(
        subscription=f"projects/{PROJECT}/subscriptions/seen-output-sub-local"
    )

    text = world.fine("status")
    # 91 days of 4 processors, 15 GB of memory and 30 GB of disk, by the hour.
    cost = 91 * 24 * (4 * 0.069 + 15 * 0.003557 + 30 * 0.000054)
    assert re.search(rf"seen-streaming-forgotten +running +91 days +{cost:.2f} USD", text)
    assert "warning: job seen-streaming-forgotten is 91 days old, more than 7 days" in text
    assert "other-streaming" not in text
    jobs = "seen-streaming-forgotten and seen-streaming-new and third"
    assert f"warning: jobs {jobs} read {subscription}" in text
    assert (
        f"warning: topic {lonely} has no subscription, so messages published to it are lost: "
        "create a subscription if you need them (gcloud pubsub subscriptions create NAME "
        f"--topic={lonely})"
    ) in text
    assert re.search(rf"{subscription} +1,234 waiting messages, the oldest 2 hours old", text)
    assert re.search(r"exists +table +millrace-test\.seen\.frameworks +20 rows, ", text)
    assert re.search(r"missing +subscription .*seen-output-sub-local", text)

    found = json.loads(world.fine("status", "--json", "--max_age", "100d"))
    by_name = {r["name"]: r for r in found["resources"]}
    assert by_name[f"{PROJECT}.seen.frameworks"]["rows"] == 20
    assert by_name[subscription]["messages"] == 1234
    assert [job["age_seconds"] // 86400 for job in found["jobs"]] == [91, 1, 0, 0]
    assert [job["pipeline"] for job in found["jobs"][2:]] == [None, "batch_vertex"]
    assert found["jobs"][0]["estimated_usd"] == round(cost, 2)
    assert len(found["warnings"]) == 2
    *others, third = sorted(world.dataflow.jobs.values(), key=lambda job: job["name"] == "third")
    for job in others:
        job["currentState"] = "JOB_STATE_DRAINED"
    only = ("--kinds", "job,subscription")
    code, out, err = world.run("cleanup", "--yes", *only)
    assert code == 1
    assert f"job third is still running, so cleanup kept subscription {subscription}: if the" in err
    assert (out.count("removed  "), third["currentState"]) == (2, "JOB_STATE_PENDING")
    third["currentState"] = "JOB_STATE_CANCELLED"
    world.fine("cleanup", "--yes", "--project_confirm", PROJECT)


def test_status_shows_what_it_can_and_reports_what_it_cannot_see(
    make_world: Callable[..., World],
) -> None:
    world = make_world("partly", SMALL)
    world.fine("setup")

    def refuse(call: Call) -> Refusal | None:
        if call.method.startswith("monitoring"):
            return permission_denied("monitoring.timeSeries.list", PROJECT)
        return api_disabled("dataflow.googleapis.com", PROJECT) if "jobs" in call.method else None

    world.google.faults = refuse
    code, out, err = world.run("status")
    assert code == 1
    assert re.search(r"^exists +table +", out, re.MULTILINE)
    assert "grant the account the role roles/monitoring.viewer" in err
    assert "gcloud services enable dataflow.googleapis.com" in err
    backlog, jobs = [line for line in err.splitlines() if line.startswith("error: ")]
    assert backlog.endswith("explain resources]")
    assert jobs.endswith("explain cannot-follow]")
    # No job can run while the API is disabled.
    world.google.faults = lambda call: refuse(call) if "jobs" in call.method else None
    world.fine("cleanup", "--yes")


def test_a_changed_model_is_never_skipped(make_world: Callable[..., World], example: Path) -> None:
    world = make_world("models", SMALL)
    kinds = ("--kinds", "bucket,model")
    storage = world.cloud.storage()

    def current() -> dict[str, Any]:
        folder = storage.bucket("models-bucket").blob(
            "frameworks/pytorch-autoencoder/dataflow/current.json"
        )
        return dict(json.loads(folder.download_as_bytes()))

    world.fine("setup", *kinds, "--model", str(example / "pytorch_autoencoder.mar"))
    first = current()
    # Setup extracted the model file from the archive.
    assert set(first["files"]) == {"model.pt", "model.json", "pytorch_autoencoder.mar"}
    package = example.parent / "changed"
    shutil.copytree(example / "model", package)
    manifest = json.loads((package / "model.json").read_text())
    (package / "model.json").write_text(json.dumps({**manifest, "version": "2.0.0"}))
    code, out, _ = world.run("plan", *kinds, "--model", str(package))
    assert (code, "change" in out, f"digest is {first['digest']}" in out) == (3, True, True)
    world.fine("setup", *kinds, "--model", str(package))
    second = current()
    assert second["model"] != first["model"]
    assert (second["version"], second["sha256"]) == ("2.0.0", first["sha256"])
    # The first package still exists for jobs that use it.
    for pointer in (first, second):
        bucket, _, folder = pointer["folder"].removeprefix("gs://").partition("/")
        for name in pointer["files"]:
            assert storage.bucket(bucket).blob(folder + name).exists()
    assert "0 changes" in world.fine("setup", *kinds, "--model", str(package))
    # Setup uploads a damaged file again.
    storage.bucket(bucket).blob(f"{folder}model.pt").upload_from_string(b"something else")
    assert "changed  model" in world.fine("setup", *kinds, "--model", str(package))
    # A new blob, because the one that was uploaded requests its own generation.
    blob = storage.bucket(bucket).blob(f"{folder}model.pt")
    assert blob.download_as_bytes() == (package / "model.pt").read_bytes()
    world.fine("cleanup", "--yes", "--kinds", "files,bucket")


def test_a_model_that_does_not_work_is_not_set_up(
    make_world: Callable[..., World], example: Path, tmp_path: Path
) -> None:
    world = make_world("wrong", SMALL)
    world.tries_models = True
    kinds = ("--kinds", "bucket,model")
    table = tmp_path / "rows.parquet"
    parquet.write_table(pa.table({"a": [1.0]}), table)
    wrong = tmp_path / "wrong"
    shutil.copytree(example / "model", wrong)
    manifest = json.loads((wrong / "model.json").read_text())
    manifest["golden"]["outputs"][manifest["score_output"]][0] += 1
    (wrong / "model.json").write_text(json.dumps(manifest))
    for model, message in ((table, "is a Parquet file"), (wrong, "known-good row 0, output")):
        code, _, err = world.run("setup", *kinds, "--model", str(model))
        assert code == 1
        assert message in err
        assert len(err.splitlines()) == 1
    assert not world.cloud.storage().bucket("wrong-bucket").exists()


def test_setup_adds_columns_and_repairs_only_what_it_created(
    make_world: Callable[..., World],
) -> None:
    world = make_world("repaired", SMALL)
    kinds = ("--kinds", "dataset,table,topic,subscription")
    world.fine("setup", *kinds)
    bigquery, subscriber = world.cloud.bigquery(), world.cloud.subscriber()
    results = f"{PROJECT}.repaired.repaired_streaming_results"
    wanted = bigquery.get_table(results)
    bigquery.delete_table(results)
    fewer = Table(results, schema=[f for f in wanted.schema if f.name != "sequence"])
    fewer.labels, fewer.time_partitioning = wanted.labels, wanted.time_partitioning
    bigquery.create_table(fewer)
    subscription = f"projects/{PROJECT}/subscriptions/repaired-output-sub-local"
    subscriber.update_subscription(
        request={
            "subscription": {"name": subscription, "ack_deadline_seconds": 30},
            "update_mask": {"paths": ["ack_deadline_seconds"]},
        }
    )
    _, out, _ = world.run("plan", *kinds)
    assert "lacks column sequence (INTEGER)" in out
    assert "acknowledge deadline is 30 s, expected 60 s" in out
    out = world.fine("setup", *kinds)
    assert out.count("changed  ") == 2
    assert f"changed  table {results}  added column sequence (INTEGER)\n" in out
    change = "acknowledge deadline from 30 s to 60 s\n"
    assert f"changed  subscription {subscription}  {change}" in out
    assert world.run("plan", *kinds)[0] == 0
    # The same difference is a conflict if someone else created the table.
    bigquery.delete_table(results)
    fewer.labels = {}
    bigquery.create_table(fewer)
    code, _, err = world.run("setup", *kinds)
    conflict = "conflicts: table millrace-test.repaired.repaired_st"
    assert (code, conflict in err) == (1, True)
    assert "; no resource except APIs was created or changed" in err
    world.fine("cleanup", "--yes", *kinds)


@pytest.mark.parametrize("schema", ["reference", "default"])
def test_a_pipeline_runs_on_the_resources_of_setup(
    make_world: Callable[..., World], example: Path, stream_emulators: LocalCloud, schema: str
) -> None:
    own = {} if schema == "reference" else {"output_schema": schema}
    tables = {"batch_local": "used_batch_results" if schema == "reference" else "scores"}
    config = {"model": str(example / "model"), "tables": tables, **own}
    world = make_world("used", ("batch_local", "stream_local"), **config)
    out = world.fine("setup", "--load_example", "300")
    model = out.split("to use the model, pass --model ")[1].strip()
    results = f"{PROJECT}.used.{tables['batch_local']}"
    flags = {
        "input_table": f"{PROJECT}.used.frameworks",
        "model": model,
        "id_column": "transaction_id",
        "output_table": results,
        "output_schema": schema,
        "temp_location": "gs://used-bucket/frameworks/pytorch-autoencoder/dataflow/tmp",
        "project": PROJECT,
        "run_id": "first",
    }
    done = subprocess.run(
        [sys.executable, "-m", "pipelines.batch_local", *(f"--{k}={v}" for k, v in flags.items())],
        env=stream_emulators.environ(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    ident = "instance_id" if schema == "reference" else "row_id"
    count = f"SELECT COUNT(DISTINCT {ident}) FROM `{results}`"
    assert [tuple(row) for row in world.cloud.bigquery().query_and_wait(count)] == [(300,)]
    (shown,) = (line for line in world.fine("status").splitlines() if f"{results} " in line)
    assert "300 rows" in shown
    # A stream accepts the subscription.
    name = f"projects/{PROJECT}/subscriptions/used-input-sub-local"
    source = Subscription(name=name)
    output = f"projects/{PROJECT}/topics/used-output-local"
    assert open_subscription(source, world.cloud, [output]) == (name, False)
    # What the run left does not prevent the cleanup.
    out = world.fine("cleanup", "--yes", "--project_confirm", PROJECT)
    assert "0 kept, 0 failed" in out


def test_existing_resources_are_used_unchanged_or_refused_before_anything_is_created(
    make_world: Callable[..., World], monkeypatch: pytest.MonkeyPatch
) -> None:
    world = make_world("there", SMALL)
    kinds = ("--kinds", "bucket,dataset,table,topic,subscription")
    bigquery = world.cloud.bigquery()
    bigquery.create_dataset(Dataset(f"{PROJECT}.there"))
    # The reference's notebook creates them like this: no label, no partitions, 31 days to live.
    results = f"{PROJECT}.there.there_streaming_results"
    fields = table_fields(REFERENCE_STREAM_SCHEMA)
    bigquery.create_table(Table(results, schema=fields))
    topic = f"projects/{PROJECT}/topics/there-input-local"
    subscription = f"projects/{PROJECT}/subscriptions/there-input-sub-local"
    world.cloud.publisher().create_topic(name=topic)
    month = {"ttl": timedelta(days=31)}
    request = {"name": subscription, "topic": topic, "ack_deadline_seconds": 60}
    world.cloud.subscriber().create_subscription(request={**request, "expiration_policy": month})
    _, out, _ = world.run("plan", *kinds)
    assert results not in out.replace(f"{results}_", "")
    assert subscription not in out
    # A view instead of a table, another type of a column, another location, another topic.
    letters = f"{results}_dead_letters"
    bigquery.query_and_wait(f"CREATE VIEW `{letters}` AS SELECT 1 AS a")
    keyed = [*fields[:-1], SchemaField("sequence", "STRING"), SchemaField("model_id", "STRING")]
    bigquery.create_table(Table(f"{PROJECT}.there.there_streaming_results_keyed", schema=keyed))
    world.cloud.subscriber().create_subscription(
        name=f"projects/{PROJECT}/subscriptions/there-output-sub-local", topic=topic
    )
    world.extra["location"] = "europe-west4"
    assert re.search(
        r"\d conflicts: setup creates no resource except APIs until", world.run("plan", *kinds)[1]
    )
    calls = Calls(monkeypatch)
    code, out, err = world.run("setup", *kinds)
    assert (code, out, calls.changes) == (1, "", [])
    for conflict in (
        f"dataset {PROJECT}.there: location is us, expected europe-west4",
        f"table {letters}: type is VIEW, expected TABLE",
        "column sequence is STRING, expected INTEGER",
        f"there-output-sub-local: topic is {topic}, expected",
        "change or remove it, or choose another name in the configuration file",
    ):
        assert conflict in err
    out = world.fine("cleanup", "--yes", *kinds)
    # Everything that others created is kept.
    for kept in (letters, results, f"{PROJECT}.there", topic, subscription):
        assert f" {kept}  it was not created by Millrace: it lacks the label created_by=" in out
    assert "0 removed or ended" in out
    bigquery.delete_dataset(f"{PROJECT}.there", delete_contents=True)


def test_a_user_confirms_with_the_project_id_on_a_terminal(
    make_world: Callable[..., World], monkeypatch: pytest.MonkeyPatch
) -> None:
    world = make_world("typed", ("batch_local",))
    kinds = ("--kinds", "dataset,table")
    world.fine("setup", "--load_example", "10", *kinds)
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True)
    for answer, code in (("yes", 2), (PROJECT, 0)):
        monkeypatch.setattr("builtins.input", lambda _, answer=answer: answer)
        assert world.run("cleanup", "--yes", *kinds)[0] == code
    assert "nothing to remove" in world.fine("cleanup", *kinds)


def test_a_registered_model_of_millrace_is_removed_if_no_endpoint_serves_it(
    make_world: Callable[..., World],
) -> None:
    world = make_world("known", VERTEX)
    world.fine("setup", "--kinds", "service")
    vertex, parent = world.cloud.vertex("us-central1"), f"projects/{PROJECT}/locations/us-central1"
    spec = aiplatform_v1.ModelContainerSpec(image_uri="some/image")
    labels = {"created_by": "millrace"}
    model = aiplatform_v1.Model(display_name="known", container_spec=spec, labels=labels)
    request = aiplatform_v1.UploadModelRequest(parent=parent, model=model, model_id="known")
    vertex.models.upload_model(request)
    endpoint = aiplatform_v1.Endpoint(display_name="e")
    vertex.endpoints.create_endpoint(parent=parent, endpoint=endpoint, endpoint_id="e")
    deployed = aiplatform_v1.DeployedModel(model=f"{parent}/models/known")
    vertex.endpoints.deploy_model(
        endpoint=f"{parent}/endpoints/e", deployed_model=deployed, traffic_split={"0": 100}
    )
    kinds = ("--kinds", "registry_model")
    assert "deployed on endpoint e" in world.fine("status", *kinds)
    out = world.fine("cleanup", "--yes", *kinds)
    assert "endpoints/e serves it: run `python -m serving undeploy` first" in out
    (found,) = vertex.endpoints.get_endpoint(name=f"{parent}/endpoints/e").deployed_models
    vertex.endpoints.undeploy_model(endpoint=f"{parent}/endpoints/e", deployed_model_id=found.id)
    assert "removed  registry_model" in world.fine("cleanup", "--yes", *kinds)
    assert "nothing to remove" in world.fine("cleanup", *kinds)


def test_created_resources_carry_the_owner_label_and_the_labels_of_the_config(
    make_world: Callable[..., World],
) -> None:
    world = make_world("labels", SMALL, labels={"team": "fraud"})
    kinds = ("--kinds", "dataset,table,topic,subscription")
    world.fine("setup", "--load_example", "10", *kinds)
    bigquery, place = world.cloud.bigquery(), f"projects/{PROJECT}"
    tables = [bigquery.get_table(t) for t in bigquery.list_tables(f"{PROJECT}.labels")]
    dataset = bigquery.get_dataset(f"{PROJECT}.labels")
    topics = world.cloud.publisher().list_topics(project=place)
    subscriptions = world.cloud.subscriber().list_subscriptions(project=place)
    ours = [r for r in (*topics, *subscriptions) if "/labels-" in r.name]
    assert len(ours) == 8
    for made in (dataset, *tables, *ours):
        assert dict(made.labels).items() >= {"team": "fraud", "created_by": "millrace"}.items()
    world.fine("cleanup", "--yes", "--project_confirm", PROJECT, *kinds)
