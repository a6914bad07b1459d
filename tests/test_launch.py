"""`python -m pipelines.launch` on the stand-in: from source or a template, update, follow."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import apache_beam as beam
import pytest
from apache_beam.options.pipeline_options import PipelineOptions

from cloud.clients import Cloud
from cloud.endpoints import Endpoints
from common.errors import JobError, UsageError
from examples.google_api.dataflow import Dataflow
from examples.google_api.faults import Call, HangUp, permission_denied
from examples.google_api.server import GoogleApi, google_api
from examples.google_api.staged_pipeline import ExecutingDataflow, steps
from examples.local_cloud import LocalCloud
from pipelines.command import main
from pipelines.dataflow.facts import JobFacts
from pipelines.dataflow.jobs import Jobs
from pipelines.dataflow.update_check import check_update, compare
from pipelines.launch.command import PIPELINES, choose_command
from pipelines.metadata import TEMPLATES, template

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
PROJECT, REGION = "a-project", "us-central1"
PLACE = ("--project", PROJECT, "--region", REGION)
ROOT = Path(__file__).parent.parent


@dataclass
class World:
    """A stand-in for Dataflow, and the command line of its user."""

    google: GoogleApi
    dataflow: ExecutingDataflow
    capsys: pytest.CaptureFixture[str]
    more: str = ""

    def launch(self, *argv: str) -> tuple[int, str, str]:
        address = self.google.url.replace("127.0.0.1", "localhost")
        endpoints = f"dataflow={address},monitoring={address}{self.more}"
        return self.run(*argv, "--api_endpoints", endpoints, "--retry_seconds", "2")

    def run(self, *argv: str) -> tuple[int, str, str]:
        command, rest = choose_command(argv)
        assert command is not None
        code = main(command, rest)
        out, err = self.capsys.readouterr()
        return code, out, err

    def paste(self, text: str) -> tuple[int, str, str]:
        """Run the last command of a text that follows a job. It may be between backticks."""
        _, _, command = text.rpartition("python -m pipelines.launch ")
        assert command, text
        return self.run(*shlex.split(command.partition("`")[0]), "--poll_seconds", "0")


@pytest.fixture
def world(capsys: pytest.CaptureFixture[str]) -> Iterator[World]:
    dataflow = ExecutingDataflow()
    with google_api(dataflow) as google:
        yield World(google, dataflow, capsys)


@pytest.fixture
def batch(world: World, example: Path, tmp_path: Path) -> list[str]:
    """The flags of a batch run with files of this machine, which the stand-in can read."""
    flags = {
        "input_files": example / "transactions.parquet",
        "model": example / "model",
        "output_files": tmp_path / "out",
        "temp_location": tmp_path / "tmp",
        "staging_location": tmp_path / "tmp",
        "dataflow_endpoint": world.google.url.replace("127.0.0.1", "localhost"),
    }
    (tmp_path / "tmp").mkdir()
    return [*PLACE, *(text for name, path in flags.items() for text in (f"--{name}", str(path)))]


@pytest.mark.usefixtures("beam_processes")
def test_a_run_from_source_is_followed_to_its_report(world: World, batch: list[str]) -> None:
    argv = ("--labels", "team=fraud", "--run_id", "r1", "--wait", "--poll_seconds", "0")
    code, out, err = world.launch("batch_local", *batch, *argv)
    assert code == 0, err
    (job,) = world.dataflow.jobs.values()
    assert f"job           {job['id']}" in out
    assert f"--attach {job['id']} --project {PROJECT} --region {REGION}" in out
    assert re.search(r"rows in +2,000\nscored +1,980\ndead letters +20 ", out)
    assert re.search(r"done +\d:\d\d:\d\d  1,980 rows(, \S+/s)?  20 dead letters", err)
    pool = job["environment"]["workerPools"][0]
    assert (pool["numWorkers"], pool["machineType"]) == (2, "n1-standard-4")
    assert pool["autoscalingSettings"]["maxNumWorkers"] == 10
    assert "min_num_workers=2" in job["environment"]["serviceOptions"]
    assert job["labels"]["team"] == "fraud"


@pytest.mark.usefixtures("beam_processes")
def test_a_launch_returns_at_once_and_the_job_can_be_followed_later(
    world: World, batch: list[str]
) -> None:
    code, out, _ = world.launch("batch_local", *batch, "--json_summary")
    assert code == 0
    started = json.loads(out)
    world.dataflow.wait(started["job"])
    argv = (
        "--attach",
        started["job"],
        "--project",
        PROJECT,
        "--poll_seconds",
        "0",
        "--json_summary",
    )
    code, out, err = world.launch(*argv)
    assert code == 0, err
    # Standard output has nothing else.
    assert json.loads(out)["rows_scored"] == 1_980
    code, out, err = world.paste(started["follow"])
    assert code == 0, err
    assert re.search(r"\nscored +1,980\n", out)


@pytest.mark.usefixtures("beam_processes")
def test_a_launch_that_waits_prints_only_the_report_on_standard_output(
    world: World, batch: list[str]
) -> None:
    argv = ("--wait", "--poll_seconds", "0", "--json_summary")
    code, out, err = world.launch("batch_local", *batch, *argv)
    assert code == 0, err
    assert json.loads(out)["rows_scored"] == 1_980
    assert "\nfollow        python -m pipelines.launch --attach " in err


@pytest.mark.usefixtures("beam_processes")
def test_a_job_that_cannot_be_monitored_after_its_start_keeps_running(
    world: World, batch: list[str]
) -> None:
    denied = permission_denied("dataflow.jobs.list", PROJECT)
    world.google.faults = lambda call: denied if call.method.endswith("aggregated") else None
    code, _, err = world.launch("batch_local", *batch, "--job_name", "a-job", "--wait")
    assert code == 4
    assert (
        "the job was not stopped and may still be running; follow it with "
        "`python -m pipelines.launch --attach a-job " in err
    )
    world.google.faults = lambda _: None
    assert world.paste(err)[0] == 0


@pytest.mark.slow
def test_ctrl_c_during_a_launch_from_source_says_that_the_job_may_have_started(
    world: World, batch: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(beam.Pipeline, "run", interrupt)
    code, out, err = world.launch("batch_local", *batch, "--job_name", "a-job")
    assert (code, out) == (130, "")
    assert "interrupted: the job may have started; follow it with `python -m" in err
    world.dataflow.add("a-job", PROJECT, REGION)
    assert world.paste(err)[0] == 0


@pytest.mark.usefixtures("beam_processes")
def test_too_many_dead_letters_fail_the_launch_that_waits(world: World, batch: list[str]) -> None:
    argv = ("--max_dead_letter_share", "0.001", "--wait", "--poll_seconds", "0")
    code, _, err = world.launch("batch_local", *batch, *argv)
    assert code == 1
    assert "(1.00 %) are dead letters, more than --max_dead_letter_share 0.001 allows;" in err


@pytest.mark.slow
def test_a_dry_run_starts_nothing(world: World, batch: list[str]) -> None:
    code, out, err = world.launch("batch_local", *batch, "--dry_run", "--wait")
    assert code == 0, err
    assert "min_num_workers=2" in out
    assert "ScoreRows/Predict" in out
    assert world.google.calls == []


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (("--preset", "cheep"), "--preset must be one of batch, stream, gpu, cheap, got cheep"),
        (
            ("--mim_num_workers", "3"),
            "unknown flag --mim_num_workers (did you mean '--min_num",
        ),
        (("--num_workers", "x"), "--num_workers must be a whole number, got 'x'"),
        (
            ("--runner", "DirectRunner"),
            "--runner DirectRunner: this command always runs on Dataflow",
        ),
        (("--update",), "--update replaces a stream; batch_local is a batch pipeline"),
        (("--transform_name_mapping", "{a"), "--transform_name_mapping must be JSON, got '{a'"),
        (("--transform_name_mapping", "{}"), "memory: about "),
        (("--batch_rows", "0"), "--batch_rows must be at least 1, got 0"),
        (("--region", "us"), "--region: 'us': expected a region"),
    ],
)
def test_a_wrong_flag_is_reported_in_one_line_and_nothing_starts(
    world: World, batch: list[str], argv: tuple[str, ...], expected: str
) -> None:
    code, _, err = world.launch("batch_local", *batch, *argv, "--dry_run")
    assert expected in err
    assert code == (0 if err.startswith("memory: ") else 2)
    assert err.count("\n") == 1
    assert world.google.calls == []


def test_all_missing_flags_are_reported_at_once(world: World) -> None:
    code, _, err = world.launch("stream_vertex", "--project", PROJECT)
    assert code == 2
    for flag in ("input_subscription", "model", "endpoint", "output_topic", "region", "temp_loc"):
        assert f"--{flag}" in err


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (("--attach", "missing-job"), f"project {PROJECT} has no job missing-job"),
        (("--attach", "a-job", "--region", "europe-west1"), "pass --region us-central1"),
        (("--atach", "a-job"), "unknown flag --atach: expected the name of a pipeline first"),
        ((), "missing --attach; for example: python -m pipelines.launch --attach"),
    ],
)
def test_a_job_that_cannot_be_found_is_reported_in_one_line(
    world: World, argv: tuple[str, ...], expected: str
) -> None:
    world.dataflow.add("a-job", PROJECT, REGION)
    code, _, err = world.launch("--project", PROJECT, *argv)
    assert code == 2
    assert expected in err
    assert err.count("\n") == 1


# Templates


@pytest.fixture
def templated(emulators: LocalCloud, world: World) -> World:
    """The world, with templates of the four pipelines in the emulator's bucket."""
    bucket = emulators.cloud.storage().bucket("bucket")
    for command in TEMPLATES:
        spec = {"image": "r/i", "metadata": template(command)}
        blob = bucket.blob(f"launch/{command.name}.json")
        blob.upload_from_string(json.dumps(spec))
    bucket.blob("launch/none.json").upload_from_string("[]")
    world.more = f",storage={emulators.cloud.endpoints.storage}"
    return world


