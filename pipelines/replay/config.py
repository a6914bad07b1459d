"""What a replay is asked to do: whose dead letters, how they are read, where rows go."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipelines.batch.config import RunConfig, letter_sinks_of, sinks_of
from pipelines.config import ModelConfig, predictor_of
from pipelines.options import (
    CloudOptions,
    FailureOptions,
    ModelOptions,
    ReplayOptions,
    RunOptions,
    SinkOptions,
)
from pipelines.options.flag import Parsed
from pipelines.options.model import BATCH_ROWS
from pipelines.options.rules import check_replay
from pipelines.replay.selection import FILTERS, select
from pipelines.stream.config import MessageConfig

if TYPE_CHECKING:
    from transforms.replay.letters import Selection

# Flags of messages, which dead letters of batch runs are not.
_OF_MESSAGES = ("message_format", "avro_schema", "max_message_bytes", "window_seconds")


@dataclass(frozen=True, kw_only=True)
class LettersInFiles:
    """Files of dead letters."""

    patterns: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class LettersInTable:
    """A table of dead letters."""

    name: str


@dataclass(frozen=True, kw_only=True)
class LettersInSubscription:
    """Messages of a subscription, `limit` of them at most."""

    subscription: str
    limit: int


@dataclass(frozen=True, kw_only=True)
class ReplayConfig(RunConfig):
    """A replay.

    filters: as they were typed, for the report. messages: how those of a stream are read.
    of_messages: flags that only these have, as far as they were typed. topics: that get the
    results and the dead letters as well.
    """

    source: LettersInFiles | LettersInTable | LettersInSubscription
    selection: Selection
    filters: tuple[str, ...]
    messages: MessageConfig
    of_messages: tuple[str, ...]
    output_topic: str | None
    dead_letter_topic: str | None


def replay_config(parsed: Parsed) -> ReplayConfig:
    """The flags of a replay -> what it is asked to do. Raises UsageError."""
    check_replay(parsed)
    flags, sinks = parsed.get(ReplayOptions), sinks_of(parsed.get(SinkOptions))
    filters = [(name, getattr(flags, name)) for name in FILTERS]
    return ReplayConfig(
        pipeline="replay",
        source=_source(flags),
        selection=select(flags),
        filters=tuple(
            f"--{name} {value if isinstance(value, str) else ','.join(sorted(value))}"
            for name, value in filters
            if value is not None
        ),
        messages=MessageConfig(
            kind=flags.message_format,
            avro_schema=flags.avro_schema,
            max_bytes=flags.max_message_bytes,
            id_column=flags.id_column,
            window_seconds=flags.window_seconds,
        ),
        of_messages=tuple(
            f.name
            for f in dataclasses.fields(flags)
            if f.name in _OF_MESSAGES and getattr(flags, f.name) != f.default
        ),
        output_topic=flags.output_topic,
        dead_letter_topic=flags.dead_letter_topic,
        model=ModelConfig.of(
            parsed.get(ModelOptions), parsed.get(SinkOptions).output_schema, BATCH_ROWS
        ),
        predictor=predictor_of(parsed),
        sinks=sinks,
        letter_sinks=letter_sinks_of(parsed.get(FailureOptions), sinks),
        max_dead_letter_share=parsed.get(FailureOptions).max_dead_letter_share,
        cloud=parsed.get(CloudOptions),
        run=parsed.get(RunOptions),
    )


def _source(flags: ReplayOptions) -> LettersInFiles | LettersInTable | LettersInSubscription:
    """Flags that name one source -> it."""
    if flags.input_table is not None:
        return LettersInTable(name=flags.input_table)
    if flags.input_subscription is not None:
        return LettersInSubscription(
            subscription=flags.input_subscription, limit=flags.max_messages
        )
    return LettersInFiles(patterns=flags.input_files or ())
