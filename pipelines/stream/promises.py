"""What a stream promises on its runner, by its flags: when it acknowledges, and what it drops."""

from __future__ import annotations

from collections.abc import Collection

from common.errors import UsageError
from pipelines.options.launch import AT_LEAST_ONCE
from pipelines.stream.config import StreamConfig


def held_flags(config: StreamConfig) -> list[str]:
    """Return the flags because of which a job on Dataflow holds messages in its state.

    Such messages are acknowledged already, and their rows are not written yet.
    """
    values = {
        "output_files": config.sinks.output_files,
        "dead_letter_files": config.letter_sinks.dead_letter_files,
        "deduplicate_seconds": config.deduplicate_seconds,
        "max_batch_wait_ms": config.max_batch_wait_ms,
    }
    return [f"--{name}" for name, value in values.items() if value is not None]


def drain_advice(config: StreamConfig) -> str:
    """Return why a job on Dataflow must be drained and not cancelled; empty if it may be cancelled.

    Args:
        config: The configuration of the stream.
    """
    flags = held_flags(config)
    if not flags:
        return ""
    return (
        f"with {', '.join(flags)}, Dataflow acknowledges messages before their rows are written: "
        "to stop this job, drain it, because a cancel loses what it holds"
    )


def check_dataflow(config: StreamConfig, service_options: Collection[str]) -> None:
    """Check the flags of a stream's source for a job on Dataflow, which reads Pub/Sub itself.

    Args:
        config: The configuration of the stream.
        service_options: The service options of the job, which name its mode.

    Raises:
        UsageError: A flag has no effect there.
    """
    if config.run.stop_after_seconds is not None:
        raise UsageError(
            "--stop_after_seconds has no effect on Dataflow: leave out --stop_after_seconds, and "
            "drain the job to stop it"
        )
    if config.readers is not None:
        raise UsageError(
            "--stream_readers has no effect on Dataflow, which reads Pub/Sub itself: leave it out"
        )
    alone = config.deduplicate_attribute is not None and config.deduplicate_seconds is None
    if alone and AT_LEAST_ONCE in service_options:
        raise UsageError(
            "--deduplicate_attribute has no effect in at-least-once mode, in which Dataflow drops "
            "no duplicates: add --deduplicate_seconds, or use exactly-once mode (launch with "
            "--streaming_mode exactly_once)"
        )


def check_own_source(config: StreamConfig) -> None:
    """Check the flags of a stream's source for a run that pulls its messages itself.

    Args:
        config: The configuration of the stream.

    Raises:
        UsageError: A flag has no effect there.
    """
    if config.deduplicate_attribute is not None and config.deduplicate_seconds is None:
        raise UsageError(
            "--deduplicate_attribute has no effect here without --deduplicate_seconds: add for how "
            "long messages are remembered"
        )
