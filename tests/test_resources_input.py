"""Tests that bad input is reported in one line, and tests of the parts that need no server."""

import io
import re
import shutil
import subprocess
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator
from dataclasses import fields
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloud.clients import Cloud, _default
from cloud.endpoints import VARIABLES, Endpoints
from common.errors import ResourceError, UsageError
from common.terminal import Progress
from examples.google_api.access import IAM, ResourceManager
from examples.google_api.dataflow import Dataflow
from examples.google_api.faults import (
    Call,
    Refusal,
    api_disabled,
    permission_denied,
    quota_exceeded,
    throttled,
)
from examples.google_api.server import GoogleApi, Service, google_api
from examples.google_api.service_usage import ServiceUsage
from model_handlers.manifests.manifest import Manifest, OutputSpec
from resources.__main__ import main
from resources.cleanup import Choice, choose_removals, lost_rows
from resources.config import PIPELINES, Config, names_project, read_config
from resources.declaration import ROLES, Resource, columns, declare
from resources.differences import make_step
from resources.flags import parse_arguments
from resources.jobs import PipelineJob, pipeline_of
from resources.kinds.base import Found
from resources.kinds.catalog import KINDS
from resources.kinds.names import NAMES, REMOVABLE
from resources.package import open_package
from resources.place import check_project
from resources.status import Status, shared
from resources.stopping import Stop, stop_jobs
from transforms.encode import output_schema
from transforms.output_fields import choose_fields
from transforms.provenance import Provenance
from transforms.row_schemas import REFERENCE_SCHEMA, REFERENCE_STREAM_SCHEMA, default_schema

ROOT = Path(__file__).parent.parent
CONFIG = Config(project="some-project")


def test_a_configuration_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "resources.toml"
    path.write_bytes(b"\xef\xbb\xbfproject = 'my-project'\n")
    assert names_project(path)


def test_names_match_the_reference() -> None:
    names = {r.name.rpartition("/")[2].rpartition(".")[2] for r in declare(CONFIG)}
    streaming = ("streaming_results", "streaming_results_vertex", "streaming_results_keyed")
    tables = ("batch_results", "batch_results_vertex", *streaming)
    assert {f"pytorch_autoencoder_{name}" for name in tables} <= names
    topics = ("input-local", "output-local", "input-vertex", "output-vertex", "model-update")
    subscriptions = ("input-sub-local", "output-sub-local", "input-sub-vertex", "output-sub-vertex")
    channels = (*topics, *subscriptions, "model-update-sub")
    assert {f"pytorch-autoencoder-{name}" for name in channels} <= names


def test_columns_match_the_rows_of_the_pipelines() -> None:
    by_name = {r.name: r for r in declare(CONFIG)}
    for name, schema in (
        ("batch_results", REFERENCE_SCHEMA),
        ("streaming_results_vertex", REFERENCE_STREAM_SCHEMA),
    ):
        table = by_name[f"some-project.frameworks.pytorch_autoencoder_{name}"]
        names = [p.removeprefix("column ") for p in table.properties if p.startswith("column ")]
        assert names == schema.names
    assert table.properties["column encoded"] == "REPEATED FLOAT"
    assert table.properties["column sequence"] == "INTEGER"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"score_output": None},
        {"output_fields": ("code", "total")},
        {"outputs": (OutputSpec("score"), OutputSpec("n", dtype="int64")), "score_output": "score"},
    ],
    ids=str,
)
def test_the_default_schema_is_that_of_the_rows_that_pipelines_write(
    make_manifest: Callable[..., Manifest],
    provenance: Provenance,
    changes: dict[str, Any],
    stream: bool,
) -> None:
    manifest = make_manifest(**changes)
    written = output_schema(choose_fields(manifest, stream=stream), manifest, provenance, None)
    assert columns(default_schema(manifest, stream=stream)) == columns(written)


def tables_of(config: Config, manifest: Manifest | None = None) -> dict[str, Resource]:
    declared = declare(config, manifest=manifest)
    return {r.name.rpartition(".")[2]: r for r in declared if r.kind == "table"}


