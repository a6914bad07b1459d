"""Jobs that must not run twice, on a scripted server and on the emulator."""

import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from google.api_core import exceptions
from google.cloud import bigquery
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from property_tests import examples

import transforms.bigquery.jobs
from cloud.clients import Cloud
from cloud.endpoints import Endpoints
from cloud.errors import retry
from examples.local_cloud import LocalCloud
from transforms.bigquery.jobs import ATTEMPTS, done_job, job_id, run_job, run_jobs

PLACE = "europe-west1"
BASE = job_id("copy", "a", "b")


@dataclass
class Plan:
    """The course of a job: the polls before it ends, and why it fails, if it does.

    `insert` is the result of the request to start it: `fine`, `lost` (the job starts, but the
    response is lost), `duplicate` (another process has just started the job) or `refused` (a
    quota is exceeded).
    """

    polls: int = 0
    reason: str | None = None
    insert: str = "fine"
    message: str = "it failed"


@dataclass
class Jobs:
    """A server of jobs.insert and jobs.get."""

    existing: dict[str, Plan] = field(default_factory=dict)
    plans: list[Plan] = field(default_factory=list)
    inserted: list[str] = field(default_factory=list)
    # How many GETs do not find a job that was started, and how the next GETs are refused.
    unseen: int = 0
    refused: list[tuple[int, str]] = field(default_factory=list)
    # How many jobs may run at the same time, and how many were polled before the last one started.
    at_once: int = 1
    polled: int = 0

    @property
    def running(self) -> int:
        return sum(plan.polls > 0 for plan in self.existing.values())

    def get(self, name: str, place: str | None) -> tuple[int, Any]:
        if self.refused:
            status, reason = self.refused.pop(0)
            return failure(status, reason)
        plan = self.existing.get(name)
        # Outside the multi-regions, a job is found only with its location.
        if plan is None or place != PLACE:
            return failure(404, "notFound")
        if self.unseen and self.inserted:
            self.unseen -= 1
            return failure(404, "notFound")
        self.polled += 1
        found = job(name, plan)
        plan.polls = max(plan.polls - 1, 0)
        return 200, found

    def insert(self, body: Any) -> tuple[int, Any] | None:
        name = body["jobReference"]["jobId"]
        assert body["jobReference"]["location"] == PLACE
        if name in self.existing:
            return failure(409, "duplicate")
        assert self.running < self.at_once, "a job was started while another was running"
        plan = self.plans.pop(0)
        if plan.insert == "refused":
            return failure(403, "quotaExceeded")
        self.existing[name] = plan
        self.inserted.append(name)
        if plan.insert == "lost":
            return None
        return failure(409, "duplicate") if plan.insert == "duplicate" else (200, job(name, plan))


def failure(status: int, reason: str) -> tuple[int, Any]:
    error = {"code": status, "message": "it is so", "errors": [{"reason": reason}]}
    return status, {"error": error}


def job(name: str, plan: Plan) -> dict[str, Any]:
    """Return the REST resource of a job."""
    status: dict[str, Any] = {"state": "RUNNING" if plan.polls else "DONE"}
    if not plan.polls and plan.reason:
        details = {"reason": plan.reason, "message": plan.message}
        status |= {"errorResult": details, "errors": [details]}
    table = {"projectId": "p", "datasetId": "d", "tableId": "t"}
    return {
        "jobReference": {"projectId": "p", "jobId": name, "location": PLACE},
        "configuration": {"copy": {"sourceTables": [table], "destinationTable": table}},
        "status": status,
    }


Serve = Callable[[Jobs], tuple[bigquery.Client, Cloud]]


@pytest.fixture(scope="module")
def serve() -> Iterator[Serve]:
    """A function that serves Jobs, and returns a client and its Cloud."""
    served: list[Jobs] = []
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            url = urlsplit(self.path)
            place = parse_qs(url.query).get("location", [None])[0]
            with lock:
                answer = served[-1].get(url.path.rsplit("/", 1)[-1], place)
            self._answer(answer)

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                answer = served[-1].insert(body)
            self._answer(answer)

        def _answer(self, answer: tuple[int, Any] | None) -> None:
            if answer is None:
                self.close_connection = True
                return
            text = json.dumps(answer[1]).encode()
            self.send_response(answer[0])
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *_: Any) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=http.serve_forever, args=(0.01,))
    thread.start()
    cloud = Cloud("p", Endpoints(bigquery=f"127.0.0.1:{http.server_port}"), retry_seconds=20.0)
    client = cloud.bigquery()

    def start(jobs: Jobs) -> tuple[bigquery.Client, Cloud]:
        served.append(jobs)
        return client, cloud

    yield start
    http.shutdown()
    thread.join()
    http.server_close()


