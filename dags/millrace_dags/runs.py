"""Plans a scheduled run from settings and a date. It makes no calls to Google Cloud or Airflow."""

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
# `python -m resources` recognizes the jobs of a pipeline by this part of their names.
_STEMS = {"batch_local": "batch", "batch_vertex": "batch-vertex"}
LIMITS: dict[str, Any] = {
    "max_dead_letter_share": 0.01,
    "min_rows": 1,
    "score_mean": None,
    "max_score_shift": 0.5,
}


class SettingsError(ValueError):
    """A Variable or the params of a DAG are invalid. A retry cannot succeed."""


def known(place: str, given: Mapping[str, Any], names: Mapping[str, Any]) -> dict[str, Any]:
    """Return given values, completed with defaults.

    Args:
        place: Where the values are set, for messages.
        given: The given values.
        names: All names that exist, with their defaults.

    Raises:
        SettingsError: A given name does not exist.
    """
    for name in given:
        if name not in names:
            near = difflib.get_close_matches(name, names, 1)
            hint = f" (did you mean '{near[0]}'?)" if near else ""
            raise SettingsError(
                f"{place}: unknown key {name!r}{hint}: choose from {', '.join(names)}"
            )
    return {**names, **given}


def needed(place: str, given: Mapping[str, Any], names: tuple[str, ...]) -> None:
    """Raise SettingsError with all names that are missing.

    Args:
        place: Where the values are set, for the message.
        given: The given values.
        names: The names that must have a value.

    Raises:
        SettingsError: A name has no value, or an empty one.
    """
    missing = [name for name in names if not given.get(name)]
    if missing:
        raise SettingsError(
            f"{place}: missing {', '.join(missing)}: see the example in "
            "docs/how-to/schedule-with-composer.md"
        )


def plan_run(
    settings: Mapping[str, Any],
    overrides: Mapping[str, Any],
    logical_date: datetime,
    day: datetime,
) -> dict[str, Any]:
    """Plan one run: its run id, the path of its report, its limits and the launch request.

    The run id depends only on the settings and the logical date, so every try of a run writes the
    same output.

    Args:
        settings: The Variable `millrace_scoring`.
        overrides: `parameters` and `limits` for this run, which override those of the settings.
        logical_date: The logical date of the run.
        day: The day whose rows the run scores. It replaces `{date}` in the parameters.

    Raises:
        SettingsError: The settings or the overrides are invalid.
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
        # The task appends the number of its try, because Dataflow needs a new name for each job.
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
    """Check settings and fill in their defaults. Raise SettingsError if they are invalid."""
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
                f"{PLACE}: {name} {chosen[name]!r}: expected lowercase letters, digits and -, at "
                "most 30 characters, starting with a letter and not ending with -"
            )
    if not re.fullmatch(r"gs://[^/]+/.+", chosen["template"]):
        raise SettingsError(f"{PLACE}: template {chosen['template']!r}: expected gs://BUCKET/FILE")
    return chosen


def _parameters(given: Mapping[str, Any], values: Mapping[str, str]) -> dict[str, str]:
    """Convert the values of parameters to texts, as a template takes them."""
    if "run_id" in given:
        raise SettingsError(
            f"{PLACE}: parameters.run_id: the DAG chooses the run id: leave out run_id"
        )
    return {name: _text(value, values) for name, value in given.items() if value is not None}


def _text(value: Any, values: Mapping[str, str]) -> str:
    if isinstance(value, list):
        return ",".join(_text(one, values) for one in value)
    text = str(value).lower() if isinstance(value, bool) else str(value)
    # str.format would fail on the braces of SQL and JSON.
    for name, filled in values.items():
        text = text.replace(f"{{{name}}}", filled)
    return text


def report_path(parameters: Mapping[str, str], temp: str | None, run_id: str) -> str:
    """Return the path of the report of a run.

    The report is in the run's folder, under --output_files or else --dead_letter_files. If the run
    writes only tables, the report is in the temp location.

    Args:
        parameters: The parameters of the template.
        temp: The temp location, None if there is none.
        run_id: The run.

    Raises:
        SettingsError: The run has no output, or a table has no temp location.
    """
    if not (parameters.get("output_files") or parameters.get("output_table")):
        raise SettingsError(f"{PLACE}: parameters: output_table or output_files is missing")
    if parameters.get("output_table") and not temp:
        raise SettingsError(
            f"{PLACE}: environment.tempLocation is missing: tables are loaded from files there"
        )
    folder = parameters.get("output_files") or parameters.get("dead_letter_files")
    return f"{(folder or f'{temp}'.rstrip('/') + '/millrace').rstrip('/')}/{run_id}/report.json"
