"""What a client of an endpoint has done, for metrics and the end of a run."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field


@dataclass(kw_only=True)
class Stats:
    """What a client has done since its statistics were last taken.

    Attributes:
        throttled: Whole seconds during which requests waited because the server was overloaded.
        most_in_flight: The maximum number of concurrent requests.
        answers: The number of responses by status class, for example `2xx`, and the numbers of
            `timeout`, `connection` and `bad_answer` failures.
        seconds: The duration of each request that got a response, in seconds.
    """

    requests: int = 0
    retries: int = 0
    bytes_sent: int = 0
    throttled: int = 0
    most_in_flight: int = 0
    answers: Counter[str] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)
