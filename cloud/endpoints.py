"""The addresses of Google's services: Google's own hosts, private endpoints, or emulators."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

from common.addresses import NO_USER, shown
from common.errors import UsageError, suggest

# Google's own tools and clients read some of these variables. Google has no variable for BigQuery's
# Storage APIs, for Vertex AI and for the services after it: those names follow the same pattern.
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
    """The address of each service, None for Google's own host.

    The fields have the names of Google's hosts. All services use REST, unless noted otherwise.

    Attributes:
        bigquery: BigQuery's tables and jobs.
        bigquerystorage: BigQuery's Storage Read and Write APIs, over gRPC.
        storage: Cloud Storage.
        pubsub: Pub/Sub, over gRPC.
        aiplatform: Vertex AI.
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
        """Return the endpoints that pairs and emulator variables name; pairs take precedence.

        Args:
            pairs: Texts of the form `SERVICE=ADDRESS`, from `--api_endpoints`.
            environment: The environment variables.

        Raises:
            UsageError: A pair or a variable is invalid.
        """
        # Shells unset a variable for one command by making it empty.
        found = {name: environment.get(variable) or None for name, variable in VARIABLES.items()}
        places = dict(VARIABLES)
        known = [field.name for field in fields(cls)]
        # A password with a comma is split into two pairs, so the message shows none of the pairs.
        if any("@" in pair for pair in pairs):
            raise UsageError(f"--api_endpoints: {NO_USER}")
        for pair in pairs:
            name, _, address = pair.partition("=")
            if name not in known or not address:
                raise UsageError(
                    f"--api_endpoints: {pair!r}: expected SERVICE=ADDRESS, for example "
                    f"bigquery=http://localhost:9050, with one of the services {', '.join(known)}"
                    f"{suggest(name, known)}"
                )
            found[name], places[name] = address, "--api_endpoints"
        for name, given in found.items():
            if given is not None:
                _parts(given, places[name])
        return cls(**found)


def is_plain(address: str | None) -> bool:
    """Return whether requests to an address are not encrypted, as to an emulator.

    Credentials are never sent to such an address.
    """
    if address is None:
        return False
    scheme, host, _ = _parts(address)
    return scheme == "http" or (not scheme and not f".{host}".endswith(".googleapis.com"))


def rest_url(address: str) -> str:
    """Return the URL of a REST service at an address with or without a scheme."""
    _, host, port = _parts(address)
    return f"{'http' if is_plain(address) else 'https'}://{host}{port and f':{port}'}"


def grpc_target(address: str) -> str:
    """Return `host:port` for gRPC, from an address with or without a scheme."""
    _, host, port = _parts(address)
    return f"{host}:{port or (80 if is_plain(address) else 443)}"


def _parts(address: str, place: str = "address") -> tuple[str, str, str]:
    """Split an address into scheme, host and port, which are empty if they are missing.

    Raises:
        UsageError: The address is invalid. The message starts with `place`.
    """
    found = _ADDRESS.fullmatch(address)
    if "@" in address:
        raise UsageError(f"{place}: {NO_USER}")
    if found is None:
        raise UsageError(
            f"{place}: {shown(address)!r}: expected HOST, HOST:PORT or a URL such as "
            "http://localhost:9050"
        )
    return (found["scheme"] or "").lower(), found["host"].lower(), found["port"] or ""
