"""Credentials in addresses are refused before a run starts, and are never shown."""

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloud.endpoints import VARIABLES, Endpoints
from cloud.vertex import EndpointAddress
from common.addresses import SafeFormatter, host_of, shown, without_secrets
from common.errors import InputError, MillraceError, UsageError, one_line
from model_handlers.read_package import read_package
from pipelines.beam_args import beam_options
from pipelines.options import (
    CloudOptions,
    EndpointOptions,
    ModelOptions,
    SinkOptions,
    SourceOptions,
)
from pipelines.options.flag import parse_flags
from resources.package import open_package
from serving.deploy.flags import parse_deploy
from serving.settings import parse_settings as parse_server

ROOT = Path(__file__).parents[1]
KINDS = (CloudOptions, EndpointOptions, ModelOptions, SinkOptions, SourceOptions)
SECRET = "QXZJ0987secret"
SIGNED = f"https://storage.googleapis.com/b/m.pt?X-Goog-Signature={SECRET}&X-Goog-Date=2026"
USER = f"https://user:{SECRET}@host.example:8080/predict"
# A password may contain @, / and :. A query may contain anything but a space.
PASSWORDS = st.text("ab@:/%.-", max_size=8).map(lambda t: f"{t}{SECRET}{t}")


@given(PASSWORDS, st.sampled_from(["http", "https", "gs", "ftp"]))
def test_no_text_shows_a_password(password: str, scheme: str) -> None:
    address = f"{scheme}://user:{password}@host.example/a/b"
    for text in (without_secrets(f"model {address} cannot be read"), shown(address)):
        assert SECRET not in text
    assert SECRET not in str(InputError(f"{address}: no"))
    assert SECRET not in one_line(OSError(f"{address}: no"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("model https://h/m.pt?a=1&b=2 cannot be read", "model https://h/m.pt?... cannot be read"),
        ("https://h/m#access_token=1", "https://h/m?..."),
        ("https://h/m?...secret: no", "https://h/m?... no"),
        ("exceeded with url: /p?key=1 (Caused by x)", "exceeded with url: /p?... (Caused by x)"),
        ("'https://u:p@h/x', then", "'https://...@h/x', then"),
        ("gs://b/o?sig=1", "gs://b/o?..."),
        *(
            (same, same)
            for same in (
                "gs://b/rows-?.csv",
                "https://h/m?...: expected a path",
                "https://h/m?...",
                "gs://b/day=?/hour=3",
                "http://localhost:9050/x@y",
                "a@b.example",
                "eu-docker.pkg.dev/p/i:1@sha256:ab",
                "https://console.cloud.google.com/dataflow/jobs/r/j?project=p",
                "is it there? a=b",
            )
        ),
    ],
)
def test_an_address_is_shown_without_its_secrets_and_other_text_stays(
    text: str, expected: str
) -> None:
    assert without_secrets(text) == expected
    assert str(MillraceError(text)) == expected
    assert without_secrets(expected) == expected


def test_only_the_host_of_an_address_is_shown() -> None:
    assert host_of(USER) == "host.example:8080"
    assert host_of("http://[::1]:80?x=1") == "[::1]:80"


def refusal(*argv: str) -> str:
    with pytest.raises(UsageError) as raised:
        parse_flags("batch_vertex", "about", KINDS, argv)
    return str(raised.value)


@pytest.mark.parametrize("flag", ["endpoint_url", "model", "input_files", "output_files"])
@pytest.mark.parametrize(
    "address",
    [USER, f"https://{SECRET}@h/predict", f"http://u:pa/{SECRET}@h/x", f"http://u:p@{SECRET}@h"],
)
def test_user_information_is_refused_by_its_flag(flag: str, address: str) -> None:
    message = refusal(f"--{flag}", address)
    assert message.startswith(f"--{flag}: expected an address without user and password")
    assert "Application Default Credentials" in message
    assert SECRET not in message
    assert "user" not in message.replace("user and password", "")


@pytest.mark.parametrize("address", [f"user:{SECRET}@h:80", f"{SECRET}@h"])
def test_user_information_without_a_scheme_is_refused(address: str) -> None:
    message = refusal("--endpoint_url", address)
    assert SECRET not in message
    assert "without user and password" in message


