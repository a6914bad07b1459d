"""The messages of the bundle that a thread processes, and when they may be acknowledged.

A source that pulls messages (transforms/messages/pull.py) acknowledges a message when its bundle is
final. All steps of such a stream are in the stage of the source, so by then every sink that writes
within a bundle has written the rows of the message. A sink that keeps rows longer holds the bundle.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Sequence
from typing import Any, Protocol

from common.errors import BalanceError


class Sink(Protocol):
    """A sink that holds bundles. All steps of a process that write to the same place share it."""

    def finish(self) -> None:
        """Write everything, because the source has ended."""

    def stop(self) -> None:
        """Write nothing more, because the run has ended."""


class Owner(Protocol):
    """The source of a bundle."""

    def acknowledge(self, ids: Sequence[str]) -> None:
        """Acknowledge messages, on which all work is done."""

    def give_back(self, ids: Sequence[str]) -> None:
        """Let messages be delivered again."""

    def fail(self, error: Exception) -> None:
        """End the run with an error."""

    def sink(self, key: Hashable, make: Callable[[], Sink]) -> Any:
        """Return the sink of this process with a key; the first call makes it."""


class Bundle:
    """The messages of a bundle.

    Args:
        owner: The source of the messages.

    Attributes:
        owner: The source of the messages.
        ids: The ids of the messages.
        decoded: How many of the messages were decoded.
    """

    def __init__(self, owner: Owner) -> None:
        self.owner = owner
        self.ids: list[str] = []
        self.decoded = 0
        # The first hold is the one of the pipeline itself, until the bundle is final.
        self._holds = 1
        self._final = False
        self._lock = threading.Lock()

    def hold(self) -> None:
        """Put off the acknowledgement until `release` is called as many times as this method."""
        with self._lock:
            self._holds += 1

    def release(self) -> None:
        """End a hold; the last one acknowledges the messages."""
        with self._lock:
            self._holds -= 1
            if self._holds or not self.ids:
                return
        self.owner.acknowledge(self.ids)

    def finalize(self) -> None:
        """End the hold of the pipeline; if a message was not decoded, end the run instead."""
        self._final = True
        if self.decoded == len(self.ids):
            self.release()
            return
        self.owner.fail(
            BalanceError(
                f"messages are missing or duplicated: {len(self.ids):,} were pulled, "
                f"{self.decoded:,} were decoded; none of them is acknowledged: run the command "
                "again, and report this if it recurs"
            )
        )

    def abandon(self) -> None:
        """Give the messages back, unless the bundle is final."""
        if self.ids and not self._final:
            self.owner.give_back(self.ids)


_of_thread = threading.local()


def begin_bundle(bundle: Bundle | None) -> None:
    """Set the bundle that this thread processes.

    A runner starts the last step of a stage first, and the source last. A step that needs the
    bundle sets None when it starts, and so notices if a stage has no source.
    """
    _of_thread.bundle = bundle


def current_bundle() -> Bundle | None:
    """Return the bundle that this thread processes, or None if no source of this kind began it."""
    found: Bundle | None = getattr(_of_thread, "bundle", None)
    return found
