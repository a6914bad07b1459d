"""Tests that cleanup removes only what carries the label of its configuration."""

import json
import re
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from google.cloud import aiplatform_v1
from google.cloud.bigquery import Dataset, SchemaField, Table
from hypothesis import given
from hypothesis import strategies as st
from resources_world import SMALL, World

from examples.google_api.access import ResourceManager
from examples.local_cloud import PROJECT
from resources.cleanup import Choice, choose_removals, losses
from resources.config import PIPELINES, Config
from resources.declaration import LABELLED, declare
from resources.jobs import PipelineJob
from resources.kinds.base import Found
from resources.kinds.names import REMOVABLE
from resources.stopping import belongs
from transforms.bigquery.query_table import QueryTable

CONFIRMED = ("cleanup", "--yes", "--project_confirm", PROJECT)
PLACE = f"projects/{PROJECT}"


def there(world: World) -> set[str]:
    """Return the kinds and names of all resources that status finds, without jobs."""
    kinds = ",".join(kind for kind in REMOVABLE if kind != "job")
    found = json.loads(world.fine("status", "--json", "--kinds", kinds))
    return {f"{r['kind']} {r['name']}" for r in found["resources"] if r["there"]}


def stream_job(world: World, name: str, **fields: Any) -> dict[str, Any]:
    """Add a running streaming job."""
    return world.dataflow.add(
        name, PROJECT, "us-central1", type="JOB_TYPE_STREAMING",
        currentState="JOB_STATE_RUNNING", **fields,
    )  # fmt: skip


def staged_in(bucket: str) -> dict[str, Any]:
    """Return the fields of a job that stages its files in a bucket."""
    options = {"temp_location": f"gs://{bucket}/tmp"}
    return {"environment": {"sdkPipelineOptions": {"options": options}}}


# Resources without a label


def test_resources_that_setup_did_not_create_are_kept(make_world: Callable[..., World]) -> None:
    world = make_world("theirs", ("stream_vertex",))
    world.fine("setup", "--kinds", "service")
    bigquery, cloud = world.cloud.bigquery(), world.cloud
    cloud.storage().create_bucket("theirs-bucket")
    bigquery.create_dataset(Dataset(f"{PROJECT}.theirs"))
    table = f"{PROJECT}.theirs.theirs_streaming_results_vertex"
    bigquery.create_table(Table(table, schema=[SchemaField("other", "STRING")]))
    topic, name = f"{PLACE}/topics/theirs-input-vertex", "theirs-input-sub-vertex"
    cloud.publisher().create_topic(name=topic)
    # The label of someone else does not count.
    labels = {"created_by": "someone"}
    request = {"name": f"{PLACE}/subscriptions/{name}", "topic": topic, "labels": labels}
    cloud.subscriber().create_subscription(request=request)
    accounts = cloud.discovered("iam", "v1").projects().serviceAccounts()
    accounts.create(name=PLACE, body={"accountId": "theirs-worker"}).execute()
    spec = aiplatform_v1.ModelContainerSpec(image_uri="some/image")
    parent = f"{PLACE}/locations/us-central1"
    cloud.vertex("us-central1").models.upload_model(
        aiplatform_v1.UploadModelRequest(
            parent=parent,
            model=aiplatform_v1.Model(display_name="theirs", container_spec=spec),
            model_id="theirs",
        )
    )
    before = there(world)
    assert len(before) == 7
    preview = world.fine("cleanup")
    reason = "it was not created by Millrace: it lacks the label created_by=millrace"
    assert (preview.count(reason), "remove " in preview) == (7, False)
    out = world.fine("cleanup", "--yes")
    assert "0 removed or ended, 7 kept, 0 failed" in out
    assert there(world) == before
    bigquery.delete_dataset(f"{PROJECT}.theirs", delete_contents=True)