FLAGS = ("--input_files", "gs://b/rows/", "--model", "gs://b/m", "--output_files", "gs://b/o")
CLOUD = (*PLACE, "--temp_location", "gs://bucket/tmp")
BATCH = ("batch_local", *FLAGS, *CLOUD)
FROM = ("--template", "gs://bucket/launch/batch_local.json")
STREAM_FROM = ("--template", "gs://bucket/launch/stream_local.json")


def test_a_template_is_started_with_the_request_that_a_dry_run_shows(templated: World) -> None:
    argv = (*BATCH, *FROM, "--job_name", "a-job", "--subnetwork", f"regions/{REGION}/subnetworks/s")
    code, out, err = templated.launch(*argv, "--dry_run")
    assert code == 0, err
    shown = json.loads(out)
    assert templated.google.calls == []
    code, out, err = templated.launch(*argv, "--wait", "--poll_seconds", "0")
    # The templates of this server run nothing, so there is no report.
    assert code == 1
    assert "job a-job is done, but does not say where its report is" in err
    (call,) = (c for c in templated.google.calls if c.method.endswith("flexTemplates.launch"))
    assert call.body["launchParameter"] == shown["launchParameter"]
    assert shown["launchParameter"]["parameters"]["input_files"] == "gs://b/rows/"
    assert (shown["projectId"], shown["location"]) == (PROJECT, REGION)


