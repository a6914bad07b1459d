"""Who is told when something is wrong."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import Any

from . import google

log = logging.getLogger(__name__)


def send_alert(
    dag_id: str, settings: Mapping[str, Any] | None, failures: Iterable[str | None]
) -> None:
    """A DAG, what it works by (if it got so far) and what is wrong -> a message, or a log entry.

    The run fails in any case, which Composer counts (`composer.googleapis.com/workflow/run_count`).
    """
    text = "\n".join(filter(None, failures)) or "a task failed: see its log"
    log.error("%s: %s", dag_id, text)
    topic = (settings or {}).get("alert_topic")
    if topic:
        run_id = (settings or {}).get("run_id") or ""
        google.publish(topic, text, {"dag": dag_id, "run_id": run_id})
