"""Rules between flags: which are missing, which contradict, and which would have no effect.

The functions look only at the flags. The pipelines look at the files and tables that they name.
"""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from common.command_names import as_typed
from common.errors import UsageError
from pipelines.options.batch import SinkOptions, SourceOptions
from pipelines.options.flag import Parsed, as_text
from pipelines.options.model import EndpointOptions, ModelOptions
from pipelines.options.replay import ReplayOptions
from pipelines.options.stream import StreamFailureOptions, StreamSinkOptions, StreamSourceOptions

CSV_FLAGS = ("csv_delimiter", "csv_quote", "csv_escape", "csv_encoding", "csv_multiline")
# Flags that have an effect only together with one of the others.
_NEEDS = {
    "endpoint_project": ("endpoint",),
    "endpoint_location": ("endpoint",),
    "instance_format": ("endpoint", "endpoint_url"),
    "prepare_at": ("endpoint", "endpoint_url"),
    "endpoint_parameters": ("endpoint", "endpoint_url"),
    "endpoint_request_rows": ("endpoint", "endpoint_url"),
    "endpoint_concurrency": ("endpoint", "endpoint_url"),
    "endpoint_timeout_seconds": ("endpoint", "endpoint_url"),
    "endpoint_cache_rows": ("endpoint", "endpoint_url"),
    "skip_endpoint_check": ("endpoint", "endpoint_url"),
    "file_seconds": ("output_files", "dead_letter_files"),
    "output_format": ("output_files",),
    "input_format": ("input_files",),
    **dict.fromkeys(
        (*CSV_FLAGS, "partition_filter", "table_version", "range_rows"), ("input_files",)
    ),
    "row_restriction": ("input_table",),
    "query_dataset": ("input_query", "row_restriction"),
    "read_method": ("input_query", "input_table"),
    "max_bytes_billed": ("input_query",),
    "cluster_by": ("output_table",),
    "write_disposition": ("output_table",),
    "report_examples": ("report_html",),
    "create_subscription": ("input_topic",),
    "keep_ordering_keys": ("output_topic",),
    "max_messages": ("input_subscription",),
}
# Flags that have no effect together with one of the others, and why.
_IDLE_BESIDE = {
    **dict.fromkeys(
        ("device", "precision", "compile"), (("endpoint", "endpoint_url"), "which runs the model")
    ),
    **dict.fromkeys(
        ("output_fields", "row_timings"), (("output_schema",), "which sets the fields itself")
    ),
}
# Groups of flags of which a command takes at most one.
_ONE_OF = (
    ("input_files", "input_table", "input_query"),
    ("input_files", "input_table", "input_subscription"),
    ("input_subscription", "input_topic"),
)
# Flags that can replace a missing one.
_ALTERNATIVES = {
    "input_files": ("input_table", "input_query"),
    "replay input_files": ("input_table", "input_subscription"),
    "output_files": ("output_table",),
    "input_subscription": ("input_topic",),
    "output_topic": ("output_table", "output_files"),
    "endpoint": ("endpoint_url",),
    "dead_letter_topic": ("dead_letter_table", "dead_letter_files"),
}


def check_batch(pipeline: str, parsed: Parsed, program: str | None = None, **also: Any) -> None:
    """Raise UsageError unless the flags of a batch pipeline are complete and go together.

    Args:
        pipeline: The name of the pipeline, such as `batch_local`.
        parsed: The command line.
        program: The command that errors name, if it is not the pipeline itself.
        also: Other flags that the command needs, by name. None marks a missing one.

    Raises:
        UsageError: If a flag is missing, contradicts another, or would have no effect.
    """
    source, sink = parsed.get(SourceOptions), parsed.get(SinkOptions)
    require(
        program or pipeline,
        all_given(parsed) | also,
        input_files=source.input_files or source.input_table or source.input_query,
        model=parsed.get(ModelOptions).model,
        **_endpoint(parsed),
        output_files=sink.output_files or sink.output_table,
        **also,
    )
    check_together(parsed)


def check_stream(pipeline: str, parsed: Parsed, program: str | None = None, **also: Any) -> None:
    """Raise UsageError unless the flags of a stream are complete and go together.

    Args:
        pipeline: The name of the pipeline, such as `stream_local`.
        parsed: The command line.
        program: The command that errors name, if it is not the pipeline itself.
        also: Other flags that the command needs, by name. None marks a missing one.

    Raises:
        UsageError: If a flag is missing, contradicts another, or would have no effect.
    """
    source, sink = parsed.get(StreamSourceOptions), parsed.get(StreamSinkOptions)
    letters = parsed.get(StreamFailureOptions)
    places = letters.dead_letter_topic or letters.dead_letter_table or letters.dead_letter_files
    require(
        program or pipeline,
        all_given(parsed) | also,
        input_subscription=source.input_subscription or source.input_topic,
        model=parsed.get(ModelOptions).model,
        **_endpoint(parsed),
        output_topic=sink.output_topic or sink.output_table or sink.output_files,
        dead_letter_topic=places or sink.output_table,
        **also,
    )
    check_together(parsed)
    topic = source.input_topic
    if topic is not None and not source.create_subscription:
        raise UsageError(
            "--input_topic needs a subscription: add --create_subscription to create one for this "
            "run, or use --input_subscription instead"
        )
    if topic is not None and topic in (sink.output_topic, letters.dead_letter_topic):
        raise UsageError(f"{topic} is both the input and an output: choose another topic")
    if sink.output_topic is not None and sink.output_topic == letters.dead_letter_topic:
        raise UsageError(
            f"--dead_letter_topic and --output_topic are both {sink.output_topic}: choose another "
            "topic for one of them"
        )
    _check_avro(source.message_format, source.avro_schema, source.avro_revisions)