class _Templated(ExecutingDataflow):
    """A Dataflow whose templates start runs of Millrace that have ended.

    report: Where their report is.
    """

    report = ""

    def flex_templates_launch(self, call: Call) -> dict[str, Any]:
        answer = super().flex_templates_launch(call)
        facts = JobFacts(
            pipeline="batch_local",
            run_id="r1",
            model="fraud 2.0",
            model_digest="ab" * 32,
            report=self.report,
        )
        answer["job"]["environment"] = {"sdkPipelineOptions": {"options": facts.options()}}
        return answer


def test_a_launch_of_a_template_that_waits_prints_only_the_report_on_standard_output(
    templated: World, tmp_path: Path
) -> None:
    report = {"rows_in": 10, "rows_scored": 10, "rows_dead_lettered": 0}
    (tmp_path / "report.json").write_text(json.dumps(report))
    with google_api(dataflow := _Templated()) as templated.google:
        dataflow.report = str(tmp_path / "report.json")
        argv = ("--wait", "--poll_seconds", "0", "--json_summary")
        code, out, err = templated.launch(*BATCH, *FROM, *argv)
        assert code == 0, err
        assert json.loads(out) == report
        (ident,) = dataflow.jobs
        assert f"job           {ident}\n" in err
        code, out, err = templated.launch(*BATCH, *FROM, "--json_summary")
        assert code == 0, err
        code, out, err = templated.paste(f"{json.loads(out)['follow']} --json_summary")
        assert (code, json.loads(out)) == (0, report), err


