"""Jobs on the stand-in, followed to each state in which a job can end."""

import io
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from google.api_core import exceptions

from cloud.clients import Cloud
from cloud.endpoints import Endpoints
from common.errors import JobError, TooFewRows, TooManyDeadLetters, UsageError
from common.terminal import Progress
from examples.google_api.dataflow import Dataflow
from examples.google_api.faults import Call, Fault, HangUp, Refusal, permission_denied
from examples.google_api.monitoring import Monitoring
from examples.google_api.server import GoogleApi, google_api
from pipelines.dataflow.facts import JobFacts
from pipelines.dataflow.jobs import Jobs
from pipelines.dataflow.metrics import (
    Distribution,
    JobMetrics,
    Look,
    batch_line,
    rate,
    read_metrics,
)
from pipelines.launch.monitor import CANCELLED, DONE, LOST, Monitor

PROJECT, REGION = "a-project", "us-central1"
SUBSCRIPTION = f"projects/{PROJECT}/subscriptions/input"


class _WithWorkers(Dataflow):
    """A Dataflow that reports the workers of its jobs.

    Attributes:
        silent: A region that does not respond.
    """

    workers = 0
    silent = ""

    def jobs_aggregated(self, call: Call) -> dict[str, Any]:
        return self._silenced(super().jobs_aggregated(call))

    def jobs_list(self, call: Call) -> dict[str, Any]:
        return self._silenced(super().jobs_list(call))

    def _silenced(self, answer: dict[str, Any]) -> dict[str, Any]:
        if not self.silent:
            return answer
        jobs = [job for job in answer.get("jobs", ()) if job["location"] != self.silent]
        return {**answer, "jobs": jobs, "failedLocation": [{"name": self.silent}]}

    def messages_list(self, call: Call) -> dict[str, Any]:
        events = [{"currentNumWorkers": str(self.workers)}] if self.workers else []
        return super().messages_list(call) | {"autoscalingEvents": events}


@dataclass
class World:
    """A server, and a monitor whose sleep executes the next step of `script`."""

    google: GoogleApi
    dataflow: _WithWorkers
    monitoring: Monitoring
    out: io.StringIO = field(default_factory=io.StringIO)
    line: io.StringIO = field(default_factory=io.StringIO)
    slept: list[float] = field(default_factory=list)
    script: list[Callable[[], None]] = field(default_factory=list)

    @property
    def jobs(self) -> Jobs:
        # No server responds for Pub/Sub. A label that cannot be removed changes nothing.
        endpoints = Endpoints(
            dataflow=self.google.url, monitoring=self.google.url, pubsub="http://localhost:1"
        )
        return Jobs(Cloud(PROJECT, endpoints, retry_seconds=0.0))

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        if self.script:
            self.script.pop(0)()

    def add(self, facts: JobFacts | None = None, kind: str = "BATCH", **fields: Any) -> Any:
        options = {} if facts is None else facts.options()
        return self.dataflow.add(
            "a-job",
            PROJECT,
            REGION,
            type=f"JOB_TYPE_{kind}",
            environment={"sdkPipelineOptions": {"options": options}},
            **fields,
        )

    def follow(self, job: Any, **fields: Any) -> int:
        screen = Progress(self.out, self.line)
        monitor = Monitor(
            jobs=self.jobs, screen=screen, poll_seconds=30.0, sleep=self.sleep, **fields
        )
        return monitor.follow(self.jobs.find(job["id"], REGION))


@pytest.fixture
def world() -> Iterator[World]:
    dataflow, monitoring = _WithWorkers(), Monitoring()
    with google_api(dataflow, monitoring) as google:
        yield World(google, dataflow, monitoring)


def enter(world: World, job: Any, state: str, **fields: Any) -> Callable[[], None]:
    """Return a step of the script after which a job is in a state."""

    def then() -> None:
        job.update(fields, currentState=f"JOB_STATE_{state}")

    return then


def counter(name: str, value: float, **context: str) -> dict[str, Any]:
    return {"name": {"origin": "user", "name": name, "context": context}, "scalar": value}


def distribution(name: str, **value: float) -> dict[str, Any]:
    return {"name": {"origin": "user", "name": name}, "distribution": value}


