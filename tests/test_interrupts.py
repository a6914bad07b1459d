"""An event stays usable, whenever a signal interrupts the thread that sets it."""

import signal
import threading
from collections.abc import Iterator

import pytest

from common.interrupts import InterruptibleEvent


@pytest.fixture
def interrupting() -> Iterator[None]:
    """The timer's signal raises KeyboardInterrupt, as Ctrl-C does."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


def set_until_interrupted(event: InterruptibleEvent, seconds: float) -> None:
    signal.setitimer(signal.ITIMER_REAL, seconds)
    while True:
        event.set()


@pytest.mark.usefixtures("interrupting")
def test_an_event_that_is_interrupted_while_it_is_set_can_be_set_again() -> None:
    for number in range(3_000):
        event = InterruptibleEvent()
        with pytest.raises(KeyboardInterrupt):
            set_until_interrupted(event, 1e-6 * (1 + number % 60))
        event.set()
        assert event.is_set()


def test_every_waiting_thread_continues() -> None:
    event, found = InterruptibleEvent(), []
    threads = [threading.Thread(target=lambda: found.append(event.wait(30))) for _ in range(5)]
    for thread in threads:
        thread.start()
    assert not event.is_set()
    event.set()
    for thread in threads:
        thread.join(30)
    assert found == [True] * 5
    assert event.wait(0)


def test_waiting_ends_after_the_given_time() -> None:
    assert not InterruptibleEvent().wait(0.01)
