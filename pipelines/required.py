"""What each pipeline cannot do without, told of all that is missing at once."""

from __future__ import annotations

from typing import Any

from pipelines.flags import Parsed, require
from pipelines.options import (
    EndpointOptions,
    ModelOptions,
    SinkOptions,
    SourceOptions,
    StreamFailureOptions,
    StreamSinkOptions,
    StreamSourceOptions,
)


def require_flags(name: str, parsed: Parsed, program: str | None = None, **also: Any) -> None:
    """A pipeline's name and flags -> nothing, or one UsageError with all that are missing.

    program: what is to be typed, if not the pipeline's own command. also: what it needs besides.
    """
    flags = _of_stream(parsed) if name.startswith("stream") else _of_batch(parsed)
    require(program or name, **flags, **also)


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
