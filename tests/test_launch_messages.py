"""Real messages of failed jobs, shortened to a few lines."""

import pytest

from pipelines.dataflow.messages import reasons

WORKER = """Error message from worker: generic::unknown: Traceback (most recent call last):
  File "apache_beam/runners/common.py", line 1501, in process
    raise
common.errors.DigestMismatch: model gs://b/m: has another digest

During handling of the above exception, another exception occurred:

Traceback (most recent call last):
  File "sdk_worker.py", line 313, in _execute
RuntimeError: common.errors.DigestMismatch: x [while running 'ScoreRows/Predict']
"""
WORKFLOW = (
    "Workflow failed. Causes: S08:Read+Predict failed., The job failed because a work item has "
    "failed 4 times. Look in previous log entries for the cause of each one of the 4 failures. "
    "For more information, see https://cloud.google.com/dataflow/docs/guides/common-errors."
)


def test_a_traceback_of_a_worker_becomes_the_line_of_its_millrace_error() -> None:
    assert reasons([WORKER, WORKER, WORKFLOW]) == ["model gs://b/m: has another digest"]


def test_a_foreign_traceback_becomes_its_last_line() -> None:
    text = "Traceback (most recent call last):\n  File 'x', line 1\nZeroDivisionError: by zero\n"
    assert reasons([text, WORKFLOW]) == ["ZeroDivisionError: by zero"]


def test_a_message_without_a_reason_is_kept_if_there_is_no_other() -> None:
    assert "a work item has failed 4 times" in reasons([WORKFLOW])[-1]
    assert reasons([]) == []


@pytest.mark.parametrize(
    ("text", "kept", "advice"),
    [
        (
            "Startup of the worker pool in zone us-central1-f failed to bring up any of "
            "the desired 2 workers. QUOTA_EXCEEDED: Instance failed: Quota 'CPUS' exceeded.",
            "Quota 'CPUS' exceeded",
            "raise the quota in the console",
        ),
        (
            "(1b2c3d4e5f60718a): Workflow failed. Causes: (aa00aa00bb00bb00): ZONE_RESOURCE_POOL_"
            "EXHAUSTED: The zone does not have enough resources available.",
            "ZONE_RESOURCE_POOL_EXHAUSTED",
            "try another --machine_type, --worker_zone or --region",
        ),
        (
            "Error syncing pod: failed to pull and unpack image us-docker.pkg.dev/p/r/i: not found",
            "failed to pull and unpack image",
            "check --sdk_container_image",
        ),
        (
            "failed to install required packages: failed to install requirements: exit status 1",
            "failed to install requirements",
            "the workers must reach PyPI and download.pytorch.org",
        ),
        (
            "Error message from worker: Traceback (most recent call last):\n  File 'x', line 1\n"
            "ModuleNotFoundError: No module named 'transforms'\n",
            "No module named 'transforms'",
            "build their image with `make image`",
        ),
        (
            "Workflow failed. Causes: Subnetwork 'x' not found.",
            "Subnetwork 'x' not found",
            "check --subnetwork",
        ),
        (
            "The new job is not compatible with 2026-1: the Compatibility Check failed.",
            "not compatible",
            "--transform_name_mapping",
        ),
    ],
)
def test_known_reasons_come_with_advice(text: str, kept: str, advice: str) -> None:
    first, last = reasons([text])
    assert kept in first
    assert not first.startswith("(")
    assert "Workflow failed" not in first
    assert advice in last


def test_a_reason_that_only_resembles_a_known_one_gets_no_advice() -> None:
    assert reasons(["cannot update table p.d.t: it is gone"]) == [
        "cannot update table p.d.t: it is gone"
    ]


def test_the_log_of_a_failed_launcher_is_named() -> None:
    log = "gs://b/staging/template_launches/2026-11-21_00_00_00-1/console_logs"
    lines = reasons(
        ["Error occurred in the launcher container: Template launch failed. See console logs."],
        ["Worker pool started.", f"Console log from launcher will be available at {log}."],
    )
    assert lines == [
        "Error occurred in the launcher container: Template launch failed. See console logs.",
        f"read the launcher's log: gcloud storage cat {log}",
    ]


def test_only_the_last_reasons_are_kept_and_long_ones_are_shortened() -> None:
    lines = reasons([f"reason {i}" for i in range(9)])
    assert lines == ["reason 6", "reason 7", "reason 8"]
    (long,) = reasons(["x" * 5_000])
    assert len(long) < 500
