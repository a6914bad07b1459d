"""Private names of Beam's runner that are needed for a run in this process.

Importing this module changes nothing. The code that starts a run in this process calls these
functions first. Runs elsewhere do not import the module.

tests/test_private_beam.py lists the names and fails if a release of Beam moves one of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from apache_beam.runners.portability.fn_api_runner import fn_runner, worker_handlers


def keep_buffers_whole() -> None:
    """Make FnApiRunner send the output of workers only when it is complete.

    With several workers, Beam also sends the output every second, from another thread, while
    elements are added. It loses the elements that are added meanwhile: hundreds of 200,000 with
    Beam 2.77 (TimeBasedBufferingClosableOutputStream in apache_beam/runners/worker/data_plane.py).
    """
    worker_handlers.DATA_BUFFER_TIME_LIMIT_MS = 10**9


@contextmanager
def dropped_metrics() -> Iterator[None]:
    """Make FnApiRunner drop the metrics of bundles while the block runs, for runs without an end.

    Beam 2.77 keeps those of every bundle, 26 KB each, and adds them up only when somebody asks for
    them after the run (`consolidate` in apache_beam/metrics/monitoring_infos.py is a generator). A
    stream of twenty bundles a second would need 2 GB more every hour.
    """
    before = fn_runner.consolidate_monitoring_infos
    fn_runner.consolidate_monitoring_infos = lambda _: ()
    try:
        yield
    finally:
        fn_runner.consolidate_monitoring_infos = before
