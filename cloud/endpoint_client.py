"""A client of prediction endpoints over HTTP, with many requests in flight from one thread.

A process needs only one client. The client handles failures in three ways:

- It retries transient failures, with backoff, a budget, and fewer requests in flight.
- It raises EndpointError or CredentialsError at once for failures that are not transient.
- It raises RequestRefused if the rows of a request may be the cause. The caller
  (model_handlers/endpoints/endpoint.py) then finds these rows.
"""

from __future__ import annotations

import asyncio
import io
import itertools
import threading
import time
import weakref
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn, TypeVar

import aiohttp

from cloud.endpoint_responses import (
    BadAnswer,
    Passing,
    RequestRefused,
    connection_text,
    proxy_text,
    raise_for,
)
from cloud.endpoint_stats import Stats
from cloud.loop_thread import close, serve
from cloud.proxies import find_proxy
from cloud.retry_pacing import AdaptiveLimit, RetryBudget, backoff
from common.errors import CredentialsError, EndpointError, one_line
from common.retry_notices import Retried

T = TypeVar("T")

# With this header a server may name its model, by the SHA-256 digest of the model file.
DIGEST_HEADER = "X-Model-Digest"
# With this header a server says that it prepares raw rows, by the SHA-256 digest of the steps.
PREPARATION_HEADER = "X-Model-Preparation"
# After this many failures of one request, its rows are suspected.
SUSPECT = 4
# aiohttp sends a larger body piece by piece if it is passed as a file object.
_LARGE_BODY = 1 << 20

FLAGS = "--endpoint, --endpoint_project and --endpoint_location"


