"""The configuration of a replay, built from the flags: its dead letters and its sinks."""

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

# Flags that apply only to dead letters of streams, which are messages.
_OF_MESSAGES = (
    "message_format",
    "avro_schema",
    "avro_revisions",
    "max_message_bytes",
    "window_seconds",
)


@dataclass(frozen=True, kw_only=True)
class LettersInFiles:
    """Files of dead letters: paths, globs or folders."""

    patterns: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class LettersInTable:
    """A BigQuery table of dead letters."""

    name: str


@dataclass(frozen=True, kw_only=True)
class LettersInSubscription:
    """Dead letters in a subscription, of which at most `limit` messages are read."""

    subscription: str
    limit: int


@dataclass(frozen=True, kw_only=True)
class ReplayConfig(RunConfig):
    """The configuration of a replay.

    Attributes:
        selection: Which dead letters are replayed.
        filters: The filter flags with their values, for the report.
        messages: How to read the messages of a stream.
        of_messages: The given flags that apply only to dead letters of streams.
        output_topic: A topic to which the results are published as well, or None.
        dead_letter_topic: A topic to which the dead letters are published as well, or None.
    """

    source: LettersInFiles | LettersInTable | LettersInSubscription
    selection: Selection
    filters: tuple[str, ...]
    messages: MessageConfig
    of_messages: tuple[str, ...]
    output_topic: str | None
    dead_letter_topic: str | None


def replay_config(parsed: Parsed) -> ReplayConfig:
    """Build the configuration of a replay.

    Raises:
        UsageError: If flags are missing, invalid, contradict each other, or have no effect.
    """
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
            avro_revisions=flags.avro_revisions or (),
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
        report_html=parsed.get(SinkOptions).report_html,
        report_examples=parsed.get(SinkOptions).report_examples,
    )


def _source(flags: ReplayOptions) -> LettersInFiles | LettersInTable | LettersInSubscription:
    """Return the one source that the flags name."""
    if flags.input_table is not None:
        return LettersInTable(name=flags.input_table)
    if flags.input_subscription is not None:
        return LettersInSubscription(
            subscription=flags.input_subscription, limit=flags.max_messages
        )
    return LettersInFiles(patterns=flags.input_files or ())
