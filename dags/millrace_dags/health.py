"""Streaming jobs: are they there, and do they keep up? Pure."""

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
    """The Variable -> the same, complete, with the limits of each job. Raises SettingsError."""
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
        # The full name is what flags want, the short one what Cloud Monitoring has.
        short = job["subscription"].rpartition("/")[2] if job["subscription"] else None
        jobs.append({"name": job["name"], "subscription": short, "limits": limits})
    return {**chosen, "jobs": jobs}


def counters(updates: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    """MetricUpdates of a job -> our counters by name, summed over steps.

    Each is told as attempted (tentative) and as certain; only the latter is taken.
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
    """A job as it is wanted, as it is, as it was at the last look -> what is wrong.

    seen: `id`, `state`, `lag`, `waiting`, `oldest`, `received`, `dead`, None for what is not
    known; None altogether where no such job is active. place: flags that name project and
    region.
    """
    name, limits = job["name"], job["limits"]
    if seen is None:
        return [
            f"{name}: expected a running job, found none: its subscription keeps the messages for "
            f"its retention time; start it again with python -m pipelines.launch --job_name {name}"
        ]
    attach = f"python -m pipelines.launch --attach {seen['id']} {place}"
    if seen["state"] != "JOB_STATE_RUNNING":
        return [f"{name}: expected JOB_STATE_RUNNING, got {seen['state']}: {attach}"]
    found = [
        f"{name}: expected {what} of at most {limits[limit]:,}, got {seen[key]:,}: {attach}; more "
        "workers (--max_num_workers), or an error that is repeated"
        for key, what, limit in (
            ("lag", "a system lag in seconds", "max_system_lag_seconds"),
            ("waiting", "a number of waiting messages", "max_waiting_messages"),
            ("oldest", "an age of the oldest message in seconds", "max_oldest_message_seconds"),
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
    # Counters begin anew with a job that replaces another.
    if before is None or before["id"] != seen["id"]:
        before = {"received": 0, "dead": 0}
    received, dead = (seen[key] - before[key] for key in ("received", "dead"))
    if received > 0 and dead > limit * received:
        yield (
            f"{name}: expected at most {limit:.2%} dead letters since the last look, got "
            f"{dead / received:.2%} ({dead:,} of {received:,}): look at their topic or table, mend "
            "what sends them, then python -m pipelines.replay"
        )
