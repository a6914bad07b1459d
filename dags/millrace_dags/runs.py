"""One scheduled run: settings and a date -> its run id, its job and the request. Pure."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

PLACE = "Variable millrace_scoring"
_NEEDED = ("project", "region", "template", "parameters")
_DEFAULTS: dict[str, Any] = {
    "pipeline": "batch_local",
    "name": "scheduled",
    "job_prefix": "pytorch",
    "environment": {},
    "limits": {},
    "downstream_dag": None,
    "alert_topic": None,
}
# Names of jobs by which `python -m resources` knows a pipeline's.
_STEMS = {"batch_local": "batch", "batch_vertex": "batch-vertex"}
LIMITS: dict[str, Any] = {
    "max_dead_letter_share": 0.01,
    "min_rows": 1,
    "score_mean": None,
    "max_score_shift": 0.5,
}


class SettingsError(ValueError):
    """A Variable or params of the DAG are not what the DAG wants. Never passes by itself."""


def known(place: str, given: Mapping[str, Any], names: Mapping[str, Any]) -> dict[str, Any]:
    """Given values and all names with their defaults -> the values, complete.

    Raises SettingsError for a name that is none.
    """
    for name in given:
        if name not in names:
            near = difflib.get_close_matches(name, names, 1)
            hint = f" (did you mean {near[0]}?)" if near else ""
            raise SettingsError(
                f"{place}: unknown key {name!r}{hint}: expected some of {', '.join(names)}"
            )
    return {**names, **given}


def needed(place: str, given: Mapping[str, Any], names: tuple[str, ...]) -> None:
    """Raises SettingsError that names all that is missing."""
    missing = [name for name in names if not given.get(name)]
    if missing:
        raise SettingsError(
            f"{place}: {', '.join(missing)} missing: docs/runbook.md has an example"
        )


def plan_run(
    settings: Mapping[str, Any],
    overrides: Mapping[str, Any],
    logical_date: datetime,
    day: datetime,
) -> dict[str, Any]:
    """Settings, what a single run has instead, its logical date, the day it is about -> the run.

    overrides: `parameters` and `limits`, laid over those of the settings. The run id follows
    from the logical date alone, so that every try of a run writes the same. Raises
    SettingsError.
    """
    chosen = _checked(settings)
    moment = logical_date.astimezone(UTC)
    run_id = f"{chosen['name']}-{moment:%Y%m%dT%H%M%SZ}"
    parameters = _parameters(
        {**chosen["parameters"], **(overrides.get("parameters") or {})},
        {"date": f"{day.astimezone(UTC):%Y-%m-%d}", "run_id": run_id},
    )
    limits = {**chosen["limits"], **(overrides.get("limits") or {})}
    stem = f"{chosen['job_prefix']}-{_STEMS[chosen['pipeline']]}-{chosen['name']}"
    launch = {
        # The task adds the number of its try: Dataflow wants other names of jobs.
        "jobName": f"{stem}-{moment:%Y%m%dt%H%M%S}",
        "containerSpecGcsPath": chosen["template"],
        "parameters": {**parameters, "run_id": run_id},
        "environment": chosen["environment"],
    }
    taken = ("project", "region", "pipeline", "downstream_dag", "alert_topic")
    return {
        **{name: chosen[name] for name in taken},
        "run_id": run_id,
        "report": report_path(parameters, chosen["environment"].get("tempLocation"), run_id),
        "limits": known(f"{PLACE}: limits", limits, LIMITS),
        "request": {"launchParameter": launch},
    }


def _checked(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings -> the same, complete. Raises SettingsError."""
    chosen = known(PLACE, settings, dict.fromkeys(_NEEDED) | _DEFAULTS)
    needed(PLACE, chosen, _NEEDED)
    if chosen["pipeline"] not in _STEMS:
        raise SettingsError(
            f"{PLACE}: pipeline {chosen['pipeline']!r}: expected {' or '.join(_STEMS)}; streams "
            "are not scheduled"
        )
    for name in ("name", "job_prefix"):
        if not re.fullmatch(r"[a-z]([a-z0-9-]{0,28}[a-z0-9])?", chosen[name]):
            raise SettingsError(
                f"{PLACE}: {name} {chosen[name]!r}: expected small letters, digits and -, at most "
                "30"
            )
    if not re.fullmatch(r"gs://[^/]+/.+", chosen["template"]):
        raise SettingsError(f"{PLACE}: template {chosen['template']!r}: expected gs://BUCKET/FILE")
    return chosen


def _parameters(given: Mapping[str, Any], values: Mapping[str, str]) -> dict[str, str]:
    """Parameters as people write them -> texts, as a template takes them."""
    if "run_id" in given:
        raise SettingsError(f"{PLACE}: parameters.run_id is the DAG's to choose: leave it out")
    return {name: _text(value, values) for name, value in given.items() if value is not None}


def _text(value: Any, values: Mapping[str, str]) -> str:
    if isinstance(value, list):
        return ",".join(_text(one, values) for one in value)
    text = str(value).lower() if isinstance(value, bool) else str(value)
    # Not str.format: SQL and JSON have braces of their own.
    for name, filled in values.items():
        text = text.replace(f"{{{name}}}", filled)
    return text


def report_path(parameters: Mapping[str, str], temp: str | None, run_id: str) -> str:
    """Parameters of a run -> where its report will be. Raises SettingsError.

    It is beside the first files that are written, or in the temp location where only tables
    are.
    """
    if not (parameters.get("output_files") or parameters.get("output_table")):
        raise SettingsError(f"{PLACE}: parameters: output_table or output_files is missing")
    if parameters.get("output_table") and not temp:
        raise SettingsError(
            f"{PLACE}: environment.tempLocation is missing: tables are loaded from files there"
        )
    folder = parameters.get("output_files") or parameters.get("dead_letter_files")
    return f"{(folder or f'{temp}'.rstrip('/') + '/millrace').rstrip('/')}/{run_id}/report.json"
