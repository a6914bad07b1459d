"""Which dead letters a replay takes, from its flags."""

from __future__ import annotations

from common.errors import UsageError, suggest
from pipelines.options import ReplayOptions
from transforms.dead_letters import REASONS
from transforms.replay.letters import UNREPLAYABLE, Selection, moment

FILTERS = ("reason", "stage", "since", "pipeline", "replayed_run_id")
STAGES = ("decode", "validate", "infer", "encode")


def select(flags: ReplayOptions) -> Selection:
    """Flags -> which letters are replayed. Raises UsageError."""
    for stage in flags.stage or ():
        if stage == UNREPLAYABLE:
            raise UsageError(
                f"--stage {stage}: these dead letters hold scored rows that a table refused, not "
                "what they were scored from: they cannot be scored again"
            )
        if stage not in STAGES:
            raise UsageError(
                f"--stage: {stage!r} is no stage{suggest(stage, STAGES)}; "
                f"expected {', '.join(STAGES)}"
            )
    for reason in flags.reason or ():
        if reason not in REASONS:
            raise UsageError(
                f"--reason: {reason!r} is no reason{suggest(reason, REASONS)}; expected "
                f"{', '.join(REASONS)}"
            )
    try:
        since = None if flags.since is None else moment(flags.since)
    except ValueError as error:
        raise UsageError(
            f"--since: {flags.since!r}: expected a time as 2026-11-20T12:00:00Z, or a day"
        ) from error
    return Selection(
        reasons=flags.reason,
        stages=flags.stage,
        since=since,
        pipelines=flags.pipeline,
        run_ids=flags.replayed_run_id,
    )