def test_the_run_of_our_own_template_is_recognized_by_its_flags(
    templated: World, emulators: LocalCloud
) -> None:
    batch = ["gs://bucket/ours" if word == "gs://b/o" else word for word in BATCH]
    wait = ("--wait", "--poll_seconds", "0", "--json_summary")
    argv = (*batch, *FROM, "--run_id", "r1", *wait)
    code, out, err = templated.launch(*argv)
    blob = emulators.cloud.storage().bucket("bucket").blob("ours/r1/report.json")
    report_path = "gs://bucket/ours/r1/report.json"
    assert (code, out) == (1, "")
    assert f"is done, but its report cannot be read: report {report_path} does not exist" in err
    # With another run's report in that place, the run of this job is still missing.
    report = {"rows_in": 10, "rows_scored": 10, "rows_dead_lettered": 0}
    blob.upload_from_string(json.dumps(report | {"finished_at": "2020-01-01T00:00:00+00:00"}))
    code, out, err = templated.launch(*argv)
    assert (code, out) == (1, "")
    assert f"{report_path} is the report of an earlier run" in err
    blob.upload_from_string(json.dumps(report | {"finished_at": "2999-01-01T00:00:00+00:00"}))
    code, out, err = templated.launch(*argv)
    assert code == 0, err
    assert json.loads(out)["rows_scored"] == 10


def test_a_dry_run_of_a_template_shows_no_secret(templated: World) -> None:
    argv = ("--s3_secret_access_key", "hush", "--enable_hot_key_logging", "--dry_run")
    code, out, err = templated.launch(*BATCH, *FROM, *argv)
    assert code == 0, err
    options = json.loads(out)["launchParameter"]["environment"]["additionalPipelineOptions"]
    assert set(options) == {"enable_hot_key_logging=true", "s3_secret_access_key=..."}


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (
            ("--template", "gs://bucket/launch/nothing.json"),
            "nothing.json does not exist: create it with `make templ",
        ),
        (("--template", "gs://bucket/launch/none.json"), "is not the spec file of a Flex Template"),
        (("--template", "bucket/x.json"), "--template must be gs://BUCKET/PATH, got bucket/x.json"),
        (("--template", "gs://bucket/launch/stream_local.json"), "is a template of stream_local"),
        (("--template", "gs://bucket/launch/batch_vertex.json"), "is a template of batch_vertex"),
        ((*FROM, "--setup_file", "./setup.py"), "--setup_file cannot be used with --template"),
        ((*FROM, "--impersonate_service_account", "a@p"), "gcloud auth application-default login"),
        (
            (*FROM, "--temp_location", "gs://b"),
            "--temp_location gs://b: expected gs://BUCKET/FOLDER",
        ),
        ((*FROM, "--staging_location", "/tmp"), "--staging_location /tmp: expected gs://BUCKET"),
        (
            (*FROM, "--model", "m.pt"),
            f"--model {Path('m.pt').resolve()}: Dataflow workers cannot reach the files of this",
        ),
        (
            (*FROM, "--input_table", "a.b.c"),
            "--input_files and --input_table cannot be combined: use only one of them",
        ),
        ((*FROM, "--cluster_by", "score"), "--cluster_by has no effect without --output_table"),
    ],
)
def test_a_template_that_does_not_fit_is_reported_before_anything_starts(
    templated: World, argv: tuple[str, ...], expected: str
) -> None:
    code, _, err = templated.launch(*BATCH, *argv)
    assert code in (1, 2)
    assert expected in err
    assert err.count("\n") == 1
    assert templated.google.calls == []


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        ((), "--input_topic needs a subscription: add --create_subscription"),
        (
            ("--input_subscription", "projects/a-project/subscriptions/s"),
            "cannot be combined: use only one of them",
        ),
        (
            ("--create_subscription", "--output_topic", "projects/a-project/topics/t"),
            "is both the input and",
        ),
    ],
)
def test_flags_of_a_stream_that_exclude_each_other_are_reported_before_it_starts(
    templated: World, argv: tuple[str, ...], expected: str
) -> None:
    flags = ("--input_topic", "projects/a-project/topics/t", "--model", "gs://b/m", *CLOUD)
    sinks = ("--output_files", "gs://b/o", "--dead_letter_files", "gs://b/bad")
    code, _, err = templated.launch("stream_local", *flags, *sinks, *STREAM_FROM, *argv)
    assert code == 2
    assert expected in err
    assert err.count("\n") == 1
    assert templated.google.calls == []


