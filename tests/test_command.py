"""The command around a graph: errors found in a traceback, the summary, the progress line."""

import io
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest

import pipelines.replay.command
from common.errors import (
    BalanceError,
    InputError,
    MillraceError,
    TooFewRows,
    TooManyDeadLetters,
    one_line,
    suggest,
)
from pipelines.batch.limits import check_limits
from pipelines.batch.progress import progress_line
from pipelines.batch.report_text import summarise
from pipelines.command import Command, as_known_error, main
from pipelines.launch.command import choose_command

TRACEBACK = """Traceback (most recent call last):
  File "x.py", line 1, in process
    raise ValueError("inner")
ValueError: inner

During handling of the above exception, another exception occurred:

Traceback (most recent call last):
  File "y.py", line 2, in process
common.errors.InputError: a.parquet lacks column 'V1' [while running 'Read-ptransform-12']
"""


def test_a_project_error_is_found_in_the_traceback_of_a_runner() -> None:
    found = as_known_error(RuntimeError(TRACEBACK))
    assert type(found) is InputError
    assert str(found) == "a.parquet lacks column 'V1'"


def test_a_project_error_is_found_among_the_causes() -> None:
    outer = RuntimeError("bundle failed")
    outer.__cause__ = BalanceError("rows are missing")
    assert str(as_known_error(outer)) == "rows are missing"


def test_any_other_error_is_reported_in_one_line() -> None:
    reported = as_known_error(KeyError("a\nb"))
    assert type(reported) is MillraceError
    assert "\n" not in str(reported)
    assert "KeyError" in str(reported)
    assert "--debug" in str(reported)


@pytest.fixture
def calls() -> Iterator[Callable[[str], grpc.RpcError]]:
    """A function that calls a method of a gRPC server, and returns the error."""

    def fail(_: Any, context: grpc.ServicerContext) -> None:
        context.abort(grpc.StatusCode.INTERNAL, "the index is\nout of range")

    def fail_late(_: Any, context: grpc.ServicerContext) -> Iterator[bytes]:
        yield b"one"
        fail(_, context)

    class Methods(grpc.GenericRpcHandler):  # type: ignore[misc]
        def service(self, details: grpc.HandlerCallDetails) -> Any:
            if details.method == "/x/stream":
                return grpc.unary_stream_rpc_method_handler(fail_late)
            return grpc.unary_unary_rpc_method_handler(fail)

    server = grpc.server(ThreadPoolExecutor(1), [Methods()])
    port = server.add_insecure_port("localhost:0")
    server.start()

    def call(name: str) -> grpc.RpcError:
        with grpc.insecure_channel(f"localhost:{port}") as channel:
            start = channel.unary_stream if name == "stream" else channel.unary_unary
            with pytest.raises(grpc.RpcError) as raised:
                list(start(f"/x/{name}")(b""))
            return raised.value

    yield call
    server.stop(None)


@pytest.mark.parametrize("name", ["one", "stream"])
def test_an_error_of_grpc_is_reported_by_its_code_and_details(
    calls: Callable[[str], grpc.RpcError], name: str
) -> None:
    error = calls(name)
    short = "gRPC error INTERNAL: the index is out of range"
    assert one_line(error) == short
    # The error of a worker arrives as the text of its traceback.
    of_worker = RuntimeError("".join(traceback.format_exception(error)))
    for reported in (as_known_error(error), as_known_error(of_worker)):
        assert short in " ".join(str(reported).split())
    assert str(as_known_error(error)).startswith("unexpected gRPC error INTERNAL: ")


def test_an_error_without_a_message_is_reported_by_its_class() -> None:
    reported = str(as_known_error(grpc.FutureTimeoutError()))
    assert reported == "unexpected FutureTimeoutError; run again with --debug to see the traceback"