def test_datasets_of_query_results_are_removed_once_they_hold_no_table(
    make_world: Callable[..., World],
) -> None:
    world = make_world("queries", ("batch_local",))
    client, kind = world.cloud.bigquery(), ("--kinds", "query_dataset")
    assert "not created" in world.fine("status", *kind)
    results = [QueryTable.of(world.cloud, None, place, "a") for place in ("US", "europe-west1")]
    for result in results:
        result.prepare()
    # Setup does not create them, and does not change them either.
    assert "0 changes" in world.fine("setup", *kind)
    results[1].create([SchemaField("a", "INTEGER")])
    found = r"query_dataset +millrace-test\.millrace_queries_\* +"
    names = "millrace_queries_europe_west1, millrace_queries_us"
    assert re.search(f"exists +{found}{names}", world.fine("status", *kind))
    table = f"{PROJECT}.millrace_queries_europe_west1.millrace_query_a"
    assert re.search(f"keep +{found}it contains {table}, which a run may", world.fine("cleanup"))
    assert "0 removed or ended, 1 kept, 0 failed" in world.fine("cleanup", "--yes", *kind)
    assert all(client.get_dataset(result.dataset) for result in results)
    results[1].discard()
    assert re.search(f"remove +{found}{names}", world.fine("cleanup"))
    assert "1 removed or ended, 0 kept, 0 failed" in world.fine("cleanup", "--yes", *kind)
    assert "nothing to remove" in world.fine("cleanup", *kind)
    assert not [d for d in client.list_datasets(PROJECT) if "millrace_queries" in d.dataset_id]


def test_a_dataset_of_someone_else_with_the_name_of_query_results_is_kept(
    make_world: Callable[..., World],
) -> None:
    world = make_world("theirqueries", ("batch_local",))
    client, name = world.cloud.bigquery(), f"{PROJECT}.millrace_queries_mine"
    client.create_dataset(Dataset(name))
    assert "it lacks the label created_by=millrace" in world.fine("cleanup", "--yes")
    client.delete_dataset(name)


FOUND = st.none() | st.builds(
    Found,
    properties=st.sampled_from([{"type": "TABLE"}, {"type": "VIEW"}]),
    ours=st.booleans(),
    rows=st.integers(0, 9),
    configs=st.frozensets(st.sampled_from("abc")),
    losses=st.dictionaries(st.sampled_from("xy"), st.none() | st.integers(1, 9)),
)


@given(st.data())
def test_only_resources_of_no_other_configuration_are_removed(data: st.DataObject) -> None:
    resources = declare(Config(project="some-project"))
    looked = {r.key: data.draw(FOUND) for r in resources}
    choice = Choice(
        kinds=REMOVABLE,
        pipelines=PIPELINES,
        declared=PIPELINES,
        truncate=data.draw(st.booleans()),
        config="a",
    )
    removals = choose_removals(resources, looked, choice)
    for removal in removals:
        resource = removal.resource
        kind = {"role": "account", "files": "bucket"}.get(resource.kind)
        owner = next((looked[key] for key in resource.needs if key[0] == kind), removal.found)
        if removal.action == "keep":
            assert removal.reason
            continue
        assert owner is not None
        assert owner.ours
        if resource.kind in (*LABELLED, "role", "files"):
            assert "a" in owner.configs
            assert (owner.configs == {"a"}) == (removal.action != "release")
    lost = losses(removals)
    going = [r.found for r in removals if r.action in ("remove", "truncate")]
    for what in "xy":
        counts = [found.losses[what] for found in going if what in found.losses]
        known = [count for count in counts if count is not None]
        assert (lost.get(what) or 0) == sum(known)
        assert (lost.get(f"additional {what}" if known else what, 0) is None) == (None in counts)


# Flags that narrow the selection


