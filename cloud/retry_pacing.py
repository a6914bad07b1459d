"""How fast a server is asked: requests in flight, and retries, held back when it says so.

Values of one event loop; times are seconds of its clock.
"""

from __future__ import annotations

import asyncio
import email.utils
import random
import time
from collections import deque

FIRST_BACKOFF, LONGEST_BACKOFF = 0.25, 20.0


class AdaptiveLimit:
    """How many requests may be in flight: halved when the server pushes back, at most `most`.

    It grows by one for as many good answers as it is high, and is lowered once for all
    requests that were in flight together. Source: additive increase, multiplicative
    decrease, as TCP has it.
    """

    def __init__(self, most: int) -> None:
        self.most, self.limit = most, float(most)
        self.in_flight = 0
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._lowered = float("-inf")

    @property
    def is_lowered(self) -> bool:
        """Whether less is allowed than could be."""
        return int(self.limit) < self.most

    async def acquire(self) -> None:
        """Waits for its turn, first come, first served."""
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
        """A request has ended, however it did."""
        self.in_flight -= 1
        self._hand_on()

    def answered(self) -> None:
        """A good answer came."""
        self.limit = min(self.limit + 1 / self.limit, float(self.most))
        self._hand_on()

    def pushed_back(self, began: float, now: float) -> None:
        """A request that began at a time was told, or shown, that it is too much."""
        if began > self._lowered:
            self.limit, self._lowered = max(self.limit / 2, 1.0), now

    def _hand_on(self) -> None:
        while self._waiting and self.in_flight < int(self.limit):
            turn = self._waiting.popleft()
            if not turn.done():
                self.in_flight += 1
                turn.set_result(None)


class RetryBudget:
    """Retries are paid by good answers, half a one each, so that an outage is not amplified.

    most: how many may be saved, and are there at the start. Without any, one a second goes.
    """

    def __init__(
        self, most: float = 50.0, per_answer: float = 0.5, per_second: float = 1.0
    ) -> None:
        self._most, self._per_answer, self._per_second = most, per_answer, per_second
        self._saved, self._at = most, float("-inf")

    def answered(self) -> None:
        """A good answer came."""
        self._saved = min(self._saved + self._per_answer, self._most)

    def spend(self, now: float, most: float = float("inf")) -> float:
        """A retry is wanted -> the seconds that it has to wait, at most as many as it can."""
        if self._at > float("-inf"):
            earned = (now - self._at) * self._per_second
            self._saved = min(self._saved + earned, self._most)
        self._at = now
        wait = max(0.0, (1 - self._saved) / self._per_second)
        # One that waits as long as it can is the last of its request: others do not pay for it.
        if wait <= most:
            self._saved -= 1
        return min(wait, most)


def backoff(attempt: int, retry_after: float = 0.0) -> float:
    """How often it was tried, and what the server asks for -> seconds to wait, with full jitter.

    Source: AWS Architecture Blog, Exponential Backoff And Jitter.
    """
    ceiling = min(LONGEST_BACKOFF, FIRST_BACKOFF * 2 ** min(attempt, 16))
    # Those who were told the same time must not come back together.
    return retry_after + random.uniform(0, ceiling)


def parse_retry_after(text: str | None) -> float:
    """The header Retry-After, seconds or a date -> seconds from now, 0 where it says nothing."""
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
