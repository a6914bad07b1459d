"""The configuration of a stream: its source, the format of its messages, its model and sinks."""

from __future__ import annotations

from dataclasses import dataclass

from pipelines.config import ModelConfig, ScoringConfig, predictor_of
from pipelines.options import (
    CloudOptions,
    ModelOptions,
    StreamFailureOptions,
    StreamRunOptions,
    StreamSinkOptions,
    StreamSourceOptions,
)
from pipelines.options.flag import Parsed
from pipelines.options.model import STREAM_BATCH_ROWS
from pipelines.options.rules import check_stream
from pipelines.options.stream import MessageKind


@dataclass(frozen=True, kw_only=True)
class Subscription:
    """An existing subscription, named projects/PROJECT/subscriptions/NAME."""

    name: str


@dataclass(frozen=True, kw_only=True)
class OwnSubscription:
    """A subscription that the run creates for a topic, named projects/PROJECT/topics/NAME."""

    topic: str


@dataclass(frozen=True, kw_only=True)
class MessageConfig:
    """How messages are read.

    Attributes:
        avro_schema: The schema as JSON, or `@` and the path of a file that holds it.
        avro_revisions: The schemas of other revisions, each as ID=PATH.
        max_bytes: The size in bytes above which a message becomes a dead letter.
        id_column: The field with the row id; None for the id of the message.
        window_seconds: The length of the windows whose bounds are written with each row; None for
            rows without a window.
    """

    kind: MessageKind
    avro_schema: str | None
    avro_revisions: tuple[str, ...]
    max_bytes: int
    id_column: str | None
    window_seconds: int | None


@dataclass(frozen=True, kw_only=True)
class StreamConfig(ScoringConfig):
    """The configuration of a stream.

    Attributes:
        allow_shared: Whether the subscription may have another reader.
        deduplicate_seconds: For how long a message id is remembered, to drop duplicates; None to
            keep them.
        deduplicate_attribute: The attribute that identifies a message; None for its id.
        max_batch_wait_ms: How long a message may wait for others, in milliseconds; None to score
            each bundle by itself.
        readers: How many requests for messages are sent at once; None for the default.
        sinks: Where rows are written.
        letter_sinks: Where dead letters are written.
    """

    source: Subscription | OwnSubscription
    allow_shared: bool
    messages: MessageConfig
    deduplicate_seconds: int | None
    deduplicate_attribute: str | None
    max_batch_wait_ms: int | None
    readers: int | None
    sinks: StreamSinkOptions
    letter_sinks: StreamFailureOptions
    run: StreamRunOptions

    @property
    def project(self) -> str:
        """The project of the subscription or of its topic."""
        source = self.source
        return (source.name if isinstance(source, Subscription) else source.topic).split("/")[1]


def stream_config(pipeline: str, parsed: Parsed) -> StreamConfig:
    """Return the configuration that a stream's flags describe.

    Args:
        pipeline: The name of the pipeline, such as `stream_local`.
        parsed: All flags.

    Raises:
        UsageError: A flag is missing or invalid.
    """
    check_stream(pipeline, parsed)
    flags, sinks = parsed.get(StreamSourceOptions), parsed.get(StreamSinkOptions)
    source: Subscription | OwnSubscription
    if flags.input_topic is not None:
        source = OwnSubscription(topic=flags.input_topic)
    else:
        source = Subscription(name=str(flags.input_subscription))
    return StreamConfig(
        pipeline=pipeline,
        source=source,
        allow_shared=flags.allow_shared_subscription,
        messages=MessageConfig(
            kind=flags.message_format,
            avro_schema=flags.avro_schema,
            avro_revisions=flags.avro_revisions or (),
            max_bytes=flags.max_message_bytes,
            id_column=flags.id_column,
            window_seconds=flags.window_seconds,
        ),
        deduplicate_seconds=flags.deduplicate_seconds,
        deduplicate_attribute=flags.deduplicate_attribute,
        max_batch_wait_ms=flags.max_batch_wait_ms,
        readers=flags.stream_readers,
        model=ModelConfig.of(parsed.get(ModelOptions), sinks.output_schema, STREAM_BATCH_ROWS),
        predictor=predictor_of(parsed),
        sinks=sinks,
        letter_sinks=parsed.get(StreamFailureOptions),
        cloud=parsed.get(CloudOptions),
        run=parsed.get(StreamRunOptions),
    )