def test_the_config_names_the_result_tables_and_their_schema(
    make_manifest: Callable[..., Manifest],
) -> None:
    names = {"batch_local": "scores", "batch_vertex": "scores", "stream_local": "live"}
    config = Config(project="some-project", tables=names, output_schema="default")
    stem = "pytorch_autoencoder_streaming_results_vertex"
    results = {"scores", "live", stem}
    letters = {f"{name}_dead_letters" for name in results}
    found = tables_of(config, make_manifest())
    assert found.keys() == {*results, *letters, "frameworks"}
    assert found["scores"].pipelines == ("batch_local", "batch_vertex")
    assert found["live"].properties["column code"] == "REPEATED FLOAT"
    assert {"column row_id", "column run_id"} <= found["scores"].properties.keys()
    assert not any(found[name].on_demand for name in (*results, *letters))
    # Without the model, nobody knows the columns. The first run creates the tables.
    unknown = tables_of(config)
    assert unknown.keys() == found.keys()
    assert all(unknown[name].on_demand for name in results)
    assert not any(unknown[name].on_demand for name in letters)


@pytest.mark.parametrize("pipelines", [PIPELINES, *((name,) for name in PIPELINES)])
def test_each_resource_follows_what_it_needs_and_serves_a_selected_pipeline(
    pipelines: tuple[str, ...],
) -> None:
    seen: set[tuple[str, str]] = set()
    for resource in declare(Config(project="some-project", pipelines=pipelines), model_digest="d"):
        assert set(resource.needs) <= seen
        assert resource.key not in seen
        assert set(resource.pipelines) & set(pipelines)
        assert resource.kind in KINDS
        seen.add(resource.key)


def test_the_command_line_knows_all_kinds() -> None:
    assert tuple(KINDS) == NAMES


def test_a_batch_worker_has_no_role_for_topics_nor_a_local_worker_for_endpoints() -> None:
    def roles(pipeline: str) -> set[str]:
        config = Config(project="some-project", pipelines=(pipeline,))
        return {r.name for r in declare(config) if r.kind == "role"}

    assert not any("pubsub" in role for role in roles("batch_local"))
    assert "roles/aiplatform.user" not in roles("stream_local")
    assert roles("batch_local") | roles("stream_vertex") == {*ROLES}
    assert not any(role.endswith((".admin", "/owner", "/editor")) for role in ROLES)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('buket = "b"', "unknown key 'buket' (did you mean 'bucket'?); choose from project, "),
        ("project = 3", "project = 3: expected a string"),
        ('pipelines = "batch_local"', "expected a list of strings"),
        (
            'pipelines = ["batch_locl"]',
            "unknown pipeline 'batch_locl' (did you mean 'batch_local'",
        ),
        ("pipelines = []", "expected at least one of batch_local"),
        ('bucket = "Bucket"', "bucket = 'Bucket': expected 3 to 63 characters: a-z"),
        ('prefix = "google-topics"', "not with goog"),
        ('folder = "/models/"', "without / at the start or the end"),
        ('region = "us"', "region = 'us': expected a region such as us-central1"),
        ('region = "us-centrall1"', "no such region (did you mean 'us-central1'"),
        ('location = "europe-west44"', "location = 'europe-west44': expected a region"),
        ('name = "Fraud"', "name = 'Fraud': expected 1 to 47 characters: a-z"),
        ('labels = {Team = "x"}', "label Team = 'x': expected a key and a value of at most"),
        ('output_schema = "mine"', "output_schema = 'mine': expected default or reference"),
        ('tables = {batch = "t"}', "tables: unknown pipeline 'batch'"),
        ('tables = {batch_local = "a.b"}', "tables: batch_local = 'a.b': expected letters, digits"),
        ('tables = {batch_local = "frameworks"}', "than that of the source table"),
        ('tables = {batch_local = "t", stream_local = "t"}', "so they cannot share t: choose"),
        ("project = ", "cannot be read: Invalid value"),
        ('project = "p"', "project = 'p': expected 6 to 30 characters"),
    ],
)
def test_an_error_in_the_config_is_reported_in_one_line(
    text: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "millrace.toml"
    path.write_text(text if "project" in text else f'project = "some-project"\n{text}')
    assert main(["plan", "--config", str(path)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["plam"], "got 'plam'"),
        ([], "missing COMMAND"),
        (
            ["plan", "--kinds", "tabel"],
            "this command does not take the kind 'tabel' (did you mean 'table'",
        ),
        (["cleanup", "--kinds", "service"], "this command does not take the kind 'service'"),
        # An unset variable leaves such a value. It must not select everything.
        (["cleanup", "--yes", "--kinds", ""], "expected comma-separated names, got ''"),
        (["cleanup", "--yes", "--pipelines", ""], "expected comma-separated names"),
        (["cleanup", "--yes", "--jobs", ","], "expected comma-separated names"),
        (
            ["cleanup", "--pipelines", "streams"],
            "unknown pipeline 'streams' (did you mean 'stream'",
        ),
        (["status", "--max_age", "week"], "a duration such as 30m, 12h or 7d, got 'week'"),
        (["setup", "--load_example", "0"], "expected 1 to 999999999 rows, got '0'"),
        (["plan", "--config", "none.toml"], "none.toml does not exist"),
        (
            ["plan", "--project", "some-project", "--api_endpoints", "bigqery=x"],
            "did you mean 'bigquery'",
        ),
        (["cleanup", "--project", "some-project", "--truncate", "--kinds", "topic"], "--truncate"),
        (["plan", "--project", "some-project", "--model", "no/model"], "no model at no/model"),
        (
            ["plan", "--project", "some-project", "--model", "gs://b/m"],
            "gs://b/m: expected a local package",
        ),
    ],
)
def test_an_error_in_the_command_line_is_reported_in_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) in (1, 2)
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_without_credentials_every_command_fails_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("GOOGLE_APPLICATION_CREDENTIALS", "GOOGLE_CLOUD_PROJECT", *VARIABLES.values()):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CLOUDSDK_CONFIG", str(tmp_path))
    monkeypatch.setenv("GCE_METADATA_IP", "127.0.0.1:1")
    _default.cache_clear()
    for command in ("plan", "setup", "status", "cleanup"):
        assert main([command, "--project", "some-project"]) == 1
        error = capsys.readouterr().err
        assert error.startswith("error: no usable Google Cloud credentials")
        assert error.count("\n") == 1
    _default.cache_clear()