STREAM = ("--input_subscription", "projects/a-project/subscriptions/s", "--model", "gs://b/m")
TOPICS = tuple(
    word
    for name in ("output_topic", "dead_letter_topic")
    for word in (f"--{name}", f"projects/a-project/topics/{name}")
)


def test_a_launch_says_if_its_job_must_be_drained(templated: World) -> None:
    argv = ("stream_local", *STREAM, *TOPICS, *CLOUD, *STREAM_FROM)
    code, _, err = templated.launch(*argv, "--job_name", "a-job")
    assert (code, err) == (0, "")
    held = ("--dead_letter_files", "gs://b/bad", "--deduplicate_seconds", "60")
    code, _, err = templated.launch(*argv, *held, "--job_name", "b-job")
    assert (code, err.count("\n")) == (0, 1)
    assert err.startswith("with --dead_letter_files, --deduplicate_seconds, Dataflow acknowledges")
    assert "to stop this job, drain it" in err


def test_an_attribute_alone_drops_duplicates_only_in_exactly_once_mode(templated: World) -> None:
    argv = ("stream_local", *STREAM, *TOPICS, *CLOUD, *STREAM_FROM)
    argv = (*argv, "--deduplicate_attribute", "event")
    code, _, err = templated.launch(*argv)
    assert code == 2
    assert "--deduplicate_attribute has no effect in at-least-once mode" in err
    assert err.count("\n") == 1
    assert templated.google.calls == []
    code, _, err = templated.launch(*argv, "--streaming_mode", "exactly_once")
    assert (code, err) == (0, "")
    code, _, err = templated.launch(*argv, "--deduplicate_seconds", "60", "--job_name", "b-job")
    assert code == 0, err


def test_a_launch_with_the_name_of_a_running_job_is_rejected(templated: World) -> None:
    templated.dataflow.add("a-job", PROJECT, REGION)
    templated.dataflow.polls = 10
    code, _, err = templated.launch(*BATCH, *FROM, "--job_name", "a-job")
    assert code == 2
    assert "--job_name a-job: a job of this name is already running" in err


def test_a_launch_without_permission_names_the_role(templated: World) -> None:
    templated.google.faults = lambda _: permission_denied("dataflow.jobs.create", PROJECT)
    code, _, err = templated.launch(*BATCH, *FROM)
    assert code == 1
    assert "grant the account the role roles/dataflow.developer" in err


