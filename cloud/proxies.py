"""The proxies that environment variables name, and which connections bypass them."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import MutableMapping
from urllib.parse import urlsplit

from common.addresses import host_of, shown
from common.errors import EndpointError

_LOOPBACK = ("localhost", "127.0.0.1", "::1")


def spare_loopback(environment: MutableMapping[str, str] = os.environ) -> None:
    """Let connections to this machine bypass the proxies of the environment.

    A Beam pipeline in this process connects its steps by gRPC on the loopback interface, and would
    wait for a minute if gRPC sent these connections through a proxy. gRPC reads only the variables
    in lower case. Python reads both, and prefers lower case.

    Args:
        environment: The environment variables, which are changed.
    """
    bypassed = environment.get("no_proxy") or environment.get("NO_PROXY") or ""
    by_grpc = environment.get("no_grpc_proxy") or bypassed
    environment["no_grpc_proxy"] = _with_loopback(by_grpc)
    # To Python, a single * means that every host bypasses the proxy.
    environment["no_proxy"] = bypassed if bypassed.strip() == "*" else _with_loopback(bypassed)


def _with_loopback(hosts: str) -> str:
    given = [host for host in map(str.strip, hosts.split(",")) if host]
    return ",".join(dict.fromkeys((*given, *_LOOPBACK)))


def find_proxy(url: str) -> str | None:
    """Return the URL of the proxy through which requests to a URL go, or None without a proxy.

    Args:
        url: The URL, of HTTP or HTTPS.

    Raises:
        EndpointError: The proxy is not one for HTTP, or its address is invalid.
    """
    # It imports ssl and more, for which `--help` should not wait.
    from urllib.request import getproxies, proxy_bypass

    parts = urlsplit(url)
    host = parts.hostname or ""
    if _is_loopback(host) or proxy_bypass(host):
        return None
    found, variable = getproxies(), f"{parts.scheme}_proxy"
    proxy = found.get(parts.scheme)
    if proxy is None:
        proxy, variable = found.get("all"), "all_proxy"
    if proxy is None:
        return None
    # curl and Python's requests accept a proxy without a scheme too.
    proxy = proxy if "://" in proxy else f"http://{proxy}"
    if not _is_usable(proxy):
        raise EndpointError(
            f"cannot use the proxy {shown(proxy)} for {host_of(url)}: expected an HTTP proxy such "
            f"as http://HOST:PORT in the environment variable {variable}; set it to such a proxy, "
            f"or add {host} to no_proxy"
        )
    return proxy


def _is_loopback(host: str) -> bool:
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _is_usable(proxy: str) -> bool:
    try:
        parts = urlsplit(proxy)
        return (
            parts.scheme.lower() in ("http", "https") and bool(parts.hostname) and parts.port != 0
        )
    except ValueError:
        return False