def make_facts(folder: Path, **fields: Any) -> JobFacts:
    report = str(folder / "run-1" / "report.json")
    return JobFacts(
        pipeline="batch_local",
        run_id="run-1",
        model="m 1",
        model_digest="0" * 64,
        report=report,
        **fields,
    )


def write_report(facts: JobFacts, scored: int, dead: int) -> dict[str, Any]:
    report = {
        "run_id": facts.run_id,
        "pipeline": facts.pipeline,
        "model": {"name": "m", "version": "1", "digest": facts.model_digest},
        "score_output": "total",
        "rows_in": scored + dead,
        "rows_scored": scored,
        "rows_dead_lettered": dead,
        "dead_letters": [{"stage": "validate", "reason": "null", "column": "a", "rows": dead}],
        "output": ["gs://b/scores"],
        "dead_letter_output": ["gs://b/dead_letters"],
        "report": facts.report,
    }
    path = Path(str(facts.report))
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(report))
    return report


def test_a_batch_job_is_shown_and_ends_with_its_report(world: World, tmp_path: Path) -> None:
    facts = make_facts(tmp_path)
    job = world.add(facts)
    world.dataflow.workers = 3
    world.dataflow.metrics[job["id"]] = [counter("rows_inferred", 1_000)]

    def more() -> None:
        world.dataflow.metrics[job["id"]] = [counter("rows_inferred", 90_000)]

    world.script = [more]
    world.dataflow.polls = 2
    write_report(facts, 99, 1)
    assert world.follow(job) == DONE
    lines = world.line.getvalue().splitlines()
    assert lines[0].startswith("pending")
    assert "3 workers  1,000 rows" in lines[0]
    assert any(re.search(r"90,000 rows, \S+/s", line) for line in lines)
    assert "rows in                100\nscored                  99\n" in world.out.getvalue()
    assert set(world.slept) == {30.0}


