"""Events and background functions stay usable, whenever a signal interrupts the main thread."""

import signal
import threading
from collections.abc import Iterator

import pytest

from common.interrupts import Background, InterruptibleEvent, repeating


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


def test_a_background_function_returns_its_result_or_raises_its_error() -> None:
    assert Background(lambda: 7).result() == 7
    failing = Background(lambda: int("x"))
    with pytest.raises(ValueError, match="'x'"):
        failing.result()
    assert failing.wait(0)


@pytest.mark.usefixtures("interrupting")
def test_a_signal_ends_the_wait_for_a_background_function_but_not_the_function() -> None:
    go_on = threading.Event()
    waiting = Background(lambda: go_on.wait(60))
    signal.setitimer(signal.ITIMER_REAL, 0.05)
    with pytest.raises(KeyboardInterrupt):
        waiting.result()
    assert not waiting.wait(0)
    go_on.set()
    assert waiting.result()


def test_a_repeated_function_is_called_only_within_the_block() -> None:
    twice, callers = threading.Event(), []

    def call() -> None:
        callers.append(threading.current_thread())
        if len(callers) == 2:
            twice.set()

    with repeating(call, 0.001):
        assert twice.wait(60)
    assert not callers[0].is_alive()
    before = len(callers)
    with repeating(call, 60):
        pass
    assert len(callers) == before


def test_a_block_with_a_repeated_function_raises_its_own_error() -> None:
    with pytest.raises(KeyError), repeating(lambda: None, 60):
        raise KeyError
