"""Limits how many requests are in flight and how many are retried, so that servers recover.

The objects belong to one event loop. All times are in seconds of `time.monotonic()`.
"""

from __future__ import annotations

import asyncio
import email.utils
import random
import time
from collections import deque

FIRST_BACKOFF, LONGEST_BACKOFF = 0.25, 20.0


class AdaptiveLimit:
    """A limit on the requests in flight that follows the load of the server.

    A limit of N grows by about one per N good answers. It is halved when the server is overloaded,
    but only once for all requests that were in flight at the same time. Source: TCP's additive
    increase and multiplicative decrease.

    Args:
        most: The limit at the start, and the highest one.
    """

    def __init__(self, most: int) -> None:
        self.most, self.limit = most, float(most)
        self.in_flight = 0
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._lowered = float("-inf")

    @property
    def is_lowered(self) -> bool:
        """Whether the limit is below the highest one."""
        return int(self.limit) < self.most

    async def acquire(self) -> None:
        """Wait for a free place, first come, first served."""
        if self.in_flight < int(self.limit) and not self._waiting:
            self.in_flight += 1
            return
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.release()
            raise

    def release(self) -> None:
        """Free the place of a request that has ended."""
        self.in_flight -= 1
        self._hand_on()

    def answered(self) -> None:
        """Raise the limit for a good answer."""
        self.limit = min(self.limit + 1 / self.limit, float(self.most))
        self._hand_on()

    def pushed_back(self, began: float, now: float) -> None:
        """Lower the limit for a request that found the server overloaded.

        Args:
            began: When the request was sent.
            now: The current time.
        """
        if began > self._lowered:
            self.limit, self._lowered = max(self.limit / 2, 1.0), now

    def _hand_on(self) -> None:
        while self._waiting and self.in_flight < int(self.limit):
            turn = self._waiting.popleft()
            if not turn.done():
                self.in_flight += 1
                turn.set_result(None)


class RetryBudget:
    """A budget of retries that good answers and time refill, so that an outage gets few retries.

    Args:
        most: How many retries the budget holds at the start and at most.
        per_answer: How many retries a good answer adds.
        per_second: How many retries a second adds.
    """

    def __init__(
        self, most: float = 50.0, per_answer: float = 0.5, per_second: float = 1.0
    ) -> None:
        self._most, self._per_answer, self._per_second = most, per_answer, per_second
        self._saved, self._at = most, float("-inf")

    def answered(self) -> None:
        """Add the retries for a good answer."""
        self._saved = min(self._saved + self._per_answer, self._most)

    def spend(self, now: float, most: float = float("inf")) -> float:
        """Take one retry from the budget, and return how many seconds it has to wait.

        Args:
            now: The current time.
            most: The most seconds that the retry can wait.
        """
        if self._at > float("-inf"):
            earned = (now - self._at) * self._per_second
            self._saved = min(self._saved + earned, self._most)
        self._at = now
        wait = max(0.0, (1 - self._saved) / self._per_second)
        # A retry that waits as long as it can is the last one of its request. It is free,
        # because it must not delay others.
        if wait <= most:
            self._saved -= 1
        return min(wait, most)


def backoff(attempt: int, retry_after: float = 0.0) -> float:
    """Return how many seconds to wait before the next attempt, with full jitter.

    Source: AWS Architecture Blog, Exponential Backoff And Jitter.

    Args:
        attempt: The number of the failed attempt, from 0.
        retry_after: How many seconds the server asks to wait, at least.
    """
    ceiling = min(LONGEST_BACKOFF, FIRST_BACKOFF * 2 ** min(attempt, 16))
    # Clients that got the same Retry-After must not retry at the same moment.
    return retry_after + random.uniform(0, ceiling)


def parse_retry_after(text: str | None) -> float:
    """Return how many seconds from now a Retry-After header names.

    The header holds a number of seconds or a date. The result is 0 if it is missing or invalid.
    """
    if text is None:
        return 0.0
    try:
        return max(0.0, float(text))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time())
    except (TypeError, ValueError):
        return 0.0
