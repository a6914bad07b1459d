"""Keeps a process running, kills it on schedule, and samples its memory.

Each start is a life of its own, with a number.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil

from benchmarks.summary import Record
from examples.local_cloud import Server

POLL_SECONDS = 0.05
SAMPLE_SECONDS = 5.0
# The pause before a process that has failed is started again, like that of a service manager.
RESTART_SECONDS = 1.0
# Caches and pools of a process fill before this age. Its memory is compared from then on.
SETTLED_SECONDS = 30.0


@dataclass
class Life:
    """A life of the process.

    Attributes:
        number: Its number, from 1 on.
        started: When it started, in seconds since 1970.
        ended: When it ended.
        end: How it ended: `killed`, `failed`, `finished`, or empty while it runs.
        samples: The age in seconds and the resident memory in MB, every SAMPLE_SECONDS.
    """

    number: int
    started: float
    ended: float = np.inf
    end: str = ""
    samples: list[tuple[float, float]] = field(default_factory=list)

    def overlaps(self, start: float, stop: float) -> bool:
        """Return whether it was running at some time in a period."""
        return self.started < stop and self.ended > start


class Lives:
    """A process that is started again whenever it ends.

    Args:
        command: Returns the command of the life with a number.
        environment: The environment of the process.
        log: The file for everything that the process prints.
    """

    def __init__(
        self, command: Callable[[int], Sequence[str]], environment: Mapping[str, str], log: Path
    ) -> None:
        self._command, self._environment, self._log = command, environment, log
        self._process: psutil.Popen | None = None
        self._sampled = 0.0
        self.all: list[Life] = []

    def start(self, *more: str) -> None:
        """Start the next life, with more arguments."""
        command = [*self._command(len(self.all) + 1), *more]
        with self._log.open("ab") as log:
            self._process = psutil.Popen(command, stdout=log, stderr=log, env=self._environment)
        self.all.append(Life(len(self.all) + 1, time.time()))

    def keep(self) -> None:
        """Sample the memory of the process; start it again if it has ended."""
        if self._process is None or self._process.poll() is not None:
            self._over("failed")
            time.sleep(RESTART_SECONDS)
            self.start()
        self._sample()

    def _sample(self) -> None:
        assert self._process is not None
        now, life = time.time(), self.all[-1]
        if now - self._sampled < SAMPLE_SECONDS:
            return
        self._sampled = now
        # The process may just have ended. Then it has no memory.
        with suppress(psutil.Error):
            if size := self._process.memory_info().rss:
                life.samples.append((now - life.started, size / 1e6))

    def kill(self) -> None:
        """Kill the process like `kill -9`, if it is running."""
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait()
            self._over("killed")

    def _over(self, end: str) -> None:
        if self.all and not self.all[-1].end:
            life = self.all[-1]
            life.end, life.ended = end, time.time()
            size = life.samples[-1][1] if life.samples else 0.0
            print(
                f"life {life.number}: {end} after {life.ended - life.started:.1f} s, {size:.0f} MB",
                flush=True,
            )

    def finish(self, seconds: float) -> None:
        """Wait until the process has ended, and kill it if it has not ended in time.

        Unless it succeeds, the end of its log is printed.
        """
        assert self._process is not None
        until = time.monotonic() + seconds
        while self._process.poll() is None and time.monotonic() < until:
            self._sample()
            time.sleep(POLL_SECONDS)
        code = self._process.poll()
        self.kill()
        self._over("failed" if code else "finished")
        if code != 0:
            print(self._log.read_text()[-1_000:], flush=True)


@dataclass
class Outage:
    """A period in which a server is down.

    Attributes:
        server: The server. It is killed, and started again with its data.
        begin: When it is to be killed, in seconds since 1970.
        end: When it is to be started again.
        down: When it was killed; infinity if it was not.
        up: When it was ready again; infinity if it is not.
    """

    server: Server
    begin: float
    end: float
    down: float = np.inf
    up: float = np.inf

    def step(self, now: float) -> None:
        """Kill the server, or start it again, if it is time to."""
        if now >= self.begin and self.down == np.inf:
            self.server.kill()
            self.down = time.time()
        if now >= self.end and self.up == np.inf:
            self.server.start()
            self.up = time.time()


def kill_times(start: float, seconds: float, kill_seconds: float) -> list[float]:
    """Return when to kill a process: every `kill_seconds`, and at the end."""
    count = int(seconds // kill_seconds)
    times = [start + kill_seconds * (i + 1) for i in range(count)]
    return times if times and times[-1] == start + seconds else [*times, start + seconds]


def supervise(
    lives: Lives, outage: Outage, kills: Sequence[float], check: Callable[[], None]
) -> None:
    """Keep the process running until the last kill, and carry out the outage.

    Args:
        lives: The process, which has been started.
        outage: The outage, which ends before the last kill.
        kills: When to kill the process, in seconds since 1970 and ascending.
        check: Raises an error if something else has failed.
    """
    for kill in kills:
        while (now := time.time()) < kill:
            check()
            outage.step(now)
            lives.keep()
            time.sleep(POLL_SECONDS)
        lives.kill()
        if kill != kills[-1]:
            lives.start()


def memory_figures(lives: Sequence[Life], settled_seconds: float) -> Record:
    """Return the memory of a process over its lives, in MB.

    Args:
        lives: The lives that had work to do.
        settled_seconds: The age from which on the memory of a life counts.

    Returns:
        `settled`: for each life that grew old enough, its number and its memory at that age.
        `trend`: by how much a line through them grows from the first to the last life; None for
        fewer than two. `growth_in_a_life`: the median growth from that age to the last sample.
        `peak`: the largest sample.
    """
    settled, growth = [], []
    for life in lives:
        old = [mb for age, mb in life.samples if age >= settled_seconds]
        if old:
            settled.append((life.number, old[0]))
            growth.append(old[-1] - old[0])
    numbers, sizes = np.array(settled, np.float64).reshape(-1, 2).T
    slope = float(np.polyfit(numbers, sizes, 1)[0]) if len(settled) > 1 else None
    peaks = [mb for life in lives for _, mb in life.samples]
    return {
        "settled": [[number, round(mb, 1)] for number, mb in settled],
        "trend": None if slope is None else round(slope * float(np.ptp(numbers)), 1),
        "growth_in_a_life": round(float(np.median(growth)), 1) if growth else None,
        "peak": round(max(peaks, default=0.0), 1),
    }
