"""The choice of the dead letters that a replay scores, from its flags."""

from __future__ import annotations

from common.errors import UsageError, suggest
from pipelines.options import ReplayOptions
from transforms.dead_letters import REASONS
from transforms.replay.letters import UNREPLAYABLE, Selection, moment

FILTERS = ("reason", "stage", "since", "pipeline", "replayed_run_id")
STAGES = ("decode", "validate", "infer", "encode")


def select(flags: ReplayOptions) -> Selection:
    """Return the selection of dead letters that the flags describe.

    Raises:
        UsageError: If a stage or a reason does not exist or cannot be replayed, or if --since is
            not a time.
    """
    for stage in flags.stage or ():
        if stage == UNREPLAYABLE:
            raise UsageError(
                f"--stage {stage}: these dead letters cannot be scored again, because they hold "
                "scored rows that a table refused, and not the features of the rows"
            )
        if stage not in STAGES:
            raise UsageError(
                f"unknown --stage {stage!r}{suggest(stage, STAGES)}; choose from "
                f"{', '.join(STAGES)}"
            )
    for reason in flags.reason or ():
        if reason not in REASONS:
            raise UsageError(
                f"unknown --reason {reason!r}{suggest(reason, REASONS)}; choose from "
                f"{', '.join(REASONS)}"
            )
    try:
        since = None if flags.since is None else moment(flags.since)
    except ValueError as error:
        raise UsageError(
            f"--since must be a day or a time such as 2026-11-20T12:00:00Z, got {flags.since!r}"
        ) from error
    return Selection(
        reasons=flags.reason,
        stages=flags.stage,
        since=since,
        pipelines=flags.pipeline,
        run_ids=flags.replayed_run_id,
    )
