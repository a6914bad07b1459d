"""What a job of Dataflow is made of, looked at without one: its facts, flags, graph and JSON."""

import pytest

from pipelines.job_facts import JobFacts, attach_command, console_link, label_value, read_facts

FACTS = JobFacts(
    "batch_local",
    "r+1",
    "Fraud 2.0",
    "ab" * 32,
    "gs://b/o/r+1/report.json",
    ("gs://b/o/.staging/r+1",),
    0.5,
)


@pytest.mark.parametrize("facts", [FACTS, JobFacts("stream_local", "r", "m 1", "0" * 64)])
def test_whoever_attaches_reads_the_facts_that_a_job_carries(facts: JobFacts) -> None:
    assert read_facts({"project": "p", **facts.options()}) == facts


def test_a_foreign_job_has_no_facts() -> None:
    assert read_facts({"project": "p", "runner": "DataflowRunner"}) is None


def test_labels_hold_what_google_allows() -> None:
    assert FACTS.labels() == {
        "millrace_pipeline": "batch_local",
        "millrace_run": "r_1",
        "millrace_model": "fraud_2_0",
        "millrace_digest": "abababababababab",
    }
    assert label_value("x" * 99) == "x" * 63


def test_a_job_is_found_again_by_link_and_by_command() -> None:
    assert console_link("p", "r", "j").endswith("/dataflow/jobs/r/j?project=p")
    assert attach_command("p", "r", "j").endswith(
        "pipelines.launch --attach j --project p --region r"
    )