@pytest.mark.parametrize("flag", ["model", "input_files", "output_files"])
@pytest.mark.parametrize("address", [SIGNED, f"gs://b/m.pt?X-Goog-Signature={SECRET}"])
def test_a_signed_url_is_refused_as_a_path(flag: str, address: str) -> None:
    message = refusal(f"--{flag}", address)
    assert "not a web address or a signed URL" in message
    assert SECRET not in message


@pytest.mark.parametrize(
    "pair",
    [
        f"bigquery=http://user:{SECRET}@h:1",
        f"bigquery=user:{SECRET}@h",
        f"bigqueri=u:{SECRET}@h",
        f"bigquery=http://u:a,{SECRET}@h",
    ],
)
def test_user_information_is_refused_in_addresses_of_services(pair: str) -> None:
    with pytest.raises(
        UsageError, match=r"^--api_endpoints: expected an address without"
    ) as raised:
        Endpoints.resolve(pair.split(","), {})
    assert SECRET not in str(raised.value)


@pytest.mark.parametrize("variable", VARIABLES.values())
def test_user_information_is_refused_in_environment_variables(variable: str) -> None:
    with pytest.raises(UsageError, match=f"^{variable}: expected an address without") as raised:
        Endpoints.resolve((), {variable: f"user:{SECRET}@h:1"})
    assert SECRET not in str(raised.value)


def test_flags_of_beam_are_checked() -> None:
    for args in (["--dataflow_endpoint", USER], [f"--temp_location={USER}"]):
        with pytest.raises(UsageError, match=f"^{args[0].split('=')[0]}: .*without user") as raised:
            beam_options(args)
        assert SECRET not in str(raised.value)
    for folder in ("--temp_location", "--staging_location"):
        with pytest.raises(UsageError, match=f"^{folder}: .*signed URL") as raised:
            beam_options([folder, f"gs://b/t?sig={SECRET}"])
        assert SECRET not in str(raised.value)


def test_the_library_refuses_the_same_addresses_as_the_flags(tmp_path: Path) -> None:
    for wrong in (
        lambda: EndpointAddress(url=USER),
        lambda: read_package(USER),
        lambda: read_package(SIGNED),
        lambda: open_package(SIGNED),
        lambda: parse_server(["--model_path", SIGNED], {}),
        lambda: parse_server([], {"AIP_STORAGE_URI": USER}),
        lambda: parse_deploy(["--model", SIGNED, "--staging", "gs://b/f"]),
    ):
        with pytest.raises(UsageError) as raised:
            wrong()
        assert SECRET not in str(raised.value)


def test_the_query_of_an_endpoint_is_used_but_not_shown() -> None:
    address = EndpointAddress(url=f"http://localhost:1/predict?key={SECRET}")
    assert address.label == "http://localhost:1/predict?..."
    client = address.connect()
    try:
        assert client.url.endswith(f"?key={SECRET}")
        assert SECRET not in client.name + client._flags
    finally:
        client.close()


def test_a_log_shows_no_secret() -> None:
    record = logging.LogRecord("n", logging.WARNING, "f", 1, "retry %s", (SIGNED,), None)
    try:
        raise OSError(USER)
    except OSError:
        record.exc_info = sys.exc_info()
    text = SafeFormatter(logging.BASIC_FORMAT).format(record)
    assert "retry https://storage.googleapis.com/b/m.pt?..." in text
    assert "Traceback" in text
    assert SECRET not in text


@pytest.mark.parametrize(
    "argv",
    [
        ["pipelines.batch_local", "--model", SIGNED, "--debug"],
        ["pipelines.batch_vertex", "--model", "m", "--endpoint_url", USER],
        ["pipelines.batch_local", "--model", "m", "--dataflow_endpoint", USER],
        ["pipelines.batch_local", "--batch_rows", USER],
        ["serving", "--model_path", SIGNED],
        ["resources", "plan", "--project", "a-project", "--model", SIGNED],
    ],
)
def test_a_command_prints_no_secret(tmp_path: Path, argv: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", *argv],
        check=False,
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT), "BIGQUERY_EMULATOR_HOST": "localhost:1"},
    )
    assert done.returncode in (1, 2)
    assert done.stderr
    assert SECRET not in done.stdout + done.stderr
