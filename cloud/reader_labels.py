"""The labels of a subscription that name its reader, and the time until which they are valid."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping

READER = "millrace_reader"
UNTIL = "millrace_reader_until"
# The value of UNTIL if a job elsewhere is the reader. For a run in this process it is a Unix time.
LASTING = "0"


def seconds_left(labels: Mapping[str, str]) -> float:
    """Return for how many seconds the labels of a subscription still name a valid reader.

    The result is infinite for a job that runs elsewhere, and 0 or less if the subscription has no
    valid reader.
    """
    until = labels.get(UNTIL, "")
    if not labels.get(READER):
        return 0.0
    return int(until) - time.time() if until.isdecimal() and until != LASTING else math.inf
