"""Finds the URL for predictions of a Vertex AI endpoint or a compatible server."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlsplit

from cloud.clients import credentials
from cloud.endpoint_client import EndpointClient
from cloud.endpoint_responses import refusal_advice, status_text
from cloud.endpoints import rest_url
from cloud.regions import region_fault
from common.addresses import address_fault, host_of, shown
from common.errors import CredentialsError, EndpointError, UsageError, one_line, suggest

_NAME = re.compile(r"projects/(?P<project>[^/]+)/locations/(?P<location>[^/]+)/endpoints/[^/]+")
# Tokens are sent only to these hosts.
_GOOGLE = (".googleapis.com", ".vertexai.goog")
_LOOKUP_SECONDS = 30.0
# When a job starts, many workers look up the endpoint at the same time.
_LOOKUP_RETRIES, _LOOKUP_BACKOFF, _RETRIED = 4, 0.5, (429, 500, 502, 503, 504)
_LOOKUP_ADVICE = {
    401: "log in again, or set the worker's service account",
    403: "grant the account the role roles/aiplatform.user in the endpoint's project",
    404: "check the name, --endpoint_project and --endpoint_location",
}


@dataclass(frozen=True, kw_only=True)
class EndpointAddress:
    """The endpoint that a user names. It travels to workers, which look up its URL.

    Attributes:
        endpoint: The full name of the endpoint, its id or its display name.
        url: The URL of a server to use instead of Google's: the private address of an endpoint, or
            any compatible server.
        project: The project of the endpoint, needed unless `endpoint` is a full name.
        location: The region of the endpoint, needed unless `endpoint` is a full name.
        service: The address of the Vertex AI API, Google's own by default.

    Raises:
        UsageError: The values are invalid or incomplete.
    """

    endpoint: str | None = None
    url: str | None = None
    project: str | None = None
    location: str | None = None
    service: str | None = None

    def __post_init__(self) -> None:
        if self.endpoint is None and self.url is None:
            raise UsageError("expected --endpoint, --endpoint_url, or both")
        if self.url is not None and (fault := address_fault(self.url)):
            raise UsageError(f"--endpoint_url: {fault}")
        if self.url is not None and urlsplit(self.url).scheme not in ("http", "https"):
            raise UsageError(
                f"--endpoint_url {shown(self.url)}: expected http://... or https://..."
            )
        if self.endpoint is not None and "/" in self.endpoint and self._full is None:
            raise UsageError(
                f"--endpoint {self.endpoint}: expected projects/PROJECT/locations/LOCATION/"
                "endpoints/ID, an id or a display name"
            )
        if self.location and "-" in self.location and (fault := region_fault(self.location)):
            raise UsageError(f"--endpoint_location: {fault}")
        if self.url is None and self._full is None and not (self.project and self.location):
            raise UsageError(
                f"--endpoint {self.endpoint} is an id or a display name: pass --endpoint_project "
                "and --endpoint_location too, or the full name"
            )

    @property
    def _full(self) -> str | None:
        """The full name of the endpoint, or None if it must be looked up."""
        endpoint = self.endpoint or ""
        if _NAME.fullmatch(endpoint):
            return endpoint
        if endpoint.isdecimal() and self.project and self.location:
            return f"projects/{self.project}/locations/{self.location}/endpoints/{endpoint}"
        return None

    @property
    def label(self) -> str:
        """The name of the endpoint in messages."""
        return self.endpoint or shown(self.url or "")

    def connect(self, **limits: Any) -> EndpointClient:
        """Return a client of the endpoint, and look up its URL first if needed.

        Args:
            **limits: Other arguments of EndpointClient.

        Raises:
            EndpointError: The endpoint does not exist, has no model or cannot be looked up.
            CredentialsError: There are no usable credentials.
        """
        if (url := self._url_given()) is not None:
            limits["flags"] = f"--endpoint_url ({shown(url)} was requested)"
        else:
            url = self._look_up()
        return EndpointClient(url, self.label, token_for(url), **limits)

    def _url_given(self) -> str | None:
        if self.url is None:
            return None
        if re.search(r":(rawP|p)redict$|/predict$|/predictions/[^/]+$", urlsplit(self.url).path):
            return self.url
        base = self.url.rstrip("/")
        if re.search(f"{_NAME.pattern}$", base):
            return f"{base}:predict"
        return f"{base}/v1/{self._full}:predict" if self._full else f"{base}/predict"

    def _look_up(self) -> str:
        """Return the URL for predictions, as Vertex AI describes the endpoint."""
        location = self.location
        if self._full is not None and (found := _NAME.fullmatch(self._full)):
            location = found["location"]
        service = rest_url(self.service or f"{location}-aiplatform.googleapis.com")
        resource = self._resource(service)
        name = resource.get("name") or self._full
        deployed = resource.get("deployedModels") or []
        if not deployed:
            raise EndpointError(f"endpoint {self.label}: no model is deployed there; deploy one")
        private: dict[str, Any] = next(
            (d["privateEndpoints"] for d in deployed if "privateEndpoints" in d), {}
        )
        if "predictHttpUri" in private:
            return str(private["predictHttpUri"])
        if resource.get("privateServiceConnectConfig", {}).get("enablePrivateServiceConnect"):
            raise EndpointError(
                f"endpoint {self.label} can only be reached through Private Service Connect: pass "
                "its address in your network as --endpoint_url"
            )
        if resource.get("dedicatedEndpointEnabled"):
            return f"https://{resource['dedicatedEndpointDns']}/v1/{name}:predict"
        return f"{service}/v1/{name}:predict"

    def _resource(self, service: str) -> dict[str, Any]:
        if self._full is not None:
            return _get(f"{service}/v1/{self._full}", self.label)
        parent = f"{service}/v1/projects/{self.project}/locations/{self.location}/endpoints"
        filtered = quote(f'display_name="{self.endpoint}"')
        found = _get(f"{parent}?filter={filtered}", self.label).get("endpoints", [])
        # Display names are not unique, and a server may ignore the filter.
        same = [one for one in found if one.get("displayName") == self.endpoint]
        if len(same) == 1:
            return dict(same[0])
        if same:
            names = ", ".join(str(one["name"]) for one in same)
            raise EndpointError(
                f"endpoint {self.endpoint}: {len(same)} endpoints have that display name ({names}):"
                " pass the full name of one"
            )
        every = [
            str(one.get("displayName")) for one in _get(parent, self.label).get("endpoints", [])
        ]
        raise EndpointError(
            f"endpoint {self.endpoint}: project {self.project} has no endpoint with that display "
            f"name in {self.location}{suggest(self.endpoint or '', every)}; check the name and the "
            "location"
        )


def token_for(url: str) -> Any:
    """Return the environment's credentials if a URL is one of Google's over https, else None.

    Raises:
        CredentialsError: The environment has no usable credentials.
    """
    parts = urlsplit(url)
    is_googles = parts.scheme == "https" and f".{parts.hostname}".endswith(_GOOGLE)
    return credentials() if is_googles else None


def _session(url: str) -> Any:
    """Return a session with the credentials for a URL, which repeats transient failures."""
    import requests
    from google.auth.transport.requests import AuthorizedSession
    from requests.adapters import HTTPAdapter
    from urllib3.util import Retry

    found = token_for(url)
    session = requests.Session() if found is None else AuthorizedSession(found)
    retries = Retry(
        _LOOKUP_RETRIES,
        backoff_factor=_LOOKUP_BACKOFF,
        backoff_jitter=_LOOKUP_BACKOFF,
        status_forcelist=_RETRIED,
        raise_on_status=False,
        # The server may ask for a wait of any length.
        respect_retry_after_header=False,
    )
    adapter = HTTPAdapter(max_retries=retries)
    session.mount("https://", adapter)
    session.mount("http://", adapter)
    return session


def _get(url: str, label: str) -> dict[str, Any]:
    """Return the resource at a URL of the Vertex AI API.

    Raises:
        EndpointError: The resource cannot be read.
        CredentialsError: The credentials are missing or invalid.
    """
    import requests
    from google.auth.exceptions import GoogleAuthError

    session = _session(url)
    try:
        with session:
            response = session.get(url, timeout=_LOOKUP_SECONDS)
    except GoogleAuthError as error:
        raise CredentialsError(f"endpoint {label}: {one_line(error, 150)}") from error
    except requests.RequestException as error:
        raise EndpointError(
            f"endpoint {label}: {host_of(url)} {_connection_text(error)}"
        ) from error
    status = response.status_code
    if status != 200:
        advice = refusal_advice(response.content) if status == 403 else ""
        advice = advice or _LOOKUP_ADVICE.get(status, "check the service, and run again")
        raise EndpointError(f"endpoint {label}: {status_text(status, response.content)}; {advice}")
    try:
        answer = response.json()
    except requests.JSONDecodeError:
        answer = None
    if not isinstance(answer, dict):
        raise EndpointError(
            f"endpoint {label}: {shown(url)} did not return a JSON object: check --api_endpoints "
            "(aiplatform)"
        )
    return answer


def _connection_text(error: Exception) -> str:
    """Return the cause of an error of requests, without the errors that wrap it."""
    from urllib3.exceptions import NameResolutionError

    reason = getattr(error.args[0] if error.args else error, "reason", error)
    if isinstance(reason, NameResolutionError):
        return "cannot be found (DNS)"
    return f"cannot be reached: {one_line(reason, 150)}"