def check_replay(parsed: Parsed) -> None:
    """Raise UsageError unless the flags of a replay are complete and go together."""
    flags, sink = parsed.get(ReplayOptions), parsed.get(SinkOptions)
    require(
        "replay",
        all_given(parsed),
        input_files=flags.input_files or flags.input_table or flags.input_subscription,
        model=parsed.get(ModelOptions).model,
        output_files=sink.output_files or sink.output_table,
    )
    check_together(parsed)
    _check_avro(flags.message_format, flags.avro_schema, flags.avro_revisions)


def require(program: str, given: Mapping[str, Any], /, **flags: Any) -> None:
    """Raise UsageError if a flag that the command needs is missing.

    Args:
        program: The command after `pipelines.`, such as `batch_local`.
        given: The flags of the command line with their values, for the example in the message: it
            shows what was given, and not the flag that this replaces.
        flags: The flags that the command needs, by name. None marks a missing one.

    Raises:
        UsageError: If a flag is missing. The message names all missing flags.
    """
    missing = [_with_alternatives(program, name) for name, value in flags.items() if value is None]
    if missing:
        shown = [
            (one, name.upper() if value is None else shlex.quote(as_text(given[one])))
            for name, value in flags.items()
            for one in ([name] if value is None else (name, *_replacing(program, name)))
            if value is None or one in given
        ]
        example = " ".join(f"--{name} {text}" for name, text in shown)
        command = as_typed(f"pipelines.{program}")
        raise UsageError(f"missing {', '.join(missing)}; for example: {command} {example}")


def check_together(parsed: Parsed) -> None:
    """Raise UsageError if flags contradict each other, or if one would have no effect."""
    given = all_given(parsed)
    for names in _ONE_OF:
        both = [f"--{name}" for name in names if name in given]
        if len(both) > 1:
            raise UsageError(f"{' and '.join(both)} cannot be combined: use only one of them")
    for name, others in _NEEDS.items():
        if name in given and given.keys().isdisjoint(others):
            add = "add it" if len(others) == 1 else "add one of them"
            raise UsageError(
                f"--{name} has no effect without {_flags(others)}: {add}, or leave out --{name}"
            )
    for name in ("endpoint_project", "endpoint_location"):
        if name in given and "/" in given["endpoint"]:
            raise UsageError(
                f"--{name} has no effect with the full name in --endpoint: leave out --{name}"
            )
    for name, (others, why) in _IDLE_BESIDE.items():
        if name in given and (other := next((o for o in others if o in given), None)):
            raise UsageError(f"--{name} has no effect with --{other}, {why}: leave out --{name}")


def all_given(parsed: Parsed) -> dict[str, Any]:
    """Return the flags of a command line whose value is not the default, with their values."""
    return {
        f.name: getattr(group, f.name)
        for group in parsed.groups.values()
        for f in dataclasses.fields(group)
        if getattr(group, f.name) != f.default
    }


def _flags(names: Sequence[str]) -> str:
    return " or ".join(f"--{name}" for name in names)


def _replacing(program: str, name: str) -> Sequence[str]:
    """Return the flags that can replace a missing one."""
    return _ALTERNATIVES.get(f"{program} {name}") or _ALTERNATIVES.get(name, ())


def _with_alternatives(program: str, name: str) -> str:
    others = [f"--{other}" for other in _replacing(program, name)]
    return f"--{name} (or {', '.join(others)})" if others else f"--{name}"


def _endpoint(parsed: Parsed) -> dict[str, Any]:
    flags = parsed.find(EndpointOptions)
    return {} if flags is None else {"endpoint": flags.endpoint or flags.endpoint_url}


def _check_avro(message_format: str, schema: str | None, revisions: Sequence[str] | None) -> None:
    if message_format == "avro" and schema is None:
        raise UsageError("--message_format avro needs --avro_schema")
    if message_format != "avro" and schema is not None:
        raise UsageError(f"--avro_schema needs --message_format avro, got {message_format}")
    if message_format != "avro" and revisions:
        raise UsageError(f"--avro_revisions needs --message_format avro, got {message_format}")
