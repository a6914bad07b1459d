"""Hides the differences between Airflow 2 and 3: moved names, and the order of XCom values."""

from __future__ import annotations

from typing import Any

# ruff: noqa: F401
try:
    from airflow.sdk import Param, Variable, dag, task
    from airflow.sdk.exceptions import AirflowException, AirflowFailException
except ImportError:  # Airflow 2
    from airflow.decorators import dag, task
    from airflow.exceptions import AirflowException, AirflowFailException
    from airflow.models import Variable
    from airflow.models.param import Param
try:
    from airflow.sdk import CronDataIntervalTimetable
except ImportError:
    from airflow.timetables.interval import CronDataIntervalTimetable
try:
    from airflow.providers.standard.operators.trigger_dagrun import TriggerDagRunOperator
except ImportError:
    from airflow.operators.trigger_dagrun import TriggerDagRunOperator


def pull_last(ti: Any, task_id: str, key: str = "return_value") -> Any | None:
    """Return the XCom value of a task in this run, or else in the last run before it.

    Args:
        ti: The task instance that pulls the value.
        task_id: The task that pushed the value.
        key: The key of the value.
    """
    # Without `map_indexes`, Airflow 3 returns the values of all runs, in no defined order.
    return ti.xcom_pull(task_ids=task_id, key=key, map_indexes=-1, include_prior_dates=True)
