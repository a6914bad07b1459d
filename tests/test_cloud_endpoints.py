"""Addresses of services: where they are set, which are plain, and the resulting URLs."""

from dataclasses import fields

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloud.endpoints import VARIABLES, Endpoints, grpc_target, is_plain, rest_url
from common.errors import UsageError

HOSTS = st.sampled_from(["localhost", "127.0.0.1", "[::1]", "bq.corp.example", "x.googleapis.com"])


def test_without_flags_and_variables_all_services_have_googles_hosts() -> None:
    assert Endpoints.resolve((), {}) == Endpoints(bigquery=None, bigquerystorage=None, storage=None)


def test_every_service_has_a_variable() -> None:
    assert set(VARIABLES) == {field.name for field in fields(Endpoints)}


@pytest.mark.parametrize("service", VARIABLES)
def test_a_variable_sets_an_address_and_a_flag_overrides_it(service: str) -> None:
    environment = {VARIABLES[service]: "http://localhost:1", "OTHER": "http://localhost:3"}
    found = Endpoints.resolve((), environment)
    assert found == Endpoints(**{service: "http://localhost:1"})
    found = Endpoints.resolve([f"{service}=localhost:2"], environment)
    assert found == Endpoints(**{service: "localhost:2"})
    # The flag can name a private endpoint of Google even if the variable names an emulator.
    found = Endpoints.resolve([f"{service}=https://{service}.googleapis.com"], environment)
    assert not is_plain(getattr(found, service))


def test_a_flag_for_one_service_keeps_the_variables_of_others() -> None:
    environment = {variable: f"localhost:{i}" for i, variable in enumerate(VARIABLES.values())}
    found = Endpoints.resolve(["storage=localhost:99"], environment)
    assert found.storage == "localhost:99"
    assert (found.bigquery, found.bigquerystorage) == ("localhost:0", "localhost:1")


def test_an_empty_variable_counts_as_unset() -> None:
    # Otherwise the clients would call Google's own host without credentials.
    assert Endpoints.resolve((), dict.fromkeys(VARIABLES.values(), "")) == Endpoints()


@pytest.mark.parametrize(
    ("pair", "parts"),
    [
        (
            "bigqueri=localhost:1",
            ("bigqueri=localhost:1", "did you mean 'bigquery'", "SERVICE=ADDRESS"),
        ),
        ("localhost:9050", ("'localhost:9050'", "bigquery, bigquerystorage, storage")),
        ("bigquery=", ("'bigquery='", "SERVICE=ADDRESS")),
        ("bigquery=ftp://localhost", ("'ftp://localhost'", "HOST:PORT")),
        ("bigquery=http://localhost:1/v2/x", ("'http://localhost:1/v2/x'", "HOST:PORT")),
        ("bigquery=http://localhost:port", ("'http://localhost:port'", "HOST:PORT")),
        ("bigquery=user@localhost", ("without user and password", "Application Default")),
    ],
)
def test_a_wrong_pair_is_reported_with_the_expected_form(pair: str, parts: tuple[str, ...]) -> None:
    with pytest.raises(UsageError, match=r"^--api_endpoints: ") as raised:
        Endpoints.resolve([pair], {})
    for part in parts:
        assert part in str(raised.value)


def test_a_wrong_address_in_a_variable_is_reported_with_the_variable() -> None:
    with pytest.raises(UsageError, match=r"^BIGQUERY_EMULATOR_HOST: 'local host'"):
        Endpoints.resolve((), {"BIGQUERY_EMULATOR_HOST": "local host"})


@pytest.mark.parametrize(
    ("address", "plain", "url", "target"),
    [
        ("http://localhost:9050", True, "http://localhost:9050", "localhost:9050"),
        ("http://localhost:9050/", True, "http://localhost:9050", "localhost:9050"),
        ("HTTP://Localhost:9050", True, "http://localhost:9050", "localhost:9050"),
        ("localhost:9050", True, "http://localhost:9050", "localhost:9050"),
        ("127.0.0.1", True, "http://127.0.0.1", "127.0.0.1:80"),
        ("[::1]:9050", True, "http://[::1]:9050", "[::1]:9050"),
        (
            "http://bigquery.googleapis.com",
            True,
            "http://bigquery.googleapis.com",
            "bigquery.googleapis.com:80",
        ),
        (
            "bigquery.googleapis.com",
            False,
            "https://bigquery.googleapis.com",
            "bigquery.googleapis.com:443",
        ),
        (
            "bigquery.googleapis.com:443",
            False,
            "https://bigquery.googleapis.com:443",
            "bigquery.googleapis.com:443",
        ),
        # A host of Private Service Connect, as in Google's documentation.
        (
            "bigquery-x.p.googleapis.com",
            False,
            "https://bigquery-x.p.googleapis.com",
            "bigquery-x.p.googleapis.com:443",
        ),
        ("https://bq.corp.example", False, "https://bq.corp.example", "bq.corp.example:443"),
        (
            "HTTPS://bq.corp.example:8443",
            False,
            "https://bq.corp.example:8443",
            "bq.corp.example:8443",
        ),
        # Anyone can register a name with the same ending.
        ("evilgoogleapis.com", True, "http://evilgoogleapis.com", "evilgoogleapis.com:80"),
        (
            "googleapis.com.evil.example",
            True,
            "http://googleapis.com.evil.example",
            "googleapis.com.evil.example:80",
        ),
    ],
)
def test_an_address_is_plain_unless_it_is_https_or_a_host_of_google(
    address: str, plain: bool, url: str, target: str
) -> None:
    assert Endpoints.resolve([f"bigquery={address}"], {}).bigquery == address
    assert is_plain(address) == plain
    assert rest_url(address) == url
    assert grpc_target(address) == target


def test_googles_own_host_is_not_plain() -> None:
    assert not is_plain(None)


@given(st.sampled_from(["", "http://", "https://"]), HOSTS, st.none() | st.integers(1, 65535))
def test_the_scheme_of_a_url_agrees_with_whether_credentials_are_sent(
    scheme: str, host: str, port: int | None
) -> None:
    address = f"{scheme}{host}" + (f":{port}" if port else "")
    url = rest_url(address)
    assert url.startswith("http://") == is_plain(address)
    assert (rest_url(url), is_plain(url)) == (url, is_plain(address))
    default = 80 if is_plain(address) else 443
    assert grpc_target(address) == f"{host}:{port or default}"
