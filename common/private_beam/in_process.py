"""A private name of Beam's runner that is needed for a batch run in this process.

Importing this module changes nothing. The code that starts a run in this process calls this
function first. Runs elsewhere do not import the module.

tests/test_private_beam.py lists the name and fails if a release of Beam moves it.
"""

from __future__ import annotations

from apache_beam.runners.portability.fn_api_runner import worker_handlers


def keep_buffers_whole() -> None:
    """Make FnApiRunner send the output of workers only when it is complete.

    With several workers, Beam also sends the output every second, from another thread, while
    elements are added. It loses the elements that are added meanwhile: hundreds of 200,000 with
    Beam 2.77 (TimeBasedBufferingClosableOutputStream in apache_beam/runners/worker/data_plane.py).
    """
    worker_handlers.DATA_BUFFER_TIME_LIMIT_MS = 10**9
