"""A server on a virtual clock: its answers follow from a formula, in no time."""

import numpy as np
from numpy.typing import NDArray

from scale_tests.measures.accounts import Results, Sent, settle
from scale_tests.measures.level import Level

Floats = NDArray[np.float64]


def open_loop(due: Floats, service: Floats, servers: int = 1) -> Floats:
    """Return when each message is answered, in the order in which they come.

    Several servers take turns. That is the queue of the first free server if all services take the
    same time.
    """
    done = np.empty(len(due))
    for server in range(servers):
        seconds = service[server::servers]
        before = np.cumsum(seconds) - seconds
        # A message waits for the latest time at which a busy period can have started.
        began = np.maximum.accumulate(due[server::servers] - before)
        done[server::servers] = began + before + seconds
    return done


def stalled(due: Floats, service: Floats, start: float, seconds: float) -> Floats:
    """Return when each message is answered by a server that does nothing for some seconds."""
    place = int(np.searchsorted(due, start))
    busy = open_loop(np.insert(due, place, start), np.insert(service, place, seconds))
    return np.delete(busy, place)


def closed_loop(gap: float, seconds: float, service: float, stall: tuple[float, float]) -> Floats:
    """Return the latencies that a sender sees which waits for each answer before it goes on."""
    now, found = 0.0, []
    while now < seconds:
        waiting = stall[0] + stall[1] - now if stall[0] <= now < sum(stall) else 0.0
        found.append(waiting + service)
        now += max(found[-1], gap)
    return np.array(found)


def sent(due: Floats, first: int = 0, late: float = 0.0) -> Sent:
    return Sent(first=first, due=due, at=due + late, faulty=np.zeros(len(due), bool))


def results(answered: Floats, first: int = 0) -> Results:
    return Results(
        sequence=np.arange(first, first + len(answered)),
        at=answered,
        dead=np.zeros(len(answered), bool),
    )


def level(due: Floats, answered: Floats, seconds: float, wait: float = 3_600.0) -> Level:
    """Return the level of a sender without delay, whose results were awaited to the end."""
    ledger = settle(sent(due), results(answered), float(due[-1]) + 2 * wait, wait)
    return Level(name="constant", start=0.0, seconds=seconds, ledger=ledger, cpu=0.1)
