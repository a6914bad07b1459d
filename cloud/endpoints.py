"""Where Google's services are: Google's own hosts, private endpoints, or emulators."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

from common.addresses import NO_USER, shown
from common.errors import UsageError, suggest

# The variables that Google's own tools and clients read; Google has none for the Storage APIs
# of BigQuery and for those from Vertex AI on, so these names follow the others.
VARIABLES = {
    "bigquery": "BIGQUERY_EMULATOR_HOST",
    "bigquerystorage": "BIGQUERY_STORAGE_EMULATOR_HOST",
    "storage": "STORAGE_EMULATOR_HOST",
    "pubsub": "PUBSUB_EMULATOR_HOST",
    "aiplatform": "AIPLATFORM_EMULATOR_HOST",
    "dataflow": "DATAFLOW_EMULATOR_HOST",
    "serviceusage": "SERVICEUSAGE_EMULATOR_HOST",
    "iam": "IAM_EMULATOR_HOST",
    "cloudresourcemanager": "CLOUDRESOURCEMANAGER_EMULATOR_HOST",
    "monitoring": "MONITORING_EMULATOR_HOST",
}
_ADDRESS = re.compile(
    r"(?:(?P<scheme>https?)://)?(?P<host>[\w.-]+|\[[0-9a-f:.]+\])(?::(?P<port>\d{1,5}))?/?",
    re.IGNORECASE | re.ASCII,
)


@dataclass(frozen=True, kw_only=True)
class Endpoints:
    """One address a service, None for Google's own host.

    bigquery: REST; bigquerystorage: gRPC of the Storage Read and Write APIs;
    storage: REST of Cloud Storage; pubsub: gRPC; aiplatform: REST of Vertex AI; so are all
    others. Fields are named as Google's hosts are.
    """

    bigquery: str | None = None
    bigquerystorage: str | None = None
    storage: str | None = None
    pubsub: str | None = None
    aiplatform: str | None = None
    dataflow: str | None = None
    serviceusage: str | None = None
    iam: str | None = None
    cloudresourcemanager: str | None = None
    monitoring: str | None = None

    @classmethod
    def resolve(
        cls, pairs: Sequence[str] = (), environment: Mapping[str, str] = os.environ
    ) -> Endpoints:
        """`SERVICE=ADDRESS` pairs, then the emulator variables -> Endpoints. Raises UsageError."""
        # An empty variable is how a shell unsets one for a command.
        found = {name: environment.get(variable) or None for name, variable in VARIABLES.items()}
        places = dict(VARIABLES)
        known = [field.name for field in fields(cls)]
        # A comma in a password makes two pairs of it, so none of them is shown.
        if any("@" in pair for pair in pairs):
            raise UsageError(f"--api_endpoints: {NO_USER}")
        for pair in pairs:
            name, _, address = pair.partition("=")
            if name not in known or not address:
                raise UsageError(
                    f"--api_endpoints: {pair!r}: expected SERVICE=ADDRESS with one of "
                    f"{', '.join(known)}{suggest(name, known)}, as in bigquery=http://localhost:9050"
                )
            found[name], places[name] = address, "--api_endpoints"
        for name, given in found.items():
            if given is not None:
                _parts(given, places[name])
        return cls(**found)


def is_plain(address: str | None) -> bool:
    """Whether an address is spoken to without encryption, as emulators are.

    Credentials are never sent there.
    """
    if address is None:
        return False
    scheme, host, _ = _parts(address)
    return scheme == "http" or (not scheme and not f".{host}".endswith(".googleapis.com"))


def rest_url(address: str) -> str:
    """An address with or without a scheme -> the URL of a REST service."""
    _, host, port = _parts(address)
    return f"{'http' if is_plain(address) else 'https'}://{host}{port and f':{port}'}"


def grpc_target(address: str) -> str:
    """An address with or without a scheme -> host:port for gRPC."""
    _, host, port = _parts(address)
    return f"{host}:{port or (80 if is_plain(address) else 443)}"


def _parts(address: str, place: str = "address") -> tuple[str, str, str]:
    """An address -> scheme, host and port, empty where it has none. Raises UsageError."""
    found = _ADDRESS.fullmatch(address)
    if "@" in address:
        raise UsageError(f"{place}: {NO_USER}")
    if found is None:
        raise UsageError(
            f"{place}: {shown(address)!r}: expected HOST, HOST:PORT or a URL of these, as in "
            "http://localhost:9050"
        )
    return (found["scheme"] or "").lower(), found["host"].lower(), found["port"] or ""
