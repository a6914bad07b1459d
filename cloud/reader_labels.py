"""The labels of a subscription that say who reads it, and until when that is believed."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping

READER = "millrace_reader"
UNTIL = "millrace_reader_until"
# What UNTIL says of a job that runs elsewhere; of a run in this process, a time.
LASTING = "0"


def seconds_left(labels: Mapping[str, str]) -> float:
    """A subscription's labels -> for how long its reader is believed to live.

    Infinite for a job that runs elsewhere, not above 0 where nobody is believed to read.
    """
    until = labels.get(UNTIL, "")
    if not labels.get(READER):
        return 0.0
    return int(until) - time.time() if until.isdecimal() and until != LASTING else math.inf