def run(serve: Serve, jobs: Jobs) -> Any:
    client, cloud = serve(jobs)

    def begin(name: str) -> Any:
        return client.copy_table(
            "p.d.a", "p.d.b", job_id=name, location=PLACE, retry=retry(cloud.retry_seconds)
        )

    return run_job(client, BASE, PLACE, cloud, begin)


def run_three(serve: Serve, jobs: Jobs) -> list[str]:
    """Run the jobs a, b and c, and return their full ids."""
    client, cloud = serve(jobs)

    def begin(name: str) -> Any:
        return client.copy_table("p.d.a", "p.d.b", job_id=name, location=PLACE, retry=None)

    return [job.job_id for job in run_jobs(client, PLACE, cloud, dict.fromkeys("abc", begin))]


def test_an_id_depends_on_its_parts_and_is_valid_in_bigquery() -> None:
    assert job_id("load", "a", "b") == job_id("load", "a", "b")
    ids = {job_id("load", "a", "b"), job_id("load", "ab"), job_id("load", "b", "a")}
    assert len(ids | {job_id("copy", "a", "b")}) == 4
    # BigQuery accepts up to 1,024 letters, digits, _ and -.
    assert job_id("query", "SELECT 'ü/*'\n" * 1_000).replace("-", "").isalnum()
    assert len(job_id("query", "x" * 10_000)) < 100


def test_run_job_starts_a_job_and_waits_for_it(serve: Serve, no_waits: list[float]) -> None:
    jobs = Jobs(plans=[Plan(polls=30)])
    done = run(serve, jobs)
    assert (done.job_id, done.state) == (f"{BASE}-0", "DONE")
    assert jobs.inserted == [f"{BASE}-0"]
    # A short job is not delayed, and a long job is polled rarely.
    assert no_waits[0] <= 0.1
    assert no_waits == sorted(no_waits)
    assert no_waits[-1] == 5.0


def test_all_jobs_are_started_before_one_is_polled(serve: Serve, no_waits: list[float]) -> None:
    jobs = Jobs(plans=[Plan(5), Plan(1), Plan(9)], at_once=3)
    begin = jobs.insert

    def insert(body: Any) -> Any:
        assert jobs.polled == 0
        return begin(body)

    jobs.insert = insert  # type: ignore[method-assign]
    assert run_three(serve, jobs) == ["a-0", "b-0", "c-0"]
    assert jobs.inserted == ["a-0", "b-0", "c-0"]


def test_of_several_jobs_only_the_one_that_failed_is_repeated(
    serve: Serve, no_waits: list[float]
) -> None:
    jobs = Jobs(plans=[Plan(2), Plan(2, "backendError"), Plan(2), Plan(2)], at_once=3)
    assert run_three(serve, jobs) == ["a-0", "b-1", "c-0"]
    assert jobs.inserted == ["a-0", "b-0", "c-0", "b-1"]


@pytest.mark.parametrize(
    "bad", [Plan(insert="refused"), Plan(2, "quotaExceeded")], ids=["insert", "job"]
)
def test_after_a_quota_error_a_repetition_uses_the_jobs_that_were_started(
    serve: Serve, no_waits: list[float], bad: Plan
) -> None:
    jobs = Jobs(plans=[Plan(50), bad, Plan(50), Plan(2), Plan(2)], at_once=3)
    with pytest.raises(exceptions.Forbidden):
        run_three(serve, jobs)
    first = list(jobs.inserted)
    assert first[0] == "a-0"
    done = run_three(serve, jobs)
    assert [name[0] for name in done] == ["a", "b", "c"]
    assert done[0] == "a-0"
    assert not {name for name in jobs.inserted[len(first) :] if name[0] == "a"}


@pytest.mark.parametrize("polls", [0, 3])
def test_an_existing_job_is_used(serve: Serve, no_waits: list[float], polls: int) -> None:
    jobs = Jobs(existing={f"{BASE}-0": Plan(polls)})
    assert run(serve, jobs).job_id == f"{BASE}-0"
    assert jobs.inserted == []
    assert len(no_waits) == max(polls - 1, 0)


def test_a_job_that_failed_before_is_followed_by_the_next_number(
    serve: Serve, no_waits: list[float]
) -> None:
    jobs = Jobs(
        existing={f"{BASE}-0": Plan(reason="invalid"), f"{BASE}-1": Plan(2, "backendError")},
        plans=[Plan()],
    )
    assert run(serve, jobs).job_id == f"{BASE}-2"
    assert jobs.inserted == [f"{BASE}-2"]


