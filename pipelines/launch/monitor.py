"""Follow a job to its end: poll it, show its progress, and summarize how it ended.

Exit codes: 0 if the job did what it should; 1 if it failed or left too many dead letters; 3 if it
was cancelled; 4 if it can no longer be monitored; 130 after Ctrl-C. After 4 and 130, the job may
still be running.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson
from google.api_core import exceptions

from cloud.endpoints import Endpoints
from cloud.errors import cause_of, explain, is_passing, lacks_role, short_reason, translate_errors
from common.errors import CredentialsError, JobError, JobNotMonitored, MillraceError
from common.terminal import Progress, print_error
from pipelines.dataflow.facts import JobFacts, label_value
from pipelines.dataflow.jobs import VIEWER, Job, Jobs, job_errors
from pipelines.dataflow.links import attach_command, console_link
from pipelines.dataflow.messages import reasons
from pipelines.dataflow.metrics import Look, batch_line, elapsed, stream_line

DONE, FAILED, CANCELLED, LOST = 0, 1, 3, 4
# What is known about a job that is no longer followed.
NOT_STOPPED = "not stopped and may still be running"
# The longest pause between two attempts, in seconds, while Dataflow does not respond.
_LONGEST_WAIT = 300.0
# Dataflow may report a message this long after it happened.
_LATE = timedelta(minutes=5)


@dataclass(kw_only=True)
class Monitor:
    """A monitor of the jobs of one project.

    Attributes:
        poll_seconds: Seconds between two looks at a job.
        json_summary: Whether to print the report of a batch run as JSON.
        expected: The facts that the job of our own template should carry, as far as its flags state
            them. They are used if the job carries none. None for all other jobs.
        sleep: Waits for some seconds.
        now: Returns the current time.
    """

    jobs: Jobs
    screen: Progress = field(default_factory=Progress)
    poll_seconds: float = 30.0
    json_summary: bool = False
    expected: JobFacts | None = None
    sleep: Callable[[float], None] = time.sleep
    now: Callable[[], datetime] = lambda: datetime.now(UTC)
    _sees_backlog: bool = field(default=True, init=False)
    _workers: int | None = field(default=None, init=False)
    _reported_until: datetime | None = field(default=None, init=False)

    def follow(self, job: Job) -> int:
        """Follow a job until it has ended or can no longer be monitored; return the exit code.

        Args:
            job: The job, with its facts if it carries them already.

        Raises:
            JobError: The job failed, or its report cannot be read.
            TooManyDeadLetters: The run left more dead letters than its flags allow.
            KeyboardInterrupt: Ctrl-C was pressed; the message says how to follow the job again.
        """
        again = f"follow it again with `{self._attach(job, job.ident)}`"
        # If a batch job had ended before, a new run with the same id may be using its staging
        # folder now.
        may_clean_up = job.streaming or not job.has_ended
        try:
            job = self._to_end(job)
        except KeyboardInterrupt:
            self.screen.clear()
            raise KeyboardInterrupt(f"job {job.name} was {NOT_STOPPED}; {again}") from None
        except MillraceError as error:
            self.screen.clear()
            lost = JobNotMonitored(f"{error}; the job was {NOT_STOPPED}; {again}")
            print_error(lost)
            return LOST
        self.screen.clear()
        if may_clean_up and job.state not in ("done", "updated"):
            # An account that may not clean up still learns how the job ended.
            with suppress(MillraceError, OSError), translate_errors(JobError, "cannot clean up"):
                self._clean_up(job)
        return self._end_stream(job) if job.streaming else self._end_batch(job)

    def _to_end(self, job: Job) -> Job:
        """Poll the job until it has ended; raise JobError if it can no longer be monitored."""
        before: Look | None = None
        faults = 0
        while True:
            with job_errors(f"job {job.name} can no longer be monitored", VIEWER):
                try:
                    job = self._refreshed(job)
                    look = self._look(job)
                except Exception as error:
                    if not is_passing(cause_of(error)):
                        raise
                    faults += 1
                    self._wait_to_retry(error, faults)
                    continue
            faults = 0
            self._show(job, look, before)
            before = look
            if job.has_ended:
                return job
            self.sleep(self.poll_seconds)

    def _refreshed(self, job: Job) -> Job:
        """Return the job as it is now; a template's job has its facts after the launcher ended."""
        found = self.jobs.get(job.ident, job.region, whole=job.facts is None)
        return replace(found, facts=found.facts or job.facts, steps={})

    def _look(self, job: Job) -> Look:
        metrics = self.jobs.metrics(job)
        if not job.has_ended:
            now = self.now()
            self._workers = self.jobs.messages(job, self._reported_until).workers or self._workers
            self._reported_until = now - _LATE
        backlog = self._backlog(job) if job.streaming and not job.has_ended else {}
        workers = None if job.has_ended else self._workers
        return Look(
            state=job.state,
            seconds=job.seconds(self.now()),
            metrics=metrics,
            workers=workers,
            backlog=backlog,
        )

    def _backlog(self, job: Job) -> dict[str, float]:
        """Return the backlog; empty if this account may not read it from Cloud Monitoring."""
        if not self._sees_backlog:
            return {}
        try:
            return self.jobs.backlog(job)
        except ModuleNotFoundError:
            self._without_backlog(
                "google-api-python-client is not installed: run pip install 'millrace[resources]'"
            )
        except exceptions.Forbidden as error:
            reason = explain(error)
            if lacks_role(error):
                advice = "grant the account the role roles/monitoring.viewer"
                reason = f"{reason.partition('; ')[0]}; {advice}"
            self._without_backlog(reason)
        except CredentialsError as error:
            self._without_backlog(str(error))
        except (exceptions.GoogleAPIError, OSError) as error:
            # The job matters more, and an error that is transient may be gone at the next look.
            if not (isinstance(error, OSError) or is_passing(cause_of(error))):
                self._without_backlog(explain(error))
        return {}

    def _without_backlog(self, reason: str) -> None:
        self.screen.say(f"the backlog is not shown: {reason}")
        self._sees_backlog = False

    def _wait_to_retry(self, error: Exception, faults: int) -> None:
        seconds = min(max(self.poll_seconds, 1.0) * 2 ** min(faults, 10), _LONGEST_WAIT)
        reason = short_reason(error)
        self.screen.say(f"Dataflow does not respond ({reason}); retrying in {seconds:,.0f} s")
        self.sleep(seconds)

    def _show(self, job: Job, look: Look, before: Look | None) -> None:
        line = (stream_line if job.streaming else batch_line)(look, before)
        key = (stream_line if job.streaming else batch_line)(replace(look, seconds=0.0), None)
        self.screen.now(line, key)

    def _end_batch(self, job: Job) -> int:
        took = job.seconds(self.now())
        if job.state == "done":
            # A job that was never seen running has taken no time, and would have no rate.
            return self._report(job, max(took, 1.0))
        if job.state == "failed":
            raise JobError(self._failure(job))
        self.screen.say(f"{job.state} after {elapsed(took)}: nothing was written")
        return CANCELLED

    def _end_stream(self, job: Job) -> int:
        took = elapsed(job.seconds(self.now()))
        if job.state == "updated":
            # Dataflow may not report the id of the new job at once; the job has the same name.
            follow = self._attach(job, job.replaced_by or job.name)
            by = f": replaced by {job.replaced_by}" if job.replaced_by else ""
            self.screen.say(f"updated after {took}{by}; follow the new job: {follow}")
            return DONE
        if job.state == "failed":
            raise JobError(self._failure(job))
        if job.state == "cancelled":
            self.screen.say(
                f"cancelled after {took}: messages that the job had not acknowledged are still in "
                "the subscription; those that it had acknowledged and not written (with files, "
                "--deduplicate_seconds or --max_batch_wait_ms) are lost: drain a job to keep them"
            )
            return CANCELLED
        self.screen.say(
            f"{job.state} after {took}: the results of all messages that the job had received are "
            "written"
        )
        return DONE

    def _failure(self, job: Job) -> str:
        with job_errors(f"job {job.name} failed, and its messages cannot be read", VIEWER):
            messages = self.jobs.messages(job)
        lines = reasons(messages.errors, messages.news) or [
            f"it reported no reason: see {console_link(job.project, job.region, job.ident)}"
        ]
        took = elapsed(job.seconds(self.now()))
        return "\n  ".join([f"job {job.name} failed after {took}:", *lines])

    def _report(self, job: Job, took: float) -> int:
        """Print the report of a batch job that is done; raise an error if it is beyond a limit."""
        from pipelines.batch.limits import check_limits
        from pipelines.batch.report_text import summarise

        facts = job.facts or self.expected
        if facts is None or (facts.report is None and self.expected is None):
            self.screen.say(
                f"done after {elapsed(took)}; this job was not started by Millrace, so there is no "
                "report"
            )
            return DONE
        report = self._read_report(job, facts)
        if self.json_summary:
            print(orjson.dumps(report).decode(), flush=True)
        else:
            self.screen.say(summarise(report, took))
        check_limits(report, facts.max_dead_letter_share, facts.min_rows)
        return DONE

    def _read_report(self, job: Job, facts: JobFacts) -> dict[str, Any]:
        """Return the report of a batch job that is done; raise JobError if there is none."""
        from pipelines.cloud_access import open_storage
        from transforms.files.sink.listing import read_report

        if facts.report is None:
            raise JobError(
                f"job {job.name} is done, but does not say where its report is: see "
                f"{console_link(job.project, job.region, job.ident)}, and pass --run_id next time"
            )
        open_storage(self._endpoints, needed=facts.report.startswith("gs://"))
        try:
            report = read_report(facts.report)
        except MillraceError as error:
            raise JobError(
                f"job {job.name} is done, but its report cannot be read: {error}"
            ) from error
        if job.facts is None and datetime.fromisoformat(report["finished_at"]) < job.created:
            raise JobError(
                f"job {job.name} is done, but {facts.report} is the report of an earlier run: see "
                f"the job's messages at {console_link(job.project, job.region, job.ident)}"
            )
        return report

    def _clean_up(self, job: Job) -> None:
        """Remove a batch run's staged files, and the label of the subscription of a stream."""
        facts = job.facts
        if facts is not None and facts.staging:
            from pipelines.cloud_access import open_storage
            from pipelines.dataflow.start import remove_staged

            open_storage(self._endpoints, needed=facts.staging[0].startswith("gs://"))
            remove_staged(facts)
        if facts is not None and facts.subscription is not None:
            from pipelines.stream.subscription import release

            reader = label_value(f"{facts.pipeline}-{facts.run_id}")
            release(facts.subscription, reader, self.jobs.cloud)

    def _attach(self, job: Job, ident: str) -> str:
        return attach_command(job.project, job.region, ident, self._endpoints)

    @property
    def _endpoints(self) -> Endpoints:
        return self.jobs.cloud.endpoints
