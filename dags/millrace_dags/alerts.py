"""Sends alerts to the log and to a topic."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import Any

from . import google

log = logging.getLogger(__name__)


def send_alert(
    dag_id: str, settings: Mapping[str, Any] | None, failures: Iterable[str | None]
) -> None:
    """Log what is wrong, and publish it to the alert topic if there is one.

    The run fails in either case, and Composer counts failed runs in
    `composer.googleapis.com/workflow/run_count`.

    Args:
        dag_id: The DAG.
        settings: The settings of the run, None if it failed before it could read them.
        failures: What is wrong. None entries are ignored.
    """
    text = "\n".join(filter(None, failures)) or "a task failed: see its log"
    log.error("%s: %s", dag_id, text)
    topic = (settings or {}).get("alert_topic")
    if topic:
        run_id = (settings or {}).get("run_id") or ""
        google.publish(topic, text, {"dag": dag_id, "run_id": run_id})
