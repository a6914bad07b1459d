"""The serving command: its flags, its exit codes, and how its process stops."""

import asyncio
import gc
import re
import signal
import socket
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from serving_client import half_a_request, process, read_answer, until_ready
from waiting import wait_until

from common.errors import UsageError
from serving import server
from serving.__main__ import main
from serving.service import State
from serving.settings import MAX_REQUEST_BYTES, Settings, parse_settings

ROW = [0.1] * 30


def test_variables_of_vertex_ai_set_the_defaults_and_flags_override_them() -> None:
    variables = {
        "AIP_STORAGE_URI": "gs://bucket/model",
        "AIP_HTTP_PORT": "9000",
        "AIP_HEALTH_ROUTE": "/alive",
        "AIP_PREDICT_ROUTE": "/score",
    }
    settings = parse_settings([], variables)
    assert settings == Settings(
        model_path="gs://bucket/model", port=9000, health_route="/alive", predict_route="/score"
    )
    assert parse_settings(["--model_path", "here", "--port", "1"], variables).port == 1
    by_hand = Settings(model_path="here", ends_when_failed=True)
    assert parse_settings(["--model_path", "here"], {}) == by_hand
    assert (
        parse_settings(["--model_path", "here"], {}).max_request_bytes
        == MAX_REQUEST_BYTES
        == 1_500_000
    )


@pytest.mark.parametrize(
    ("argv", "environment", "message"),
    [
        ([], {}, "--model_path is missing"),
        (["--model_path", "m", "--port", "x"], {}, "from 0 to 65535, got 'x'"),
        (["--model_path", "m"], {"AIP_HTTP_PORT": "70000"}, "from 0 to 65535, got '70000'"),
        (["--model_path", "m"], {"AIP_HEALTH_ROUTE": "health"}, "starts with / and has no braces"),
        (["--model_path", "m", "--predict_route", "/{x}"], {}, "no braces, got '/{x}'"),
        (["--model_path", "m", "--max_batch_rows", "0"], {}, "whole number of at least 1, got '0'"),
        (
            ["--model_path", "m", "--max_batch_wait_ms", "-1"],
            {},
            "number of at least 0, got '-1'",
        ),
        (["--model_path", "m", "--precision", "int4"], {}, "got 'int4'"),
        (["--model_path", "m", "--device", "gpu"], {}, "cpu, cuda or cuda:N, got 'gpu'"),
        (["--model_path", "m", "--prot", "1"], {}, "unknown arguments --prot"),
    ],
)
def test_wrong_flags_are_reported_in_one_line(
    argv: list[str], environment: Mapping[str, str], message: str
) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        parse_settings(argv, environment)


def test_an_unknown_command_is_reported_with_the_nearest_one(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["runn", "--port", "1"]) == 2
    assert capsys.readouterr().err.startswith("error: unknown command 'runn' (did you mean 'run'?)")


def test_after_sigterm_a_request_in_flight_finishes_and_others_are_refused(example: Path) -> None:
    with process("--model_path", str(example / "model")) as (running, client):
        until_ready(client)
        connection, rest = half_a_request(client, [ROW])
        running.send_signal(signal.SIGTERM)
        wait_until(lambda: client.get("/health").status == 503)
        assert client.get("/health").json == {"status": "draining"}
        assert client.predict([ROW]).status == 503
        connection.sendall(rest)
        answer = read_answer(connection)
        assert (answer.status, answer.headers["connection"]) == (200, "close")
        assert len(answer.json["predictions"]) == 1
        assert running.wait(60) == 0
        connection.close()


def test_in_a_container_a_server_without_a_model_runs_and_reports_the_reason(
    tmp_path: Path,
) -> None:
    container = {"AIP_STORAGE_URI": str(tmp_path)}
    with process(environment=container) as (running, client):
        wait_until(lambda: client.get("/health").status == 500)
        assert "expected a folder with model.json" in client.get("/health").json["reason"]
        running.send_signal(signal.SIGTERM)
        assert running.wait(60) == 1


@pytest.mark.parametrize(
    ("flags", "name"),
    [
        (["--model_path", "build/nope"], "build/nope"),
        (["--outputs", "nope"], "nope"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_a_server_started_by_hand_exits_with_one_line_if_it_cannot_serve(
    example: Path, caplog: pytest.LogCaptureFixture, flags: list[str], name: str
) -> None:
    model = ["--model_path", str(example / "model")]
    assert main(["run", "--port", "0", *model, *flags]) == 1
    (error,) = (record for record in caplog.records if record.levelname == "ERROR")
    assert name in error.getMessage()
    assert "\n" not in error.getMessage()


def test_a_port_in_use_is_reported_with_advice_before_anything_is_loaded(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = str(other.getsockname()[1])
        assert main(["--model_path", "nowhere", "--port", port]) == 1
    said = capsys.readouterr().err
    expected = f"error: port {port} of 127.0.0.1 is in use: stop the process that uses it, or"
    assert said.startswith(expected)
    assert said.count("\n") == 1


def test_an_address_of_another_machine_is_reported(capsys: pytest.CaptureFixture[str]) -> None:
    for host in ("192.0.2.1", "nowhere.invalid", "2001:db8::1"):
        assert main(["--model_path", "nowhere", "--port", "0", "--host", host]) == 1
        said = capsys.readouterr().err
        assert said.startswith(f"error: cannot listen on port 0 of {host}: ")
        assert "; check --host and --port [see docs/operate/server.md" in said


def test_the_collector_skips_the_model_before_the_server_is_ready(
    example: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[State] = []

    def run(started: server.Server, **_: Any) -> None:
        service = started.service
        settle = service.on_loaded

        def on_loaded() -> None:
            seen.append(service.state)
            settle()

        service.on_loaded = on_loaded
        asyncio.run(service.load())
        seen.append(service.state)
        service.close()

    monkeypatch.setattr(server.Server, "run", run)
    monkeypatch.setattr(sys, "setswitchinterval", lambda _: None)
    gc.unfreeze()
    try:
        with socket.socket() as listener:
            server.serve(Settings(model_path=str(example / "model"), port=0), listener)
        assert seen == [State.LOADING, State.READY]
        # torch and Beam alone are more.
        assert gc.get_freeze_count() > 100_000
    finally:
        gc.freeze()