def test_a_cleanup_of_named_jobs_removes_nothing_else(make_world: Callable[..., World]) -> None:
    world = make_world("named", SMALL)
    world.fine("setup")
    before = there(world)
    job, other = (stream_job(world, f"named-streaming-{name}") for name in ("fraud", "other"))
    code, _, err = world.run("cleanup", "--jobs", "named-streaming-fruad", "--yes")
    assert (code, "did you mean 'named-streaming-fraud'" in err) == (2, True), err
    for wrong in (("--kinds", "topic"), ("--truncate",)):
        code, _, err = world.run("cleanup", "--jobs", "named-streaming-fraud", "--yes", *wrong)
        assert (code, "--jobs selects jobs" in err) == (2, True), err
    code, _, err = world.run("cleanup", "--pipelines", "batch", "--yes")
    assert (code, "batch_local,batch_vertex: the configuration does not" in err) == (2, True), err
    preview = world.fine("cleanup", "--jobs", "named-streaming-fraud")
    assert preview.splitlines()[0].split() == ["drain", "job", "named-streaming-fraud", "running"]
    assert len(preview.splitlines()) == 2
    world.dataflow.polls = 0
    out = world.fine("cleanup", "--jobs", "named-streaming-fraud", "--yes")
    assert "1 removed or ended, 0 kept, 0 failed" in out
    assert job["currentState"] == "JOB_STATE_DRAINED"
    assert other["currentState"] == "JOB_STATE_RUNNING"
    assert there(world) == before
    world.fine(*CONFIRMED)


# Configurations


def two(make_world: Callable[..., World]) -> tuple[World, World]:
    """Return two configurations that share the default prefix, account and job prefix."""
    first = make_world("pytorch-autoencoder", SMALL, bucket="one-bucket", dataset="one")
    same = {"job_prefix": "pytorch", "service_account": "millrace-worker"}
    first.extra |= same
    second = replace(first, extra={**first.extra, "bucket": "two-bucket", "dataset": "two"})
    return first, second