@pytest.mark.parametrize("reason", ["backendError", "jobInternalError", "rateLimitExceeded"])
def test_after_a_transient_failure_another_job_is_started(
    serve: Serve, no_waits: list[float], reason: str
) -> None:
    jobs = Jobs(plans=[Plan(reason=reason), Plan(reason=reason), Plan()])
    assert run(serve, jobs).job_id == f"{BASE}-2"
    assert no_waits == [1.0, 2.0]


ABORTED = (
    "Query error: Transaction is aborted due to concurrent update against table p:d.t. at [1:19]",
    "Could not serialize access to table p:d.t due to concurrent update",
)


@pytest.mark.parametrize("message", ABORTED)
@pytest.mark.parametrize("reason", ["invalidQuery", "transactionAborted"])
def test_a_transaction_that_a_concurrent_update_ended_is_repeated_a_few_times(
    serve: Serve, no_waits: list[float], reason: str, message: str
) -> None:
    aborted = [Plan(reason=reason, message=message) for _ in range(ATTEMPTS)]
    jobs = Jobs(plans=[*aborted[:2], Plan()])
    assert run(serve, jobs).job_id == f"{BASE}-2"
    assert no_waits == [1.0, 2.0]
    with pytest.raises(exceptions.GoogleAPICallError, match="concurrent update"):
        run(serve, endless := Jobs(plans=[*aborted, Plan()]))
    assert len(endless.inserted) == ATTEMPTS


@pytest.mark.parametrize(
    "reason", ["invalidQuery", "notFound", "quotaExceeded", "accessDenied", "timeout", "stopped"]
)
def test_a_permanent_failure_is_raised_after_one_job(
    serve: Serve, no_waits: list[float], reason: str
) -> None:
    jobs = Jobs(plans=[Plan(reason=reason)])
    with pytest.raises(exceptions.GoogleAPICallError, match="it failed"):
        run(serve, jobs)
    assert jobs.inserted == [f"{BASE}-0"]
    assert no_waits == []


def test_the_last_failure_is_raised_after_all_attempts(serve: Serve, no_waits: list[float]) -> None:
    jobs = Jobs(plans=[Plan(reason="backendError") for _ in range(ATTEMPTS + 1)])
    with pytest.raises(exceptions.InternalServerError, match="it failed"):
        run(serve, jobs)
    assert len(jobs.inserted) == ATTEMPTS
    assert len(no_waits) == ATTEMPTS - 1


@pytest.mark.parametrize("unseen", [0, 2])
@pytest.mark.parametrize("insert", ["lost", "duplicate"])
def test_a_job_that_was_started_unnoticed_is_used(
    serve: Serve, no_waits: list[float], insert: str, unseen: int
) -> None:
    # A job that was started may take a moment to become visible.
    jobs = Jobs(plans=[Plan(1, insert=insert)], unseen=unseen)
    assert run(serve, jobs).job_id == f"{BASE}-0"
    assert jobs.inserted == [f"{BASE}-0"]


@pytest.mark.slow
def test_workers_that_start_a_job_at_the_same_time_share_one(
    serve: Serve, no_waits: list[float]
) -> None:
    jobs = Jobs(plans=[Plan(20, "backendError"), Plan(20)])
    with ThreadPoolExecutor(4) as pool:
        done = list(pool.map(lambda _: run(serve, jobs), range(4)))
    assert {job.job_id for job in done} == {f"{BASE}-1"}
    assert jobs.inserted == [f"{BASE}-0", f"{BASE}-1"]


@pytest.mark.parametrize("ours", [False, True])
def test_an_error_while_polling_a_job_starts_no_other_job(
    serve: Serve, no_waits: list[float], ours: bool
) -> None:
    jobs = Jobs(plans=[Plan(9), Plan()])
    if not ours:
        jobs.existing[f"{BASE}-0"] = jobs.plans.pop(0)
    client, _ = serve(jobs)
    original = client.get_job

    def refuse(*args: Any, **rest: Any) -> Any:
        if jobs.existing and jobs.existing[f"{BASE}-0"].polls == 5:
            jobs.refused = [(403, "accessDenied")]
        return original(*args, **rest)

    client.get_job = refuse
    try:
        with pytest.raises(exceptions.Forbidden):
            run(serve, jobs)
    finally:
        del client.get_job
    assert len(jobs.inserted) == ours
    assert jobs.running == 1


def test_transient_errors_while_polling_are_retried(serve: Serve, no_waits: list[float]) -> None:
    jobs = Jobs(plans=[Plan(3)], refused=[(503, "backendError"), (403, "rateLimitExceeded")])
    assert run(serve, jobs).state == "DONE"
    assert len(jobs.inserted) == 1


