"""What each pipeline cannot do without, and which of its flags do not go together."""

from __future__ import annotations

from typing import Any

from pipelines.batch.destinations import writes_bigquery
from pipelines.batch.sources import reads_bigquery
from pipelines.options import (
    EndpointOptions,
    ModelOptions,
    SinkOptions,
    SourceOptions,
    StreamFailureOptions,
    StreamSinkOptions,
    StreamSourceOptions,
)
from pipelines.options.flag import Parsed, require
from pipelines.options.idle_flags import check_idle_flags
from pipelines.stream.subscription import check_source


def require_flags(name: str, parsed: Parsed, program: str | None = None, **also: Any) -> None:
    """A pipeline's name and flags -> nothing, or one UsageError with all that are missing.

    Then the others are looked at: a template is not launched with what the launcher would refuse.

    program: what is to be typed, if not the pipeline's own command. also: what it needs besides.
    """
    streams = name.startswith("stream")
    flags = _of_stream(parsed) if streams else _of_batch(parsed)
    require(program or name, **flags, **also)
    check_idle_flags(parsed)
    if streams:
        topics = [parsed.get(StreamSinkOptions).output_topic]
        topics += [parsed.get(StreamFailureOptions).dead_letter_topic]
        check_source(parsed.get(StreamSourceOptions), topics)
    else:
        reads_bigquery(parsed)
        writes_bigquery(parsed)


def _of_batch(parsed: Parsed) -> dict[str, Any]:
    source, sink = parsed.get(SourceOptions), parsed.get(SinkOptions)
    return {
        "input_files": source.input_files or source.input_table or source.input_query,
        "model": parsed.get(ModelOptions).model,
        **_endpoint(parsed),
        "output_files": sink.output_files or sink.output_table,
    }


def _of_stream(parsed: Parsed) -> dict[str, Any]:
    source, sink = parsed.get(StreamSourceOptions), parsed.get(StreamSinkOptions)
    failures = parsed.get(StreamFailureOptions)
    letters = failures.dead_letter_topic or failures.dead_letter_table or failures.dead_letter_files
    return {
        "input_subscription": source.input_subscription or source.input_topic,
        "model": parsed.get(ModelOptions).model,
        **_endpoint(parsed),
        "output_topic": sink.output_topic or sink.output_table or sink.output_files,
        "dead_letter_topic": letters or sink.output_table,
    }


def _endpoint(parsed: Parsed) -> dict[str, Any]:
    flags = parsed.find(EndpointOptions)
    return {} if flags is None else {"endpoint": flags.endpoint or flags.endpoint_url}