def test_a_second_configuration_leaves_the_first_unchanged(
    make_world: Callable[..., World], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("resources.jobs._POLL_SECONDS", 0.0)
    first, second = two(make_world)
    first.fine("setup")
    before = there(first)
    staged = stream_job(first, "pytorch-streaming-1", **staged_in("one-bucket"))
    mine = stream_job(first, "pytorch-streaming-2", **staged_in("two-bucket"))
    out = second.fine("setup")
    # Shared resources carry the labels of both.
    assert re.search(r"changed  topic .*added label millrace_config_\S+ \(used\)", out)
    assert second.plan() == first.plan() == {}
    preview = second.fine("cleanup")
    assert re.search(
        r"keep +job +pytorch-streaming-1 +it belongs to another configuration", preview
    )
    assert re.search(
        r"release +topic .*also used by configuration pytorch-autoencoder-\w+", preview
    )
    second.dataflow.polls = 0
    out = second.fine(*CONFIRMED)
    assert (staged["currentState"], mine["currentState"]) == (
        "JOB_STATE_RUNNING",
        "JOB_STATE_DRAINED",
    )
    assert there(first) == before
    assert first.plan() == {}
    left = there(second)
    assert left
    assert left <= before, "everything left belongs to the first configuration"
    # The resources of the first configuration can be removed now.
    out = first.fine(*CONFIRMED)
    assert staged["currentState"] == "JOB_STATE_DRAINED"
    assert there(first) == set()
    assert "0 kept, 0 failed" in out


def test_setup_labels_what_an_earlier_version_created_and_cleanup_removes_it(
    make_world: Callable[..., World],
) -> None:
    world = make_world("earlier", SMALL)
    world.fine("setup", "--load_example", "10")
    source = f"{PROJECT}.earlier.frameworks"
    table = world.cloud.bigquery().get_table(source)
    table.labels = {key: None for key in table.labels if key != "created_by"}
    world.cloud.bigquery().update_table(table, ["labels"])
    cloud = world.cloud
    topic = f"{PLACE}/topics/earlier-output-local"
    old = {"topic": {"name": topic, "labels": {"created_by": "millrace"}}}
    cloud.publisher().update_topic(request={**old, "update_mask": {"paths": ["labels"]}})
    accounts = cloud.discovered("iam", "v1").projects().serviceAccounts()
    name = f"{PLACE}/serviceAccounts/earlier-worker@{PROJECT}.iam.gserviceaccount.com"
    body = {
        "serviceAccount": {"description": "created by millrace"},
        "updateMask": "description",
    }
    accounts.patch(name=name, body=body).execute()
    out = world.fine(*CONFIRMED, "--kinds", "account,role,topic")
    assert re.search(
        rf"kept  topic {topic}  .* an earlier version of Millrace created it: run setup", out
    )
    assert re.search(r"kept  account \S+  it has no label that names its configuration", out)
    assert {f"topic {topic}", f"account {name.rpartition('/')[2]}"} <= there(world)
    assert world.plan()[f"topic {topic}"] == world.plan()[f"table {source}"] == "change"
    assert "created by an earlier version: run setup to label it" in world.fine("status")
    out = world.fine("setup")
    assert f"changed  topic {topic}  added label millrace_config_earlier-" in out
    world.fine(*CONFIRMED)
    assert there(world) == set()


def test_a_name_identifies_a_configuration_and_survives_changes() -> None:
    one = Config(project="some-project")
    assert one.name == Config(project="some-project", pipelines=SMALL, labels={"a": "b"}).name
    others = [
        Config(project="some-project", region="europe-west4"),
        Config(project="some-project", bucket="other-bucket"),
        Config(project="some-project", dataset="other"),
        Config(project="some-project", prefix="other"),
        Config(project="some-project", folder="other"),
        Config(project="some-project", job_prefix="other"),
        Config(project="some-project", source_table="other"),
        Config(project="some-project", service_account="other-worker"),
    ]
    assert len({one.name, *(config.name for config in others)}) == 1 + len(others)
    named = Config(project="some-project", name="fraud", dataset="other", prefix="x" * 62)
    assert named.name == "fraud"
    label = next(name for name in declare(others[0])[-2].properties if name.startswith("label "))
    assert len(label.removeprefix("label ")) <= 63


JOB = PipelineJob(
    ident="id",
    name="pytorch-streaming-1",
    region="r",
    pipeline="stream_local",
    state="running",
    streaming=True,
    created=None,  # type: ignore[arg-type]
)


@pytest.mark.parametrize(
    ("labels", "used", "prefix", "expected"),
    [
        # The labels of the job itself decide first.
        (("me",), [("me",), ("other",)], "pytorch", True),
        (("other",), [("me",)], "own", False),
        # The labels of what it uses decide next.
        ((), [("me",), ()], "pytorch", True),
        ((), [("other",)], "own", False),
        ((), [("me", "other")], "own", None),
        ((), [("me", "other"), ("me",)], "pytorch", True),
        ((), [("me",), ("other",)], "pytorch", None),
        # Without labels, a prefix other than the default decides.
        ((), [()], "own", True),
        ((), [], "pytorch", None),
    ],
)
def test_which_configuration_a_job_belongs_to(
    labels: tuple[str, ...], used: list[tuple[str, ...]], prefix: str, expected: bool | None
) -> None:
    config = Config(project="some-project", name="me", job_prefix=prefix)
    named = {f"b{number}": frozenset(configs) for number, configs in enumerate(used)}
    job = replace(JOB, configs=frozenset(labels), buckets=tuple(named))
    assert belongs(job, config, lambda _, name: named[name]) is expected


def test_a_job_of_an_unknown_configuration_is_stopped_only_by_name(
    make_world: Callable[..., World], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("resources.jobs._POLL_SECONDS", 0.0)
    world = make_world("unknown", SMALL, job_prefix="pytorch")
    world.fine("setup")
    before = there(world)
    job = stream_job(world, "pytorch-streaming-1")
    world.dataflow.polls = 0
    out = world.fine(*CONFIRMED)
    assert (job["currentState"], there(world)) == ("JOB_STATE_RUNNING", before)
    assert "kept  job pytorch-streaming-1: no label says which configuration it belongs to" in out
    assert "0 removed or ended" in out
    world.fine(*CONFIRMED, "--jobs", "pytorch-streaming-1")
    assert job["currentState"] == "JOB_STATE_DRAINED"
    world.fine(*CONFIRMED)
    assert there(world) == set()


# What would be lost, and what is kept


def test_waiting_messages_are_removed_only_after_confirmation(
    make_world: Callable[..., World],
) -> None:
    world = make_world("waits", SMALL)
    kinds = ("--kinds", "topic,subscription")
    world.fine("setup", *kinds)
    known = world.monitoring.values_by_metric
    known["num_undelivered_messages"] = {"waits-input-sub-local": 5000}
    preview = world.fine("cleanup", *kinds)
    assert "5,000 waiting messages and an unknown number of additional waiting messages" in preview
    code, _, err = world.run("cleanup", "--yes", *kinds)
    assert (code, "5,000 waiting messages" in err) == (2, True), err
    # Cloud Monitoring is late: it may report zero messages, or nothing at all.
    publisher = world.cloud.publisher()
    messages: list[Any] = [{"data": b"x"}] * 3
    publisher.publish(topic=f"{PLACE}/topics/waits-input-local", messages=messages)
    for reported in ({"waits-input-sub-local": 0}, {}):
        known["num_undelivered_messages"] = dict(reported)
        preview = world.fine("cleanup", *kinds)
        assert "an unknown number of waiting messages" in preview
        code, _, err = world.run("cleanup", "--yes", *kinds)
        assert (code, bool(re.search(r"\d or more waiting messages would be lost", err))) == (
            2,
            True,
        ), err
        assert world.run("plan", *kinds)[0] == 0
    # The check did not take any message.
    name = f"{PLACE}/subscriptions/waits-input-sub-local"
    pulled = world.cloud.subscriber().pull(subscription=name, max_messages=10, timeout=60)
    assert len(pulled.received_messages) == 3
    world.fine(*CONFIRMED, *kinds)
    # A reader that was just killed may still hold messages.
    world.fine("setup", *kinds)
    reader = {"millrace_reader": "r", "millrace_reader_until": str(int(time.time()) + 120)}
    relabel(world, name, reader)
    code, _, err = world.run("cleanup", "--yes", *kinds)
    assert (code, "an unknown number of waiting messages would be lost" in err) == (2, True), err
    # Without waiting messages no confirmation is needed.
    relabel(world, name, reader | {"millrace_reader_until": "1"})
    assert "8 removed" in world.fine("cleanup", "--yes", *kinds)


def relabel(world: World, name: str, labels: dict[str, str]) -> None:
    """Add labels to a subscription."""
    client = world.cloud.subscriber()
    old = dict(client.get_subscription(subscription=name).labels)
    subscription = {"name": name, "labels": old | labels}
    client.update_subscription(
        request={"subscription": subscription, "update_mask": {"paths": ["labels"]}}
    )


def test_files_of_runs_count_as_a_loss_and_copied_packages_do_not(
    make_world: Callable[..., World], example: Path
) -> None:
    world = make_world("results", SMALL, model=str(example / "model"))
    kinds = ("--kinds", "files,bucket")
    world.fine("setup", "--kinds", "bucket,model")
    folder = "frameworks/pytorch-autoencoder/dataflow"
    bucket = world.cloud.storage().bucket("results-bucket")
    bucket.blob(f"{folder}/tmp/millrace/first/report.json").upload_from_string(b"{}")
    code, _, err = world.run("cleanup", "--yes", *kinds)
    assert (code, "1 file would be lost" in err) == (2, True), err
    bucket.blob(f"{folder}/tmp/millrace/first/report.json").delete()
    assert "2 removed" in world.fine("cleanup", "--yes", *kinds)


def test_the_preview_matches_the_removal(make_world: Callable[..., World]) -> None:
    world = make_world("preview", ("stream_vertex",))
    world.fine("setup")
    cloud, topic = world.cloud, f"{PLACE}/topics/preview-output-vertex"
    cloud.subscriber().create_subscription(name=f"{PLACE}/subscriptions/preview-mine", topic=topic)
    cloud.bigquery().query_and_wait(f"CREATE TABLE `{PROJECT}.preview.mine` AS SELECT 1 AS a")
    cloud.storage().bucket("preview-bucket").blob("mine").upload_from_string(b"mine")
    preview = [line.split(maxsplit=3) for line in world.fine("cleanup").splitlines()[:-1]]
    planned = {f"{kind} {name}": action for action, kind, name, *_ in preview}
    out = world.fine(*CONFIRMED)
    lines, _, tail = out.partition("3 kept, 0 failed")
    done = re.findall(r"^(removed|kept)  (\w+ \S+)", lines, re.MULTILINE)
    assert {name: "remove" if past == "removed" else "keep" for past, name in done} == planned
    kept = {name for name, action in planned.items() if action == "keep"}
    assert kept == {
        f"topic {topic}",
        f"dataset {PROJECT}.preview",
        "bucket preview-bucket",
    }
    # The end repeats them with the reasons.
    assert all(f"kept  {name}: " in tail for name in kept)
    assert f"it contains {PROJECT}.preview.mine" in tail
    assert "it contains mine" in tail


def test_a_running_job_is_reported_once_and_before_anything_is_removed(
    make_world: Callable[..., World],
) -> None:
    world = make_world("once", SMALL)
    world.fine("setup")
    before = there(world)
    stream_job(world, "once-streaming-1")
    kinds = ("--kinds", "topic,subscription,role,account,table")
    preview = world.fine("cleanup", *kinds)
    assert "remove " not in preview
    assert preview.count("keep ") == preview.count("job once-streaming-1 is still running")
    code, _, err = world.run(*CONFIRMED, *kinds)
    assert (code, err.count("\n"), "cleanup --kinds job --jobs once-streaming-1" in err) == (
        1,
        1,
        True,
    ), err
    assert there(world) == before


# Region and project


@pytest.mark.parametrize("command", ["plan", "setup", "status", "cleanup"])
def test_a_region_that_does_not_exist_is_noticed_before_anything_else(
    make_world: Callable[..., World], command: str
) -> None:
    world = make_world("nowhere", region="us-centrall1")
    code, out, err = world.run(command)
    assert (code, out, world.google.calls) == (2, "", [])
    assert re.search(r"millrace.toml: region = 'us-centrall1': .*did you mean 'us-central1'", err)
    assert err.count("\n") == 1


@pytest.mark.parametrize("command", ["plan", "setup", "status", "cleanup"])
def test_a_project_that_does_not_exist_is_noticed_before_anything_else(
    make_world: Callable[..., World], command: str
) -> None:
    world = make_world("project", SMALL)
    code, out, err = world.run(command, "--project", "millrace-tset", "--kinds", "topic")
    assert (code, out) == (1, "")
    assert err.startswith("error: project millrace-tset does not exist")
    assert "check the id (--project)" in err
    assert world.google.methods() == ["projects.get"]
    (manager,) = (s for s in world.google.services if isinstance(s, ResourceManager))
    (project,) = manager._projects.values()
    project["state"] = "DELETE_REQUESTED"
    code, out, err = world.run(command, "--kinds", "topic")
    said = f"(project in {world.folder / 'millrace.toml'})"
    assert (code, f"{said} is marked for deletion" in err) == (1, True), err