class EndpointClient:
    """A client that sends requests to one URL. It is closed at the end of the process.

    Args:
        url: The URL of predictions.
        name: The name of the endpoint, for messages.
        credentials: Google credentials, or None to send none.
        concurrency: The most requests in flight.
        timeout_seconds: The timeout of one request.
        retry_seconds: How long transient failures are retried.
        digest: The SHA-256 digest of the model file. A server that names another is rejected.
        preparation: The digest of the steps by which the server has to prepare rows. A server that
            names another is rejected. None if rows are sent prepared.
        flags: The flags that chose the URL, for messages.

    Raises:
        EndpointError: The environment names a proxy that cannot be used.
    """

    def __init__(
        self,
        url: str,
        name: str,
        credentials: Any = None,
        *,
        concurrency: int = 8,
        timeout_seconds: float = 60.0,
        retry_seconds: float = 120.0,
        digest: str | None = None,
        preparation: str | None = None,
        flags: str = FLAGS,
    ) -> None:
        self.url, self.name, self._digest, self._flags = url, name, digest, flags
        self._preparation = preparation
        # The digest of the steps by which the server says that it prepares rows, or None.
        self.served_preparation: str | None = None
        self._credentials = credentials
        self._timeout = aiohttp.ClientTimeout(total=timeout_seconds)
        self._retry_seconds = retry_seconds
        self._limit, self._budget = AdaptiveLimit(concurrency), RetryBudget()
        self._stats, self._lock = Stats(), threading.Lock()
        # The number of requests that are throttled, the time since when, and the throttled seconds
        # before that.
        self._throttled, self._throttled_since, self._throttled_seconds = 0, 0.0, 0.0
        self._sessions: list[aiohttp.ClientSession] = []
        self._refreshing = asyncio.Lock()
        self.last_answered = float("-inf")
        self._proxy = find_proxy(url)
        self._loop = asyncio.new_event_loop()
        thread = threading.Thread(target=serve, args=(self._loop,), name="endpoint", daemon=True)
        self._end = weakref.finalize(self, close, self._loop, self._sessions, thread)
        thread.start()

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine of this client and return its result.

        It may be called from any thread except the client's own.
        """
        if self._loop.is_closed():
            coroutine.close()
            raise RuntimeError(f"the client of endpoint {self.name} was closed")
        future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def take_stats(self) -> Stats:
        """Return what the client has done since the last call, and start to count again."""
        with self._lock:
            taken, self._stats = self._stats, Stats()
            self._note_throttled()
            taken.throttled = int(self._throttled_seconds)
            self._throttled_seconds -= taken.throttled
        return taken

    def close(self) -> None:
        """Close all connections. The end of the client or of the process closes them too."""
        self._end()

    async def post(
        self,
        body: bytes,
        read: Callable[[bytes], T],
        *,
        patience: int = SUSPECT,
        innocent: bool = False,
    ) -> T:
        """Send a request, retry transient failures, and return what `read` makes of the answer.

        Args:
            body: The body of the request, JSON.
            read: Reads the body of a response. It raises BadAnswer if it cannot.
            patience: The number of failures after which the rows are suspected.
            innocent: Whether the rows are known to be good, so that only unusable answers count as
                failures.

        Raises:
            RequestRefused: The rows may be the cause of the failure.
            EndpointError: The endpoint failed for `retry_seconds`, or in a way that is not
                transient.
            CredentialsError: No token could be fetched.
        """
        begin, failures = time.monotonic(), 0
        with Retried(f"endpoint {self.name}") as retried:
            for attempt in itertools.count():
                try:
                    return await self._try(body, read)
                except Passing as error:
                    trouble = error
                failures += trouble.unusable or (trouble.suspicious and not innocent)
                if failures >= patience:
                    raise RequestRefused(0, str(trouble))
                now = time.monotonic()
                left = begin + self._retry_seconds - now
                if left <= 0 or trouble.retry_after > left:
                    asks = f" (Retry-After: {trouble.retry_after:.0f} s)" * (
                        trouble.retry_after > 0
                    )
                    times = "once" if attempt == 0 else f"{attempt + 1} times"
                    raise EndpointError(
                        f"a request to endpoint {self.name} failed {times} in {now - begin:.0f} s; "
                        f"the last error was: {trouble}{asks}; its rows were neither scored nor "
                        "written as dead letters: check the endpoint, and run again"
                    )
                with self._lock:
                    self._stats.retries += 1
                retried.failed(str(trouble), left)
                # The last retry is sent when the time is up, even if other requests still wait for
                # the budget: the endpoint may have recovered by then.
                wait = min(backoff(attempt, trouble.retry_after), left)
                wait += self._budget.spend(now, left - wait)
                with self._throttling(trouble.overloaded):
                    await asyncio.sleep(wait)
        raise AssertionError

    async def _try(self, body: bytes, read: Callable[[bytes], T]) -> T:
        """Wait for a free place in flight, send one request, and return what `read` returns.

        Raises:
            Passing: The failure is transient.
            RequestRefused: The rows may be the cause of the failure.
            EndpointError: The failure is not transient.
            CredentialsError: No token could be fetched.
        """
        with self._throttling(self._limit.is_lowered):
            await self._limit.acquire()
        began = time.monotonic()
        try:
            answer = await self._request(body)
        except Passing as trouble:
            if trouble.overloaded:
                self._limit.pushed_back(began, time.monotonic())
            raise
        finally:
            self._limit.release()
        # Let a waiting request go out first, so that the server works while this answer is read.
        await asyncio.sleep(0)
        try:
            result = read(answer)
        except BadAnswer as error:
            self._count("bad_answer")
            raise Passing(str(error), suspicious=True, unusable=True) from None
        self._limit.answered()
        self._budget.answered()
        self.last_answered = time.monotonic()
        return result

    async def ask(self, body: bytes) -> tuple[aiohttp.ClientResponse, bytes]:
        """Send one request at once, and return the response and its body, for any status.

        There is no limit of requests in flight, and no retry but that of a rejected token.

        Raises:
            Passing: There was no response; it is `overloaded` if the time was up.
            EndpointError: No request to this URL can succeed.
            CredentialsError: No token could be fetched.
        """
        headers = await self._headers()
        token = self._credentials and self._credentials.token
        response, answer = await self._send(body, headers)
        if response.status == 401 and token:
            # The token was revoked. Another request in flight may have noticed first.
            if self._credentials.token == token:
                self._credentials.token = None
            response, answer = await self._send(body, await self._headers())
        return response, answer

    def refuse(self, response: aiohttp.ClientResponse, answer: bytes) -> NoReturn:
        """Raise the error that a response with a status other than 200 means; see `raise_for`."""
        raise_for(
            self.name,
            response.status,
            response.headers,
            answer,
            has_token=self._credentials is not None,
            flags=self._flags,
        )

    async def _request(self, body: bytes) -> bytes:
        """Send one request and return the body of its response. Raises the same errors as _try."""
        response, answer = await self.ask(body)
        prepares_by = response.headers.get(PREPARATION_HEADER)
        if prepares_by is not None:
            self.served_preparation = prepares_by
        if response.status != 200:
            self.refuse(response, answer)
        served = response.headers.get(DIGEST_HEADER)
        if served is not None and self._digest is not None and served != self._digest:
            raise EndpointError(
                f"endpoint {self.name} serves another model: expected digest {self._digest[:12]}, "
                f"got {served[:12]}; deploy the model that --model names, or pass the package of "
                "the deployed model as --model"
            )
        if self._preparation is not None and prepares_by not in (None, self._preparation):
            raise EndpointError(
                f"endpoint {self.name} prepares rows by other steps than the package that --model "
                "names: deploy that package, or use --prepare_at worker"
            )
        return answer

    async def _headers(self) -> dict[str, str]:
        headers = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
        if self._credentials is not None:
            if not self._credentials.valid:
                await self._refresh()
            self._credentials.apply(headers)
        return headers

    async def _send(
        self, body: bytes, headers: dict[str, str]
    ) -> tuple[aiohttp.ClientResponse, bytes]:
        """Send one request and return the response and its body, for any status."""
        if not self._sessions:
            self._sessions.append(
                aiohttp.ClientSession(
                    connector=aiohttp.TCPConnector(limit=0, ttl_dns_cache=300),
                    timeout=self._timeout,
                    # No endpoint needs cookies, and aiohttp would search a cookie jar at each
                    # request.
                    cookie_jar=aiohttp.DummyCookieJar(),
                )
            )
        with self._lock:
            self._stats.requests += 1
            self._stats.bytes_sent += len(body)
            self._stats.most_in_flight = max(self._stats.most_in_flight, self._limit.in_flight)
        began = time.monotonic()
        try:
            async with self._sessions[0].post(
                self.url,
                data=body if len(body) <= _LARGE_BODY else io.BytesIO(body),
                headers=headers,
                proxy=self._proxy,
                allow_redirects=False,
            ) as response:
                answer = await response.read()
        except TimeoutError:
            self._count("timeout")
            reason = f"no answer within {self._timeout.total:g} s (--endpoint_timeout_seconds)"
            raise Passing(reason, suspicious=True, overloaded=True) from None
        except (aiohttp.ClientSSLError, aiohttp.InvalidURL) as error:
            raise EndpointError(f"endpoint {self.name}: {one_line(error, 150)}") from None
        except (aiohttp.ClientError, OSError) as error:
            self._count("connection")
            if self._proxy is not None and (text := proxy_text(error, self._proxy)):
                if isinstance(error, aiohttp.ClientHttpProxyError) and error.status < 500:
                    raise EndpointError(f"endpoint {self.name}: {text}") from None
                raise Passing(text) from None
            # A row may have crashed the server's process.
            raise Passing(connection_text(error, self.url), suspicious=True) from None
        self._count(f"{response.status // 100}xx", time.monotonic() - began)
        return response, answer

    def _count(self, kind: str, seconds: float | None = None) -> None:
        with self._lock:
            self._stats.answers[kind] += 1
            if seconds is not None:
                self._stats.seconds.append(seconds)

    async def _refresh(self) -> None:
        """Fetch a new token.

        Raises:
            Passing: The failure is transient.
            CredentialsError: The credentials are invalid.
        """
        from google.auth.exceptions import GoogleAuthError, TransportError
        from google.auth.transport.requests import Request

        before = self._credentials.token
        async with self._refreshing:
            if self._credentials.token != before and self._credentials.valid:
                return
            try:
                await self._loop.run_in_executor(None, self._credentials.refresh, Request())
            except GoogleAuthError as error:
                reason = one_line(error, 150)
                if error.retryable or isinstance(error, TransportError):
                    raise Passing(f"cannot fetch a token: {reason}") from None
                raise CredentialsError(
                    f"cannot fetch a token for endpoint {self.name}: {reason}; log in again"
                ) from None

    @contextmanager
    def _throttling(self, is_throttled: bool) -> Iterator[None]:
        """Count the time in the block as throttled, once for all concurrent requests."""
        if not is_throttled:
            yield
            return
        with self._lock:
            self._note_throttled()
            self._throttled += 1
        try:
            yield
        finally:
            with self._lock:
                self._note_throttled()
                self._throttled -= 1

    def _note_throttled(self) -> None:
        now = time.monotonic()
        if self._throttled:
            self._throttled_seconds += now - self._throttled_since
        self._throttled_since = now