def test_ctrl_c_during_a_launch_of_a_template_says_that_the_job_may_have_started(
    templated: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(Jobs, "launch", interrupt)
    code, _, err = templated.launch(*BATCH, *FROM, "--job_name", "a-job")
    assert code == 130
    assert "interrupted: the job may have started; follow it with `python -m" in err
    templated.dataflow.add("a-job", PROJECT, REGION)
    assert templated.paste(err)[0] == 0


def request_for(name: str) -> dict[str, Any]:
    parameter = {"jobName": name, "containerSpecGcsPath": "gs://b/t.json"}
    return {"projectId": PROJECT, "location": REGION, "launchParameter": parameter}


def test_a_launch_whose_response_is_lost_is_not_repeated() -> None:
    dataflow, lost = Dataflow(polls=10), [True]
    with google_api(dataflow) as google:
        google.faults = lambda call: (
            HangUp(done=True) if call.method.endswith("launch") and lost and lost.pop() else None
        )
        jobs = Jobs(Cloud(PROJECT, Endpoints(dataflow=google.url), retry_seconds=5.0))
        ident = jobs.launch(request_for("a-job"))
        assert [job["id"] for job in dataflow.jobs.values()] == [ident]
        assert google.methods().count("flexTemplates.launch") == 1


class _Slow(Dataflow):
    """A Dataflow where replaced jobs keep running for a while, and new ones are listed late."""

    unseen = 0

    def flex_templates_launch(self, call: Call) -> dict[str, Any]:
        running = [job for job in self.jobs.values() if job["currentState"] == "JOB_STATE_RUNNING"]
        try:
            return super().flex_templates_launch(call)
        finally:
            for job in running:
                job["currentState"] = "JOB_STATE_RUNNING"

    def jobs_list(self, call: Call) -> dict[str, Any]:
        if self.jobs and self.unseen:
            self.unseen -= 1
            return {}
        return super().jobs_list(call)


def test_an_update_whose_response_is_lost_is_not_repeated() -> None:
    dataflow, lost = _Slow(polls=10), [True]
    old = dataflow.add(
        "a-stream", PROJECT, REGION, type="JOB_TYPE_STREAMING", currentState="JOB_STATE_RUNNING"
    )
    with google_api(dataflow) as google:
        google.faults = lambda call: (
            HangUp(done=True) if call.method.endswith("launch") and lost and lost.pop() else None
        )
        jobs = Jobs(Cloud(PROJECT, Endpoints(dataflow=google.url), retry_seconds=5.0))
        request = request_for("a-stream")
        request["launchParameter"]["update"] = True
        ident = jobs.launch(request)
        assert list(dataflow.jobs) == [old["id"], ident]


@pytest.mark.slow
def test_a_job_that_is_listed_late_is_found_at_the_next_attempt() -> None:
    dataflow, lost = _Slow(polls=10), [True]
    dataflow.unseen = 1
    with google_api(dataflow) as google:
        google.faults = lambda call: (
            HangUp(done=True) if call.method.endswith("launch") and lost and lost.pop() else None
        )
        jobs = Jobs(Cloud(PROJECT, Endpoints(dataflow=google.url), retry_seconds=5.0))
        assert [jobs.launch(request_for("a-job"))] == list(dataflow.jobs)
        assert dataflow.unseen == 0


def test_a_launch_that_never_arrived_is_repeated() -> None:
    dataflow, lost = Dataflow(polls=10), [True]
    with google_api(dataflow) as google:
        google.faults = lambda call: (
            HangUp() if call.method.endswith("launch") and lost and lost.pop() else None
        )
        jobs = Jobs(Cloud(PROJECT, Endpoints(dataflow=google.url), retry_seconds=5.0))
        assert jobs.launch(request_for("a-job")) in dataflow.jobs
        assert google.methods().count("flexTemplates.launch") == 2


def test_a_rejected_template_is_a_job_error() -> None:
    with google_api(Dataflow()) as google:
        jobs = Jobs(Cloud(PROJECT, Endpoints(dataflow=google.url), retry_seconds=0.0))
        request = request_for("a-job")
        request["launchParameter"]["containerSpecGcsPath"] = "no-path"
        with pytest.raises(JobError, match="job a-job cannot be started: containerSpecGcsPath is"):
            jobs.launch(request)


# Updates


OLD = {"Read": "read", "Score/Predict": "par_do", "Score/Group": "group_by_key", "Write": "par_do"}


def test_the_same_steps_and_more_can_replace_a_job() -> None:
    assert compare(OLD, OLD | {"Count": "par_do"}, {}) == []
    # Dataflow may list the parts of a step, or the whole step.
    assert compare({"Read/Split": "par_do", "Write": "par_do"}, OLD, {}) == []


def test_a_missing_step_is_named_with_the_step_that_it_probably_became() -> None:
    new = {name.replace("Predict", "Predicted"): kind for name, kind in OLD.items()}
    gone, advice = compare(OLD, new, {})
    assert gone == "the new pipeline lacks the step Score/Predict"
    assert '--transform_name_mapping \'{"Score/Predict": "Score/Predicted"}\'' in advice
    assert compare(OLD, new, {"Score/Predict": "Score/Predicted"}) == []
    assert compare(OLD, new, {"Score/Predict": ""}) == []


def test_the_suggested_mapping_can_be_pasted_into_a_shell() -> None:
    name = "Map(<lambda 'x' at \"y\">)"
    _, advice = compare({name: "par_do"}, {}, {})
    words = shlex.split(advice)
    assert json.loads(words[words.index("--transform_name_mapping") + 1]) == {name: ""}


GATHERED = {
    "Gather/Key": "par_do",
    "Gather/Group/Wait": "par_do",
    "Gather/Lists": "par_do",
}
GROUP = list(GATHERED)[1]


def test_no_mapping_is_suggested_that_would_drop_the_state_of_a_step() -> None:
    message = "; ".join(compare(OLD | GATHERED, OLD, {}))
    assert f"the new pipeline lacks the steps {', '.join(GATHERED)}" in message
    assert f"{GROUP} may hold messages that are already acknowledged" in message
    assert "start the new pipeline with the same flags as the running job" in message
    assert "--transform_name_mapping" not in message
    for name, kind in (("Score/Group", "group_by_key"), ("Read", "read")):
        message = "; ".join(compare({name: kind}, {}, {}))
        assert f"{name} may hold messages" in message
        assert "--transform_name_mapping" not in message
    # A renamed step can hold the state. A step without state cannot, however similar its name is.
    renamed = GROUP.replace("Gather", "Gathered")
    assert f'{{"{GROUP}": "{renamed}"}}' in compare({GROUP: "par_do"}, {renamed: "par_do"}, {})[1]
    stateless = GROUP.replace("Wait", "Waits")
    message = "; ".join(compare({GROUP: "par_do"}, {stateless: "par_do"}, {}))
    assert "--transform_name_mapping" not in message


def test_a_stream_whose_files_an_earlier_version_writes_cannot_be_updated() -> None:
    old = {
        "WriteRows/Now": "par_do",
        "WriteRows/Shard": "par_do",
        "WriteRows/Window": "par_do",
        "WriteRows/Group": "group_by_key",
        "WriteRows/Write": "par_do",
    }
    new = {f"WriteRows/{name}": "par_do" for name in ("Pack", "Group", "Write", "Manifest")}
    change, *_ = compare(old, new, {})
    assert change == "step WriteRows/Group changes its kind from group_by_key to par_do"
    # The next version keeps the rows of this one.
    assert compare(new, new, {}) == []
    faults = compare(new, {"WriteRows/Write": "par_do"}, {})
    assert "WriteRows/Group may hold messages that are already acknowledged" in faults[1]


@pytest.mark.parametrize("target", ["", "Score/Predict"])
def test_a_mapping_that_drops_the_state_of_a_step_is_rejected_without_the_flag(target: str) -> None:
    mapping = dict.fromkeys(GATHERED, "") | {GROUP: target}
    (fault,) = compare(OLD | GATHERED, OLD, mapping)
    assert fault.startswith(f"--transform_name_mapping drops the state of {GROUP}: ")
    assert "--allow_state_loss" in fault
    assert compare(OLD | GATHERED, OLD, mapping, allow_state_loss=True) == []


@pytest.mark.parametrize("allow", [False, True])
def test_a_mapping_of_a_group_of_steps_is_rejected_with_the_names_of_its_steps(allow: bool) -> None:
    faults = compare(OLD | GATHERED, OLD, {"Gather": ""}, allow_state_loss=allow)
    assert faults[0].startswith(
        "--transform_name_mapping: Gather is a group of steps of the running job, not a step"
    )
    assert faults[0].endswith(f"by its own name: {', '.join(GATHERED)}")
    # Dataflow ignores the mapping, so the steps are still missing.
    assert "the new pipeline lacks the steps" in faults[1]
    (fault,) = compare({"Read": "read"}, {"In/Read": "", "In/Map": ""}, {"Read": "In"})
    assert "In is a group of steps of the new pipeline, not a step" in fault
    assert fault.endswith("In/Read, In/Map")
    assert "the new pipeline has no step Out" in compare(OLD, OLD, {"Write": "Out"})[0]


def test_a_step_that_changes_its_kind_and_a_mapping_of_an_unknown_step_are_named() -> None:
    assert compare(OLD, OLD | {"Score/Group": "par_do"}, {}) == [
        "step Score/Group changes its kind from group_by_key to par_do"
    ]
    assert "the running job has no step Nothing" in compare(OLD, OLD, {"Nothing": ""})[0]


def stream(url: str, label: str, name: str = "a-stream", **mapping: str) -> beam.Pipeline:
    """Return a tiny pipeline with a step of that label, to replace the job of that name."""
    argv = [*PLACE, "--job_name", name, "--update", "--dataflow_endpoint", url]
    argv += ["--transform_name_mapping", json.dumps(mapping)] if mapping else []
    pipeline = beam.Pipeline(options=PipelineOptions(argv))
    pipeline | "Make" >> beam.Create([1]) | label >> beam.Map(str)
    return pipeline


@pytest.mark.slow
def test_a_running_job_is_compared_step_by_step_before_it_is_replaced() -> None:
    dataflow = Dataflow(polls=10)
    with google_api(dataflow) as google:
        running = steps(stream(google.url, "Score").to_runner_api())
        dataflow.add(
            "a-stream",
            PROJECT,
            REGION,
            type="JOB_TYPE_STREAMING",
            currentState="JOB_STATE_RUNNING",
            pipelineDescription={"originalPipelineTransform": running},
        )
        dataflow.add("a-batch", PROJECT, REGION)
        cloud = Cloud("billed", Endpoints())
        check_update(stream(google.url, "Score"), cloud)
        check_update(stream(google.url, "Rescore", **{"Score": "Rescore"}), cloud)
        with pytest.raises(
            UsageError,
            match=r"cannot replace job a-stream .*: the new pipeline lacks the step Score.*; to "
            r"start the new pipeline anyway, drain job a-stream, and then start it without "
            r"--update$",
        ):
            check_update(stream(google.url, "Rescore"), cloud)
        with pytest.raises(
            UsageError, match="no job another is running in us-central1: pass the --job_name"
        ):
            check_update(stream(google.url, "Score", "another"), cloud)
        with pytest.raises(UsageError, match="job a-batch is a batch job; only a stream can be"):
            check_update(stream(google.url, "Score", "a-batch"), cloud)


# The program


def program(*argv: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pipelines.launch", *argv]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


def test_the_program_lists_its_pipelines_and_suggests_a_name() -> None:
    done = program()
    assert done.returncode == 0
    assert all(name in done.stdout for name in PIPELINES)
    done = program("batch_loacl")
    assert done.returncode == 2
    assert "unknown pipeline 'batch_loacl' (did you mean 'batch_local" in done.stderr


def test_ctrl_c_ends_the_program_and_not_the_job() -> None:
    dataflow = Dataflow(polls=10**6)
    with google_api(dataflow) as google:
        job = dataflow.add("a-job", PROJECT, REGION, currentState="JOB_STATE_RUNNING")
        command = [sys.executable, "-m", "pipelines.launch", "--attach", "a-job", *PLACE]
        command += ["--poll_seconds", "60", "--api_endpoints", f"dataflow={google.url}"]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=ROOT) as process:
            assert process.stderr is not None
            assert process.stderr.readline().startswith("running")
            process.send_signal(signal.SIGINT)
            assert process.wait() == 130
            message = process.stderr.read()
    assert (
        "interrupted: job a-job was not stopped and may still be running; follow it again with "
        "`python -m pipelines.launch" in message
    )
    assert f" --api_endpoints dataflow={google.url}" in message
    assert job["currentState"] == "JOB_STATE_RUNNING"
    assert "jobs.update" not in google.methods()


def test_help_loads_neither_beam_nor_torch() -> None:
    code = (
        "import sys\n"
        "from pipelines.launch.command import PIPELINES, choose_command\n"
        "from pipelines.options.flag import build_parser\n"
        "for name in PIPELINES:\n"
        "    command, _ = choose_command([name])\n"
        "    build_parser(command.name, command.about, command.options).format_help()\n"
        "heavy = {'apache_beam', 'torch', 'google.auth', 'pyarrow'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