@pytest.mark.parametrize(
    ("name", "before"),
    [("batch_local", "written"), ("stream_local", "started"), ("launch stream_local", "started")],
)
def test_an_interrupt_before_the_start_says_what_has_not_happened(
    name: str, before: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(pipelines.replay.command, "run_for_test", interrupted, raising=False)
    run = "pipelines.replay.command:run_for_test"
    assert main(Command(name=name, about="", options=(), run=run), []) == 130
    assert capsys.readouterr().err == f"\ninterrupted: nothing was {before}\n"


def test_a_second_interrupt_does_not_hide_what_the_first_one_says_about_the_run(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(_: Any) -> None:
        try:
            raise KeyboardInterrupt("the job is cancelled")
        finally:
            # While the runner is stopped.
            raise KeyboardInterrupt

    monkeypatch.setattr(pipelines.replay.command, "run_for_test", interrupted, raising=False)
    run = "pipelines.replay.command:run_for_test"
    assert main(Command(name="stream_local", about="", options=(), run=run), []) == 130
    assert capsys.readouterr().err == "\ninterrupted: the job is cancelled\n"


@pytest.mark.parametrize(("argv", "takes"), [(["batch_local", "--help"], True), ([], False)])
def test_the_help_mentions_beams_flags_if_the_command_takes_them(
    argv: list[str], takes: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    command, rest = choose_command(argv)
    assert command is not None
    with pytest.raises(SystemExit):
        main(command, rest)
    assert ("All flags of Apache Beam" in capsys.readouterr().out) == takes


@pytest.mark.parametrize(
    ("name", "known", "expected"),
    [
        ("Amout", ["Amount", "Time"], " (did you mean 'Amount'?)"),
        ("amount", ["Amount"], " (did you mean 'Amount'?)"),
        ("x", ["Amount"], ""),
    ],
)
def test_nearest_names(name: str, known: list[str], expected: str) -> None:
    assert suggest(name, known) == expected


def report() -> dict[str, object]:
    return {
        "run_id": "r1",
        "pipeline": "batch_local",
        "model": {"name": "m", "version": "2", "digest": "ab" * 32},
        "score_output": "probability",
        "rows_in": 1000,
        "rows_scored": 990,
        "rows_dead_lettered": 10,
        "dead_letters": [
            {"stage": "validate", "reason": "null", "column": f"V{i}", "rows": i}
            for i in range(1, 5)
        ],
        "output": ["out/r1/scores", "p.d.scores"],
        "dead_letter_output": ["out/r1/dead_letters", "p.d.letters"],
        "report": "out/r1/report.json",
    }


def test_the_summary_states_counts_score_rate_and_outputs() -> None:
    text = summarise(report(), 2.0)
    for part in (
        "probability",
        "1,000",
        "990",
        "1.00% of the rows",
        "500 rows/s",
        "ab" * 32,
        "output        out/r1/scores",
        "output        p.d.scores",
        "dead letters  out/r1/dead_letters",
        "dead letters  p.d.letters",
    ):
        assert part in text
    assert "10  null at validate  (V4 4, V3 3, V2 2, V1 1)" in text


def test_a_clean_run_mentions_no_dead_letter_folder() -> None:
    clean = report() | {"rows_scored": 1000, "rows_dead_lettered": 0, "dead_letters": []}
    text = summarise(clean, 1.0)
    assert "out/r1/dead_letters" not in text
    assert "p.d.letters" not in text


def test_a_run_without_a_score_says_how_to_choose_one() -> None:
    assert "none: neither --score_output nor" in summarise(report() | {"score_output": None}, 1.0)


@pytest.mark.parametrize(("dead", "limit"), [(10, 0.0), (10, 0.009), (1000, 1.0)])
def test_more_dead_letters_than_allowed_fail_the_run(dead: int, limit: float) -> None:
    message = (
        rf"{dead:,} of 1,000 rows \(.* the largest group is reason null, stage validate, column V1 "
        r"\(.*\): see out/r1/dead_letters or p.d.letters"
    )
    with pytest.raises(TooManyDeadLetters, match=message):
        check_limits(report() | {"rows_dead_lettered": dead}, limit)


@pytest.mark.parametrize(("dead", "limit"), [(0, 0.0), (10, 0.01), (10, 1.0), (999, 1.0)])
def test_as_many_dead_letters_as_allowed_do_not_fail_the_run(dead: int, limit: float) -> None:
    check_limits(report() | {"rows_dead_lettered": dead}, limit)


def test_a_run_that_read_fewer_rows_than_expected_fails() -> None:
    read = report() | {"input": ["rows/", "more/"]}
    check_limits(read, 1.0, min_rows=1000)
    message = r"1,000 rows were read from rows/, more/, fewer than --min_rows 1,001; .* --run_id r1"
    with pytest.raises(TooFewRows, match=message):
        check_limits(read, 1.0, min_rows=1001)


def test_a_run_that_read_no_rows_says_so() -> None:
    assert "no rows were read: check the source" in summarise(report() | {"rows_in": 0}, 1.0)
    assert "no rows were read" not in summarise(report(), 1.0)


def test_the_progress_line_is_removed_at_the_end() -> None:
    stream = io.StringIO()
    with progress_line(stream, every=0.001):
        started = time.monotonic()
        while "rows/s" not in stream.getvalue() and time.monotonic() - started < 10:
            pass
    assert "0 rows  0 rows/s" in stream.getvalue()
    assert stream.getvalue().endswith("\r\x1b[K")