def test_a_job_that_never_ends_is_given_up_on(
    serve: Serve, no_waits: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transforms.bigquery.jobs, "_JOB_SECONDS", 0.05)
    jobs = Jobs(plans=[Plan(10**9)])
    with pytest.raises(exceptions.DeadlineExceeded, match=rf"{BASE}-0 is still RUNNING"):
        run(serve, jobs)
    assert len(jobs.inserted) == 1


PLANS = st.builds(
    Plan,
    polls=st.integers(0, 2),
    reason=st.sampled_from([None, "backendError", "invalidQuery", "jobInternalError"]),
    insert=st.sampled_from(["fine", "lost", "duplicate"]),
)


@settings(
    max_examples=examples(60),
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    deadline=None,
)
@given(st.lists(PLANS, max_size=3), st.lists(PLANS, min_size=ATTEMPTS, max_size=ATTEMPTS))
def test_however_jobs_end_one_succeeds_or_the_last_failure_is_raised(
    serve: Serve, no_waits: list[float], before: list[Plan], plans: list[Plan]
) -> None:
    # The server asserts that two jobs never run at the same time.
    names = [f"{BASE}-{i}" for i in range(20)]
    good = [plan.reason is None for plan in before]
    started = [plan.reason for plan in plans]
    jobs = Jobs(existing=dict(zip(names, before, strict=False)), plans=plans)
    try:
        done = run(serve, jobs)
    except exceptions.GoogleAPICallError:
        assert not any(good)
        last = len(jobs.inserted) - 1
        assert None not in started[: last + 1]
        assert "invalidQuery" not in started[:last]
        assert last == ATTEMPTS - 1 or started[last] == "invalidQuery"
    else:
        assert done.state == "DONE"
        assert done.error_result is None
        place = good.index(True) if any(good) else len(before) + started.index(None)
        assert done.job_id == names[place]
        assert len(jobs.inserted) == max(place + 1 - len(before), 0)
        # Another call finds the same job, and starts none.
        client, cloud = serve(jobs)
        found = done_job(client, BASE, PLACE, cloud)
        assert found is not None
        assert found.job_id == done.job_id
        assert run(serve, jobs).job_id == done.job_id
        assert len(jobs.inserted) == max(place + 1 - len(before), 0)


def test_the_job_that_succeeded_is_found_and_waited_for(
    serve: Serve, no_waits: list[float]
) -> None:
    client, cloud = serve(Jobs())
    assert done_job(client, BASE, PLACE, cloud) is None
    serve(Jobs(existing={f"{BASE}-0": Plan(reason="invalid")}))
    assert done_job(client, BASE, PLACE, cloud) is None
    serve(Jobs(existing={f"{BASE}-0": Plan(reason="invalid"), f"{BASE}-1": Plan(4)}))
    found = done_job(client, BASE, PLACE, cloud)
    assert found is not None
    assert (found.job_id, found.state) == (f"{BASE}-1", "DONE")


def test_done_job_raises_an_error_if_a_job_cannot_be_polled(serve: Serve) -> None:
    # If the job counted as failed, its rows would be written twice.
    client, cloud = serve(Jobs(existing={f"{BASE}-0": Plan()}, refused=[(403, "accessDenied")]))
    with pytest.raises(exceptions.Forbidden):
        done_job(client, BASE, PLACE, cloud)


def test_the_emulator_runs_a_query_once(emulators: LocalCloud, dataset: str) -> None:
    cloud, client = emulators.cloud, emulators.cloud.bigquery()
    client.query(f"CREATE TABLE `{dataset}.t` (n INT64)").result()
    base = job_id("query", dataset)

    def begin(name: str) -> Any:
        return client.query(
            f"INSERT INTO `{dataset}.t` VALUES (1)", job_id=name, location="US", job_retry=None
        )

    first, second = (run_job(client, base, "US", cloud, begin) for _ in range(2))
    assert first.job_id == second.job_id == f"{base}-0"
    assert client.get_table(f"{dataset}.t").num_rows == 1


def test_a_failed_query_in_the_emulator_is_raised_with_its_reason(
    emulators: LocalCloud, dataset: str
) -> None:
    cloud, client = emulators.cloud, emulators.cloud.bigquery()
    base = job_id("query", dataset)

    def begin(name: str) -> Any:
        return client.query("SELECT ERROR('oh')", job_id=name, location="US", job_retry=None)

    for number in range(2):
        with pytest.raises(exceptions.BadRequest, match="oh") as raised:
            run_job(client, base, "US", cloud, begin)
        assert raised.value.errors[0]["reason"] == "invalidQuery"
        # The second call is like a second attempt, which uses the next number.
        assert client.get_job(f"{base}-{number}").error_result is not None
        with pytest.raises(exceptions.NotFound):
            client.get_job(f"{base}-{number + 1}")
