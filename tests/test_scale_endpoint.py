"""A scale test of an endpoint on a real socket, from the plan to the result."""

import json
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from command_line import assert_one_line_error, words
from faulty_endpoint import (
    HANG,
    HTML,
    NAME,
    RESET,
    SERVER_ERROR,
    THROTTLED,
    TOO_FEW,
    FaultyEndpoint,
    Request,
    at_rate,
    faulty_endpoint,
    in_turn,
    latency,
    refusal,
)
from libraries import need_library
from serving_client import running

from scale_tests import __main__ as scale_command
from scale_tests.endpoints import endpoint
from scale_tests.phases import LEAD_SECONDS

PLAN = """\
target = "endpoint"
seed = 3
send_to = "{url}"

[objective]
latency_ms = 60_000

[sender]
processes = 2
late_ms = 60_000
cpu = 1

[rows]
instance_format = "list"

[result]
source = "answer"
wait_seconds = 10
"""
CONSTANT = """
[[phases]]
kind = "constant"
rate = {rate}
seconds = 2
"""


@pytest.fixture(autouse=True)
def _libraries() -> None:
    for library in ("hdrh", "scipy", "vl_convert"):
        need_library(library)


class Stand:
    """A plan, and the result of its test."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.plan = folder / "plan.toml"

    def run(self, url: str, phases: str, *changes: tuple[str, str], **flags: str) -> int:
        text = PLAN.format(url=url) + phases
        for old, new in changes:
            assert old in text
            text = text.replace(old, new)
        self.plan.write_text(text)
        given = {"plan": self.plan, "output": self.folder / "out", **flags}
        return scale_command.main(["endpoint", *words(given)])

    def result(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.folder / "out" / "result.json").read_text())
        return found

    def level(self) -> dict[str, Any]:
        (level,) = self.result()["levels"]
        assert sum(level["accounts"].values()) == 2 * level["accounts"]["planned"]
        return dict(level)


@pytest.fixture
def stand(tmp_path: Path) -> Stand:
    return Stand(tmp_path)


def one_score(rows: list[Any]) -> list[Any]:
    return [{"anomaly_score": 1.0} for _ in rows]


@pytest.fixture
def steady() -> Iterator[FaultyEndpoint]:
    with faulty_endpoint(one_score) as endpoint:
        yield endpoint


def test_the_accounts_add_up_to_what_the_server_counted(stand: Stand, example: Path) -> None:
    phases = CONSTANT.format(rate=100) + "rows = [1, 20]\n"
    phases += '[[phases]]\nkind = "burst"\nmessages = 150\nrows = 3\n'
    with running(example / "model") as server:
        assert stand.run(server.server.url, phases, ("[rows]", "[rows]\nfaulty = 0.1")) == 0
        good, bad = (
            server.client.metric(f'millrace_requests_total{{status="{status}"}}')
            for status in (200, 400)
        )
        rows = server.client.metric("millrace_rows_total")
    levels = stand.result()["levels"]
    assert [(one["name"], one["rows"]) for one in levels] == [
        ("1 constant, 1 row", 1),
        ("1 constant, 20 rows", 20),
        ("2 burst", 3),
    ]
    scored = [one["accounts"]["scored"] for one in levels]
    # The test starts with a request of one row.
    assert (sum(scored) + 1, sum(one["errors"]["400"] for one in levels)) == (good, bad)
    assert sum(n * one["rows"] for n, one in zip(scored, levels, strict=True)) + 1 == rows
    for one in levels:
        accounts = one["accounts"]
        assert accounts["planned"] == accounts["scored"] + accounts["error"] > 0
        assert one["wrong_results"] == 0
        names = [part["name"] for part in one["parts"]]
        assert names == ["sender", "predict", "server", "network"]
    assert levels[2]["verdict"] == "insufficient data"
    findings = {one["name"]: one for one in stand.result()["findings"]}
    assert "best request" in findings
    assert (stand.folder / "out" / "report.html").exists()


def test_each_failure_is_counted_by_its_kind(stand: Stand) -> None:
    kinds = (THROTTLED, SERVER_ERROR, RESET, TOO_FEW)
    chance = at_rate(0.5, 1, kinds)
    with faulty_endpoint(one_score, lambda r: chance(r) if r.number else None) as endpoint:
        assert stand.run(endpoint.endpoint_url, CONSTANT.format(rate=200)) == 0
        level, faults, sent = stand.level(), endpoint.faults, len(endpoint.requests) - 1
    assert level["errors"] == {
        "429": faults["429"],
        "500": faults["500"],
        "connection": faults["reset"],
        "bad answer": faults["too few"],
    }
    accounts = level["accounts"]
    assert accounts["planned"] == sent
    assert accounts["lost"] == faults["reset"]
    assert accounts["error"] == sum(faults.values()) - faults["reset"]
    assert level["verdict"] == "not sustained"
    assert f"{faults['reset']} requests were lost" in level["reasons"]


def test_answers_that_come_too_late_or_never_are_late_or_lost(stand: Stand) -> None:
    def faults(request: Request) -> Any:
        return {1: latency(1.5), 2: HANG}.get(request.number)

    with faulty_endpoint(one_score, faults) as endpoint:
        code = stand.run(
            endpoint.predict_url,
            CONSTANT.format(rate=50),
            ("wait_seconds = 10", "wait_seconds = 1"),
        )
    accounts = stand.level()["accounts"]
    assert (code, accounts["late"], accounts["lost"]) == (0, 1, 1)
    assert stand.level()["errors"] == {"timeout": 1}


def test_requests_beyond_the_limit_in_flight_are_unsent_and_the_level_is_invalid(
    stand: Stand,
) -> None:
    slow = latency(0.5)
    with faulty_endpoint(one_score, lambda _: slow) as endpoint:
        limit = ("processes = 2", "processes = 2\nin_flight = 11")
        assert stand.run(endpoint.predict_url, CONSTANT.format(rate=100), limit) == 0
        assert 6 <= endpoint.most_in_flight <= 11
        sent = len(endpoint.requests) - 1
    level = stand.level()
    assert level["accounts"]["planned"] - level["accounts"]["unsent"] == sent
    assert level["verdict"] == "invalid"
    assert level["reasons"][0].endswith("were not sent, because 11 waited for answers")


def test_an_endpoint_of_vertex_ai_is_found_by_its_name(
    stand: Stand, steady: FaultyEndpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIPLATFORM_EMULATOR_HOST", steady.url)
    assert stand.run(NAME, CONSTANT.format(rate=20)) == 0
    level = stand.level()
    assert level["accounts"]["scored"] == len(steady.requests) - 1
    # 20 rows are no evidence of a percentile, but of the accounts.
    assert level["latencies"][3]["reason"] == "insufficient data"


def closed_port() -> str:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{one.getsockname()[1]}/predict"


@pytest.mark.parametrize(
    ("status", "parts"),
    [
        (401, ("401 Unauthorized", "no token was sent")),
        (403, ("403 Forbidden", "roles/aiplatform.user")),
        (404, ("404 Not Found", "check --endpoint_url")),
        (400, ("refuses a row: 400", "check rows.source")),
        (503, ("does not answer: 503", "a server is ready there")),
    ],
)
def test_a_refusal_is_one_line_before_anything_is_sent(
    stand: Stand, status: int, parts: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    refused = refusal(status)
    with faulty_endpoint(one_score, lambda _: refused) as endpoint:
        code = stand.run(endpoint.predict_url, CONSTANT.format(rate=20))
        assert len(endpoint.requests) == 1
    assert_one_line_error((code, *capsys.readouterr()), 1, *parts)


def test_an_address_without_an_endpoint_is_one_line(
    stand: Stand, capsys: pytest.CaptureFixture[str]
) -> None:
    code = stand.run(closed_port(), CONSTANT.format(rate=20))
    assert_one_line_error((code, *capsys.readouterr()), 1, "does not answer: ", "Connect call")
    with faulty_endpoint(one_score, in_turn(HTML)) as page:
        code = stand.run("", CONSTANT.format(rate=20), endpoint_url=page.predict_url)
    assert_one_line_error((code, *capsys.readouterr()), 1, "an answer with one prediction")


@pytest.mark.parametrize(
    ("change", "code", "parts"),
    [
        (("send_to = ", "# "), 2, ("send_to is missing", "--endpoint_url")),
        (('"http://x"', '"my-endpoint"'), 2, ("--endpoint_project",)),
        (("rate = 20", "rate = 0"), 2, ("line 22: phases[0].rate: expected",)),
        (("rate = 20", "rate = 20\nrows = [0]"), 2, ("line 23: phases[0].rows[0]: expected",)),
        (("seconds = 2", 'seconds = "2"'), 2, ("line 23: phases[0].seconds: expected a number",)),
        (
            ('"constant"\nrate = 20\nseconds = 2', '"burst"\nmessages = 1_001'),
            2,
            ("line 22: phases[0].messages: expected at most sender.in_flight (1,000)",),
        ),
        (('"endpoint"', '"stream"'), 2, ("target 'stream' needs 'topic'",)),
    ],
)
def test_a_plan_with_an_error_is_refused_before_anything_is_sent(
    stand: Stand,
    change: tuple[str, str],
    code: int,
    parts: tuple[str, ...],
    capsys: pytest.CaptureFixture[str],
) -> None:
    found = stand.run("http://x", CONSTANT.format(rate=20), change)
    assert_one_line_error((found, *capsys.readouterr()), code, *parts)


def test_the_plan_of_a_stream_is_refused(stand: Stand, capsys: pytest.CaptureFixture[str]) -> None:
    path = Path(__file__).parents[1] / "plans" / "stream_local.toml"
    code = scale_command.main(["endpoint", "--plan", str(path)])
    assert_one_line_error((code, *capsys.readouterr()), 2, "expected target 'endpoint'")


def test_an_interrupted_test_keeps_the_levels_that_it_measured(
    stand: Stand,
    steady: FaultyEndpoint,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    show: Callable[[str], None] = scale_command.show

    def interrupt(text: str) -> None:
        show(text)
        raise KeyboardInterrupt

    monkeypatch.setattr(scale_command, "show", interrupt)
    assert stand.run(steady.predict_url, CONSTANT.format(rate=20) * 2) == 130
    result = stand.result()
    assert [level["name"] for level in result["levels"]] == ["1 constant"]
    assert result["interrupted"]
    assert "interrupted: the result is partial" in capsys.readouterr().out
    assert "This page is partial" in (stand.folder / "out" / "report.html").read_text()


def test_an_interrupted_level_is_in_the_result_and_marked(
    stand: Stand, steady: FaultyEndpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: Any) -> None:
        time.sleep(LEAD_SECONDS + 1)
        raise KeyboardInterrupt

    monkeypatch.setattr(endpoint, "send_all", interrupt)
    assert stand.run(steady.predict_url, CONSTANT.format(rate=20)) == 130
    (level,) = stand.result()["levels"]
    accounts = level["accounts"]
    assert (level["interrupted"], level["verdict"]) == (True, "incomplete")
    assert accounts["planned"] == accounts["pending"] + accounts["unsent"]
    assert accounts["pending"] > 0 < accounts["unsent"]
