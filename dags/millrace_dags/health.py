"""Decides whether streaming jobs run and keep up. It makes no calls to Google Cloud or Airflow."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from .runs import SettingsError, known, needed

LIMITS: dict[str, Any] = {
    "max_system_lag_seconds": 120,
    "max_waiting_messages": 100_000,
    "max_oldest_message_seconds": 600,
    "max_dead_letter_share": 0.01,
}
_JOB: dict[str, Any] = {"name": None, "subscription": None, "limits": {}}
_TOP: dict[str, Any] = {
    "project": None,
    "region": None,
    "jobs": None,
    "limits": {},
    "alert_topic": None,
}


def read_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Check the Variable, and fill in its defaults and the limits of each job.

    Raises:
        SettingsError: The Variable is invalid.
    """
    place = "Variable millrace_streams"
    chosen = known(place, settings, _TOP)
    needed(place, chosen, ("project", "region", "jobs"))
    if not isinstance(chosen["jobs"], list):
        raise SettingsError(f"{place}: jobs: expected a list")
    common = known(f"{place}: limits", chosen["limits"], LIMITS)
    jobs = []
    for given in chosen["jobs"]:
        job = known(f"{place}: jobs", given, _JOB)
        needed(f"{place}: jobs", job, ("name",))
        limits = known(f"{place}: {job['name']}: limits", job["limits"], common)
        # Flags take the full name of a subscription. Cloud Monitoring uses the short one.
        short = job["subscription"].rpartition("/")[2] if job["subscription"] else None
        jobs.append({"name": job["name"], "subscription": short, "limits": limits})
    return {**chosen, "jobs": jobs}


def counters(updates: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    """Return Millrace's counters of a job by name, summed over steps.

    Dataflow reports each counter twice, with its tentative and its committed value. The function
    uses the committed values.

    Args:
        updates: The MetricUpdates of the job.
    """
    found: dict[str, int] = {}
    for update in updates:
        name = update["name"]
        tentative = (name.get("context") or {}).get("tentative")
        scalar = update.get("scalar")
        if name.get("origin") == "user" and not tentative and isinstance(scalar, (int, float)):
            found[name["name"]] = found.get(name["name"], 0) + int(scalar)
    return found


def judge_stream(
    job: Mapping[str, Any],
    seen: Mapping[str, Any] | None,
    before: Mapping[str, Any] | None,
    place: str,
) -> list[str]:
    """Return what is wrong with a streaming job, one sentence per problem.

    Args:
        job: The name and the limits of the job, from the Variable.
        seen: The current `id`, `state`, `lag`, `waiting`, `oldest`, `received` and `dead` of the
            job. Unknown values are None. None if no such job is active.
        before: The same values at the last check, or None.
        place: The flags that name project and region, for the commands in the messages.
    """
    name, limits = job["name"], job["limits"]
    if seen is None:
        return [
            f"{name}: expected a running job, found none: start it again with the command that "
            f"started it (python -m pipelines.launch stream_local ... --job_name {name}); until "
            "then, its subscription keeps the messages for its retention time"
        ]
    follow = f"follow the job with python -m pipelines.launch --attach {seen['id']} {place}"
    if seen["state"] != "JOB_STATE_RUNNING":
        return [f"{name}: expected JOB_STATE_RUNNING, got {seen['state']}: {follow}"]
    found = [
        f"{name}: the {what} is {seen[key]:,}, expected at most {limits[limit]:,}: {follow}, and "
        "allow more workers (--max_num_workers), or fix the error if one repeats"
        for key, what, limit in (
            ("lag", "system lag in seconds", "max_system_lag_seconds"),
            ("waiting", "number of waiting messages", "max_waiting_messages"),
            ("oldest", "age of the oldest message in seconds", "max_oldest_message_seconds"),
        )
        if seen[key] is not None and seen[key] > limits[limit]
    ]
    return [*found, *_letters(name, seen, before, limits["max_dead_letter_share"])]


def _letters(
    name: str,
    seen: Mapping[str, Any],
    before: Mapping[str, Any] | None,
    limit: float,
) -> Iterator[str]:
    # The counters of a job that replaces another start at 0.
    if before is None or before["id"] != seen["id"]:
        before = {"received": 0, "dead": 0}
    received, dead = (seen[key] - before[key] for key in ("received", "dead"))
    if received > 0 and dead > limit * received:
        yield (
            f"{name}: expected at most {limit:.2%} dead letters since the last check, got "
            f"{dead / received:.2%} ({dead:,} of {received:,}): look at their topic or table, fix "
            "the sender, then replay them with python -m pipelines.replay"
        )