def test_the_report_is_printed_as_json_if_requested(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    facts = make_facts(tmp_path)
    report = write_report(facts, 100, 0)
    assert world.follow(world.add(facts), json_summary=True) == DONE
    assert json.loads(capsys.readouterr().out) == report


def test_a_job_with_more_dead_letters_than_it_allows_fails(world: World, tmp_path: Path) -> None:
    facts = make_facts(tmp_path, max_dead_letter_share=0.05)
    write_report(facts, 90, 10)
    with pytest.raises(
        TooManyDeadLetters,
        match=r"\(10.00 %\) are dead letters, more than --max_dead_letter_share 0.05 allows; "
        r"the largest group is reason null, stage validate, column a \(10 rows\): see ",
    ):
        world.follow(world.add(facts))


def test_a_job_with_fewer_rows_than_it_expects_fails(world: World, tmp_path: Path) -> None:
    facts = make_facts(tmp_path, min_rows=101)
    report = write_report(facts, 90, 10)
    Path(str(facts.report)).write_text(json.dumps(report | {"input": ["gs://b/rows/"]}))
    message = "100 rows were read from gs://b/rows/, fewer than --min_rows 101"
    with pytest.raises(TooFewRows, match=message):
        world.follow(world.add(facts))


def test_a_done_job_without_its_report_is_an_error(world: World, tmp_path: Path) -> None:
    with pytest.raises(JobError, match="is done, but its report cannot be read"):
        world.follow(world.add(make_facts(tmp_path)))


def test_a_job_that_millrace_did_not_start_can_be_followed_too(world: World) -> None:
    assert world.follow(world.add()) == DONE
    assert "this job was not started by Millrace, so there is no report" in world.out.getvalue()


def test_a_failed_job_says_why_and_its_staged_files_are_removed(
    world: World, tmp_path: Path
) -> None:
    staging = tmp_path / ".staging" / "run-1"
    staging.mkdir(parents=True)
    for attempt in ("aaaaaaaa", "bbbbbbbb"):
        (staging / f"{attempt}-part.parquet").write_text("x")
    job = world.add(make_facts(tmp_path, staging=(str(staging),), attempt="aaaaaaaa"))
    world.dataflow._last = "FAILED"
    world.dataflow.tell(
        job,
        "ERROR",
        "Traceback (most recent call last):\n  File 'x.py', line 1\n"
        "common.errors.InputError: rows.parquet is gone [while running 'Read']\n",
    )
    with pytest.raises(JobError, match=r"job a-job failed after .*:\n  rows\.parquet is gone$"):
        world.follow(job)
    # The files of another attempt at the run stay, because that attempt may still be running.
    assert [path.name for path in staging.iterdir()] == ["bbbbbbbb-part.parquet"]


def test_an_account_that_may_not_clean_up_still_learns_why_a_job_failed(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: JobFacts) -> None:
        # Beam's file access raises this if an account may list files, but not read them.
        raise exceptions.Forbidden("storage.objects.get denied")

    monkeypatch.setattr("pipelines.dataflow.start.remove_staged", refuse)
    job = world.add(make_facts(tmp_path, staging=(str(tmp_path),)))
    world.script = [enter(world, job, "FAILED")]
    world.dataflow.tell(job, "ERROR", "The model is gone.")
    with pytest.raises(JobError, match="The model is gone"):
        world.follow(job)


def test_the_staged_files_of_a_job_that_had_ended_before_are_kept(
    world: World, tmp_path: Path
) -> None:
    staging = tmp_path / ".staging" / "run-1"
    staging.mkdir(parents=True)
    (staging / "of-a-run-of-the-same-name").write_text("x")
    facts = make_facts(tmp_path, staging=(str(staging),))
    job = world.add(facts, currentState="JOB_STATE_FAILED")
    with pytest.raises(JobError):
        world.follow(job)
    assert len(list(staging.iterdir())) == 1


def test_a_cancelled_job_has_its_own_exit_code(world: World) -> None:
    job = world.add()
    world.script = [enter(world, job, "CANCELLED")]
    world.dataflow.polls = 10
    assert world.follow(job) == CANCELLED
    assert "cancelled after" in world.out.getvalue()


def test_ctrl_c_leaves_the_job_alone_and_says_how_to_follow_it_again(world: World) -> None:
    job = world.add()

    def interrupt() -> None:
        raise KeyboardInterrupt

    world.script = [interrupt]
    command = f"python -m pipelines.launch --attach {job['id']} --project {PROJECT}"
    with pytest.raises(
        KeyboardInterrupt,
        match=f"was not stopped and may still be running; follow it again with `{command}",
    ):
        world.follow(job)
    assert "jobs.update" not in world.google.methods()


def test_a_lost_permission_leaves_the_job_running_and_names_the_role(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    job = world.add(currentState="JOB_STATE_RUNNING")
    world.dataflow.polls = 10

    def take_away() -> None:
        world.google.faults = lambda _: permission_denied("dataflow.jobs.get", "a-project")

    world.script = [take_away]
    assert world.follow(job) == LOST
    (line,) = capsys.readouterr().err.splitlines()
    assert "Permission 'dataflow.jobs.get' denied" in line
    assert (
        "grant the account the role roles/dataflow.viewer; the job was not stopped and may still "
        "be running; follow it again with `"
    ) in line
    assert f"--attach {job['id']} --project {PROJECT} --region {REGION}" in line


def test_network_errors_are_retried_after_longer_and_longer_pauses(world: World) -> None:
    job = world.add()
    found = world.jobs.find(job["id"], REGION)
    ends: list[Fault] = [HangUp(), Refusal(503, "Try later."), HangUp(), Refusal(500, "Oops.")]
    world.google.faults = lambda _: ends.pop(0) if ends else None
    screen = Progress(world.out, world.line)
    assert (
        Monitor(jobs=world.jobs, screen=screen, poll_seconds=30.0, sleep=world.sleep).follow(found)
        == DONE
    )
    assert world.slept[:4] == [60.0, 120.0, 240.0, 300.0]
    assert "Dataflow does not respond (Try later); retrying in 120 s" in world.out.getvalue()


def test_a_stream_shows_latency_backlog_and_dead_letters_until_it_drains(world: World) -> None:
    facts = JobFacts(
        pipeline="stream_local",
        run_id="run-1",
        model="m 1",
        model_digest="0" * 64,
        subscription=SUBSCRIPTION,
    )
    job = world.add(facts, "STREAMING", currentState="JOB_STATE_RUNNING")
    world.dataflow.polls = 10
    world.monitoring.values_by_metric = {
        "system_lag": {job["id"]: 7, "another": 99},
        "backlog_bytes": {job["id"]: 2_500_000},
        "estimated_backlog_processing_time": {job["id"]: 12},
        "num_undelivered_messages": {"input": 345, "other": 9},
    }
    metrics = world.dataflow.metrics
    first = [counter("rows_received", 100), distribution("total_ms", count=10, sum=1_000, max=300)]
    metrics[job["id"]] = first

    def more() -> None:
        metrics[job["id"]] = [
            counter("rows_received", 300),
            counter("rows_dead_lettered", 4),
            distribution("total_ms", count=20, sum=5_000, max=900),
            distribution("messages_a_bundle", count=80, sum=200, max=9),
        ]

    world.script = [more, enter(world, job, "DRAINING"), enter(world, job, "DRAINED")]
    assert world.follow(job) == DONE
    lines = world.line.getvalue().splitlines()
    assert "100 rows  mean latency 100 ms  system lag 7 s" in lines[0]
    assert lines[0].endswith("backlog 345 messages, 2.5 MB, about 12 s to process")
    assert re.search(r"300 rows, \S+/s", lines[1])
    # The latency of only those messages that arrived since the last look.
    assert "4 dead letters  2.5 messages a bundle  mean latency 400 ms" in lines[1]
    assert lines[2].startswith("draining")
    assert lines[3].startswith("drained")
    assert (
        "the results of all messages that the job had received are written" in world.out.getvalue()
    )


def test_without_permission_for_metrics_only_the_backlog_is_missing(world: World) -> None:
    job = world.add(None, "STREAMING", currentState="JOB_STATE_RUNNING")
    denied = permission_denied("monitoring.timeSeries.list", PROJECT)
    world.google.faults = lambda call: denied if "timeSeries" in call.method else None
    world.script = [lambda: None, enter(world, job, "CANCELLED")]
    assert world.follow(job) == CANCELLED
    assert world.out.getvalue().count("the backlog is not shown: Permission") == 1
    assert "are lost: drain a job to keep them" in world.out.getvalue()
    assert "grant the account the role roles/monitoring.viewer" in world.out.getvalue()
    assert world.google.methods().count("timeSeries.list") == 1


def test_an_updated_stream_names_the_job_that_replaces_it(world: World) -> None:
    job = world.add(None, "STREAMING", currentState="JOB_STATE_RUNNING")
    world.script = [enter(world, job, "UPDATED", replacedByJobId="2026-11-21_00_00_00-7")]
    assert world.follow(job) == DONE
    line = "replaced by 2026-11-21_00_00_00-7; follow the new job: python -m pipelines.launch "
    assert f"{line}--attach 2026-11-21_00_00_00-7 --project" in world.out.getvalue()


def test_the_new_job_of_an_updated_stream_is_named_if_its_id_is_not_reported(world: World) -> None:
    job = world.add(None, "STREAMING", currentState="JOB_STATE_RUNNING")
    world.script = [enter(world, job, "UPDATED")]
    assert world.follow(job) == DONE
    assert "follow the new job: python -m pipelines.launch --attach a-job" in world.out.getvalue()


def test_a_job_is_found_by_id_or_name_and_its_region_is_named(world: World) -> None:
    job = world.add()
    assert world.jobs.find("a-job", None).ident == job["id"]
    assert world.jobs.find(job["id"], None).region == REGION
    with pytest.raises(UsageError, match=f"is not in europe-west1: pass --region {REGION}"):
        world.jobs.find(job["id"], "europe-west1")
    with pytest.raises(UsageError, match="project a-project has no job missing-job: check the id"):
        world.jobs.find("missing-job", REGION)


def test_a_job_in_a_region_that_does_not_respond_is_not_reported_as_missing(world: World) -> None:
    here, silent = world.add(), world.dataflow.add("a-job", PROJECT, "europe-west1")
    world.dataflow.silent = "europe-west1"
    lacks = (
        "jobs of europe-west1 could not be listed; this error is usually transient: try again later"
    )
    for ident in ("missing-job", silent["id"], "a-job"):
        with pytest.raises(JobError, match=f"job {ident} cannot be looked up: {lacks}"):
            world.jobs.find(ident, None)
    # A job that is listed, or whose id and region are given, is found all the same.
    assert world.jobs.find("a-job", REGION).ident == here["id"]
    assert world.jobs.find(here["id"], None).region == REGION
    assert world.jobs.find(silent["id"], "europe-west1").ident == silent["id"]
    with pytest.raises(UsageError, match="has no job missing-job"):
        world.jobs.find("missing-job", REGION)


def test_a_launch_fails_if_jobs_of_the_same_name_cannot_be_listed(world: World) -> None:
    world.add()
    world.dataflow.silent = REGION
    parameter = {"jobName": "a-job", "containerSpecGcsPath": "gs://b/t.json"}
    request = {"projectId": PROJECT, "location": REGION, "launchParameter": parameter}
    with pytest.raises(
        JobError, match="jobs named a-job cannot be listed: jobs of us-central1 could"
    ):
        world.jobs.launch(request)
    assert "flexTemplates.launch" not in world.google.methods()


def test_a_job_is_found_by_name_among_any_number_of_others(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.dataflow.jobs._MOST_LISTED", 2)
    for _ in range(5):
        world.dataflow.add("another", PROJECT, REGION)
    job = world.add()
    assert world.jobs.find("a-job", None).ident == job["id"]


def test_a_job_with_few_fields_does_not_hide_the_others(world: World) -> None:
    bare = world.dataflow.add("bare", PROJECT, REGION)
    del bare["createTime"], bare["currentStateTime"]
    bare["currentState"] = "JOB_STATE_UNKNOWN"
    job = world.add()
    assert world.jobs.find(job["id"], None).ident == job["id"]
    assert world.jobs.find("bare", REGION).state == "unknown"


@pytest.mark.parametrize(
    "state", ["QUEUED", "RESOURCE_CLEANING_UP", "PAUSED", "PAUSING", "STOPPED", "CANCELLING"]
)
def test_a_job_is_followed_through_states_that_are_not_final(world: World, state: str) -> None:
    job = world.add(currentState="JOB_STATE_RUNNING")
    world.dataflow.polls = 10
    world.script = [enter(world, job, state), enter(world, job, "DONE")]
    assert world.follow(job) == DONE
    assert f"{state.lower():<10} " in world.line.getvalue()


def test_a_clock_that_is_behind_dataflows_shows_no_negative_time(world: World) -> None:
    job = world.jobs.find(world.add(createTime="2026-11-21T10:00:00Z")["id"], REGION)
    assert job.seconds(datetime(2026, 11, 21, 9, 59, 58, tzinfo=UTC)) == 0
    assert job.seconds(datetime(2026, 11, 21, 10, 1, tzinfo=UTC)) == 60


def test_committed_values_win_over_tentative_ones_and_steps_are_summed() -> None:
    updates = [
        counter("rows_inferred", 5, step="s1"),
        counter("rows_inferred", 9, step="s1", tentative="true"),
        counter("rows_inferred", 2, step="s2", tentative="true"),
        distribution("total_ms", count=2, sum=30, min=10, max=20),
        # Dataflow also reports each distribution as counters.
        counter("total_ms_COUNT", 2),
        {"name": {"origin": "dataflow/v1b3", "name": "CurrentVcpuCount"}, "scalar": 8.0},
    ]
    for order in (updates, updates[::-1]):
        found = read_metrics(order)
        assert found.counters == {"rows_inferred": 7}
        assert found.distributions == {"total_ms": Distribution(2, 30, 20)}
        assert found.service == {"CurrentVcpuCount": 8}


def test_a_rate_needs_two_looks_at_different_times() -> None:
    looks = [
        Look(state="running", seconds=s, metrics=JobMetrics({"rows_inferred": n}))
        for s, n in ((10, 0), (30, 5_000))
    ]
    assert rate(looks[1], looks[0]) == 250
    assert rate(looks[0], None) is None
    assert rate(looks[1], looks[1]) is None
    assert batch_line(looks[1], looks[0]) == "running    0:00:30  5,000 rows, 250/s"