class Storage(Service):
    """A bucket that belongs to someone else."""

    document: ClassVar[str] = "storage.v1"

    def buckets_get(self, call: Call) -> dict[str, Any]:
        raise permission_denied("storage.buckets.get", call.name)


@pytest.fixture
def google() -> Iterator[GoogleApi]:
    iam = IAM()
    services = (ServiceUsage(polls=0), iam, ResourceManager("some-project", accounts=iam))
    with google_api(*services, Dataflow(), Storage()) as google:
        yield google


@pytest.fixture
def run(google: GoogleApi, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """Return a function that runs a command and returns its exit code and what it printed."""

    def run(*argv: str, project: str = "some-project") -> tuple[int, str]:
        places = ",".join(f"{f.name}={google.url}" for f in fields(Endpoints))
        common = ("--project", project, "--api_endpoints", places, "--retry_seconds", "1")
        code = main([argv[0], *common, *argv[1:]])
        printed = capsys.readouterr()
        assert printed.err.count("\n") <= 1
        return code, printed.out + printed.err

    return run


FAULTS = [
    (
        permission_denied("serviceusage.services.enable", "projects/some-project"),
        ["batchEnable"],
        "grant the account the role roles/serviceusage.serviceUsageAdmin",
    ),
    (
        permission_denied("iam.serviceAccounts.create", "projects/some-project"),
        ["serviceAccounts.create"],
        "grant the account the role roles/iam.serviceAccountAdmin; changes made so far: 12; "
        "run setup again to continue",
    ),
    (
        permission_denied("resourcemanager.projects.setIamPolicy", "projects/some-project"),
        ["setIamPolicy"],
        "grant the account the role roles/resourcemanager.projectIamAdmin; "
        "changes made so far: 13; ",
    ),
    (
        api_disabled("iam.googleapis.com", "some-project"),
        ["serviceAccounts.get"],
        "iam.googleapis.com",
    ),
    (
        quota_exceeded("ServiceAccounts per project"),
        ["serviceAccounts.create"],
        "a quota of the project is exhausted",
    ),
]


@pytest.mark.parametrize(("refusal", "methods", "message"), FAULTS)
@pytest.mark.exhaustive
def test_a_refusal_by_google_is_reported_in_one_line_with_the_changes_made(
    refusal: Refusal,
    methods: list[str],
    message: str,
    google: GoogleApi,
    run: Callable[..., tuple[int, str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("resources.setup._ENABLED_SECONDS", 0.0)
    google.faults = lambda call: refusal if call.method.endswith(tuple(methods)) else None
    code, text = run("setup", "--kinds", "service,account,role")
    assert (code, message in text) == (1, True), text
    # After the cause is fixed, a second run continues where the first one stopped.
    google.faults = lambda _: None
    assert run("setup", "--kinds", "service,account,role")[0] == 0
    assert run("plan", "--kinds", "service,account,role")[0] == 0


def test_a_bucket_of_someone_else_is_reported(run: Callable[..., tuple[int, str]]) -> None:
    code, text = run("plan", "--kinds", "bucket")
    assert (code, "choose another `bucket` in the configuration file" in text) == (1, True), text


def test_a_missing_project_is_reported(run: Callable[..., tuple[int, str]]) -> None:
    code, text = run("plan", "--kinds", "role", project="other-project")
    missing = "project other-project does not exist, or this account cannot see it: check the id"
    assert (code, missing in text, "grant the account" in text) == (1, True, True)


def test_a_project_of_the_credentials_is_not_said_to_be_in_the_file(
    google: GoogleApi, tmp_path: Path
) -> None:
    cloud = Cloud("other-project", Endpoints(cloudresourcemanager=google.url), 1.0)
    path = tmp_path / "millrace.toml"
    path.write_text('bucket = "b-1"')
    args = Namespace(project=None, config=path)
    with pytest.raises(ResourceError, match=r"check the id \(the project of the credentials\)"):
        check_project(cloud, args)
    path.write_text('project = "other-project"')
    with pytest.raises(ResourceError, match=re.escape(f"check the id (project in {path})")):
        check_project(cloud, args)


def test_a_service_account_of_someone_else_keeps_its_roles(
    google: GoogleApi, run: Callable[..., tuple[int, str]]
) -> None:
    assert run("setup", "--kinds", "account,role")[0] == 0
    iam = next(service for service in google.services if isinstance(service, IAM))
    for account in iam.store.all():
        account["description"] = "for something else"
    _, text = run("cleanup", "--kinds", "role,account", "--yes")
    assert "0 removed or ended, 11 kept, 0 failed" in text
    assert run("plan", "--kinds", "account,role")[0] == 0


@given(
    st.sampled_from(["", "x", "pytorch", "pytorch-x"]),
    st.sampled_from(["batch-", "batch-vertex-", "streaming-", "streaming-vertex-", "stream-", ""]),
    st.text("abc019-", max_size=8),
)
def test_a_job_is_recognized_by_its_whole_prefix_and_the_longest_stem(
    prefix: str, stem: str, rest: str
) -> None:
    found = pipeline_of(f"{prefix}-{stem}{rest}", "pytorch")
    ours = {"batch-": "batch_local", "batch-vertex-": "batch_vertex"}
    ours |= {"streaming-": "stream_local", "streaming-vertex-": "stream_vertex"}
    assert found == (ours.get(stem) if prefix == "pytorch" else None)


FOUND = st.none() | st.builds(
    Found,
    properties=st.sampled_from([{"type": "TABLE"}, {"type": "VIEW"}, {"type": "TABLE with x"}]),
    ours=st.booleans(),
    rows=st.integers(0, 9),
)


@given(st.data())
def test_cleanup_selects_only_declared_resources_that_exist_and_that_no_other_needs(
    data: st.DataObject,
) -> None:
    resources = declare(CONFIG)
    looked = {r.key: data.draw(FOUND) for r in resources}
    some = st.lists(st.sampled_from(PIPELINES), min_size=1, unique=True)
    choice = Choice(
        kinds=data.draw(st.lists(st.sampled_from(REMOVABLE), unique=True)),
        pipelines=data.draw(some),
        declared=PIPELINES,
        truncate=data.draw(st.booleans()),
    )
    removals = choose_removals(resources, looked, choice)
    for removal in removals:
        resource = removal.resource
        assert resource in resources
        assert looked[resource.key] is not None
        assert resource.kind in choice.kinds
        assert set(resource.pipelines) <= set(choice.pipelines)
        assert resource.kind != "service"
        if resource.kind not in ("role", "files") and not removal.found.ours:
            assert removal.action == "keep"
        if resource.kind == "table" and removal.found.properties["type"] == "VIEW":
            assert removal.action == "keep"
    order = [removal.resource.key for removal in removals]
    for removal in removals:
        for needed in removal.resource.needs:
            assert needed not in order or order.index(needed) > order.index(removal.resource.key)
    rows = [r for r in removals if r.resource.kind == "table" and r.action != "keep"]
    assert lost_rows(removals) == sum(removal.found.rows for removal in rows)


@given(st.booleans(), st.none() | st.dictionaries(st.sampled_from("abc"), st.sampled_from("xy")))
def test_a_step_never_changes_what_millrace_did_not_create(
    ours: bool, present: dict[str, str] | None
) -> None:
    resource = Resource("table", "t", properties={"a": "x", "b": "x"})
    found = None if present is None else Found(properties=present, ours=ours)
    step = make_step(resource, found, lambda name, value: value is None)
    if present is None:
        assert step.action == "create"
    elif all(present.get(name) == "x" for name in "ab"):
        assert step.action == "keep"
    elif ours and all(present.get(name, "x") == "x" for name in "ab"):
        assert step.action == "change"
    else:
        assert step.action == "conflict"
        assert "change or remove it" in step.description


def test_old_jobs_and_shared_subscriptions_are_reported() -> None:
    now = datetime(2026, 11, 21, tzinfo=UTC)
    jobs = [
        PipelineJob(
            ident=str(days),
            name=f"j{days}",
            region="r",
            pipeline="stream_local",
            state="running",
            streaming=True,
            created=now - timedelta(days),
            subscriptions=reads,
        )
        for days, reads in ((91, ("s", "t")), (2, ("s",)), (1, ("u",)))
    ]
    assert [line.split(":")[0] for line in shared(jobs)] == ["jobs j2 and j91 read s"]
    assert list(shared(jobs[1:])) == []
    status = Status(jobs=dict.fromkeys(jobs))  # type: ignore[arg-type]
    old = [line for line in status.warnings(now, timedelta(days=2)) if " old, more than" in line]
    assert len(old) == 1
    assert "j91 is 91 days old, more than 2 days" in old[0]


@pytest.mark.parametrize(
    ("cancel", "todo"),
    [
        (False, "run the command again, or add --cancel, which loses what it has not written"),
        (True, "run the command again"),
    ],
)
def test_a_job_that_does_not_end_in_time_gets_advice_that_helps(cancel: bool, todo: str) -> None:
    class Slow:
        def stop(self, job: PipelineJob, *, cancel: bool) -> str:
            return "cancelling" if cancel else "draining"

        def wait(self, jobs: list[PipelineJob], *_: object) -> list[PipelineJob]:
            return jobs

    job = PipelineJob(
        ident="1",
        name="slow",
        region="r",
        pipeline="stream_local",
        state="running",
        streaming=True,
        created=datetime(2026, 11, 21, tzinfo=UTC),
        subscriptions=(),
    )
    out = io.StringIO()
    stops, screen = [Stop(job, "cancel" if cancel else "drain")], Progress(out=out)
    outcome = stop_jobs(stops, Slow(), 600, cancel, screen)  # type: ignore[arg-type]
    lost = (
        "; a cancel loses the messages that it has acknowledged and not written: without --cancel, "
        "it is drained"
    )
    assert out.getvalue() == (f"cancelling  job slow{lost}\n" if cancel else "draining  job slow\n")
    # The preview says so before anything happens.
    assert stops[0].description == ("running" + lost if cancel else "running")
    assert outcome.errors == [f"job slow did not end within 10 minutes: {todo}"]


def test_the_default_config_may_be_missing_and_flags_override_it(tmp_path: Path) -> None:
    path = tmp_path / "millrace.toml"
    path.write_text('project = "some-project"\nlocation = "EU"\npipelines = ["batch_local"]')
    config = read_config(path, {"project": "other-project", "model": None})
    assert (config.project, config.location, config.bucket) == (
        "other-project",
        "EU",
        "other-project",
    )
    with pytest.raises(UsageError, match="no project: set project"):
        read_config(Path("millrace.toml"), {})


def test_help_is_printed_without_a_client_library() -> None:
    code = (
        "import sys; from resources.__main__ import main\n"
        "try: main(['cleanup', '--help'])\n"
        "except SystemExit: pass\n"
        "assert not {'google.cloud.storage', 'apache_beam', 'torch'} & set(sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    assert "--project_confirm" in done.stdout


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_is_rewritten_on_a_terminal_and_plain_elsewhere(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    for line, shown in ((Terminal(), "\r\x1b[Klooking\r\x1b[K"), (io.StringIO(), "")):
        out = io.StringIO()
        progress = Progress(out, line)
        progress.now("looking")
        progress.say("made")
        assert (out.getvalue(), line.getvalue()) == ("made\n", shown)


def test_setup_waits_for_an_api_that_was_just_enabled(
    google: GoogleApi, run: Callable[..., tuple[int, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("resources.setup._PAUSE_SECONDS", 0.01)
    early = {"serviceAccounts.get": 2, "serviceAccounts.create": 2}

    def refuse(call: Call) -> Refusal | None:
        method = ".".join(call.method.split(".")[-2:])
        if early.get(method, 0):
            early[method] -= 1
            return api_disabled("iam.googleapis.com", "some-project")
        return None

    google.faults = refuse
    code, text = run("setup", "--kinds", "service,account")
    assert (code, "created  account millrace-worker" in text) == (0, True), text
    assert set(early.values()) == {0}


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("stream", ("stream_local", "stream_vertex")),
        ("vertex", ("batch_vertex", "stream_vertex")),
        ("batch_local,stream", ("batch_local", "stream_local", "stream_vertex")),
    ],
)
def test_pipelines_are_named_one_by_one_or_as_a_group(text: str, names: tuple[str, ...]) -> None:
    assert parse_arguments(["cleanup", "--pipelines", text]).pipelines == names


def test_an_error_in_a_flag_does_not_name_the_file(tmp_path: Path) -> None:
    path = tmp_path / "millrace.toml"
    path.write_text('project = "some-project"\nregion = "us-east1"')
    with pytest.raises(UsageError, match=r"^project = 'p': expected"):
        read_config(path, {"project": "p"})
    path.write_text('project = "some-project"\nbucket = "Upper"')
    with pytest.raises(UsageError, match=rf"^{path}: bucket = 'Upper': expected"):
        read_config(path, {"project": "other-project"})


def test_durations_may_have_any_unit() -> None:
    for text, seconds in (("30s", 30), ("2m", 120), ("1h", 3600), ("7d", 7 * 86400)):
        assert parse_arguments(["cleanup", "--wait", text]).wait == timedelta(seconds=seconds)


def test_a_package_has_an_address_for_pipelines_and_a_digest_of_all_files(example: Path) -> None:
    folder = open_package(str(example / "model"))
    archive = open_package(str(example / "pytorch_autoencoder.mar"))
    assert folder.address("gs://b/d/") == archive.address("gs://b/d/") == "gs://b/d/"
    assert folder.sha256 == archive.sha256
    assert folder.digest != archive.digest
    beside = open_package(str(example / "model" / "model.pt"))
    assert beside == folder


def test_a_bare_model_file_is_its_own_address(example: Path, tmp_path: Path) -> None:
    shutil.copy(example / "model" / "model.pt", tmp_path / "bare.pt")
    bare = open_package(str(tmp_path / "bare.pt"))
    assert (bare.name, set(bare.files)) == ("bare", {"bare.pt"})
    assert bare.address("gs://b/d/") == "gs://b/d/bare.pt"


@pytest.mark.slow
def test_a_concurrent_policy_change_and_an_exceeded_rate_are_retried(
    google: GoogleApi, run: Callable[..., tuple[int, str]]
) -> None:
    faults = [throttled(), Refusal(409, "There were concurrent policy changes.", "ABORTED")]

    def next_fault(call: Call) -> Refusal | None:
        return faults.pop() if faults and call.method.endswith("setIamPolicy") else None

    google.faults = next_fault
    code, text = run("setup", "--kinds", "account,role", "--retry_seconds", "20")
    assert (code, faults) == (0, []), text
    assert run("plan", "--kinds", "account,role")[0] == 0
