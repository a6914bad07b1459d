"""What is being retried is printed, with its reason and the time left."""

import functools
import io
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from command_line import RunCommand
from google.api_core import exceptions
from waiting import wait_until

from cloud.errors import current_call, retry, translate_errors
from common import retry_notices
from common.errors import InputError
from common.retry_notices import Retried, print_retries, retry_lines
from pipelines.batch_vertex import COMMAND


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry_notices, "EVERY_SECONDS", 0.05)


@pytest.fixture
def dead() -> Iterator[str]:
    """The address of a server that does not exist."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{bound.getsockname()[1]}"


def later(seconds: float) -> list[str]:
    return retry_lines(time.monotonic() + seconds)


def test_a_call_is_listed_from_its_first_failure_to_its_end() -> None:
    with Retried("endpoint e") as call:
        assert later(30) == []
        call.failed("503 Service Unavailable", 120)
        call.failed("connection refused", 120)
        assert later(30) == ["endpoint e: connection refused; retrying for 30 s, giving up in 90 s"]
        assert later(200) == [
            "endpoint e: connection refused; retrying for 200 s, giving up in 0 s"
        ]
        # Most calls succeed at the second attempt.
        assert later(1) == []
    assert later(30) == []


def test_calls_that_do_the_same_are_one_line() -> None:
    with Retried("endpoint e") as one, Retried("endpoint e") as two, Retried("table t") as other:
        one.failed("early", 60)
        two.failed("late", 120)
        other.failed("gone", 10)
        assert sorted(later(20)) == [
            "endpoint e: early; retrying for 20 s, giving up in 40 s",
            "table t: gone; retrying for 20 s, giving up in 0 s",
        ]
        one.over()
        assert "endpoint e: late; retrying for 20 s, giving up in 100 s" in later(20)


def test_a_call_to_google_is_named_by_what_it_is_for(often: None) -> None:
    seen = io.StringIO()
    attempts = 0

    def call() -> str:
        nonlocal attempts
        attempts += 1
        if attempts < 3:
            raise exceptions.ServiceUnavailable("try later; this text is advice")
        if attempts == 3:
            wait_until(lambda: "retrying" in seen.getvalue())
        return "done"

    policy = retry(30.0).with_delay(initial=0.001, maximum=0.001)
    with print_retries(seen), translate_errors(InputError, "table p.d.t cannot be read"):
        assert policy(call)() == "done"
    first = seen.getvalue().splitlines()[0]
    assert first.startswith("table p.d.t cannot be read: try later; retrying for 0 s, giving up in")
    assert later(30) == []


def test_the_name_of_a_call_is_that_of_the_innermost_block() -> None:
    outside = current_call()
    with translate_errors(InputError, "outer"):
        with translate_errors(InputError, "inner"):
            assert current_call() == "inner"
        assert current_call() == "outer"
        with pytest.raises(InputError), translate_errors(InputError, "failing"):
            raise exceptions.NotFound("no")
        assert current_call() == "outer"
    assert current_call() == outside


def test_a_retry_that_gives_up_is_not_listed_any_more() -> None:
    def call() -> None:
        raise exceptions.ServiceUnavailable("no")

    with pytest.raises(exceptions.RetryError):
        retry(0.01)(functools.partial(call))()
    assert later(30) == []


def test_a_process_without_a_command_prints_what_it_retries(
    often: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Such as a worker process of Beam.
    seen = io.StringIO()
    monkeypatch.setattr(sys, "stderr", seen)
    wait_until(lambda: not retry_notices._printers)
    for what in ("endpoint e", "table t"):
        with Retried(what) as call:
            call.failed("503 Service Unavailable", 60)
            call.failed("connection refused", 60)
            wait_until(lambda what=what: what in seen.getvalue())  # type: ignore[misc]
        # The thread ends with the last call, and starts again with the next one.
        wait_until(lambda: not retry_notices._printers)
    lines = seen.getvalue().splitlines()
    assert {line.split(":")[0] for line in lines} == {"endpoint e", "table t"}
    assert all(": connection refused; retrying for" in line for line in lines)


def test_a_command_is_the_only_one_that_prints(
    often: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    other, seen = io.StringIO(), io.StringIO()
    monkeypatch.setattr(sys, "stderr", other)
    wait_until(lambda: not retry_notices._printers)
    with print_retries(seen), Retried("endpoint e") as call:
        call.failed("gone", 60)
        assert retry_notices._printers == 1
        wait_until(lambda: "endpoint e" in seen.getvalue())
    assert retry_notices._printers == 0
    assert other.getvalue() == ""


@pytest.mark.slow
def test_a_dead_endpoint_is_named_while_a_run_retries(
    often: None, dead: str, example: Path, tmp_path: Path, run_command: RunCommand
) -> None:
    flags = {
        "input_files": example / "transactions.parquet",
        "model": example / "model",
        "output_files": tmp_path,
        "endpoint_url": f"http://{dead}/predict",
        "retry_seconds": 1,
    }
    code, _, err = run_command(COMMAND, flags)
    assert code == 1
    *lines, last = err.splitlines()
    assert last.startswith("error: a request to endpoint")
    assert lines
    for line in lines:
        assert line.startswith("endpoint ")
        assert f"{dead}: Connect" in line
        assert "; retrying for " in line
        assert line.endswith("s")
