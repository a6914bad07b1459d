"""Which flags go together: an example of each rule, with the message that a user reads."""

from typing import Any

import pytest

from common.errors import UsageError
from pipelines.batch.config import (
    Files,
    FilesSink,
    Query,
    Table,
    TableSink,
    batch_config,
)
from pipelines.batch_local import COMMAND as BATCH
from pipelines.batch_vertex import COMMAND as BATCH_VERTEX
from pipelines.command import Command
from pipelines.options import DeviceOptions, EndpointOptions
from pipelines.options.flag import Parsed, parse_flags
from pipelines.options.rules import check_batch, check_replay, check_stream
from pipelines.replay.command import COMMAND as REPLAY
from pipelines.replay.config import LettersInFiles as LetterFiles
from pipelines.replay.config import LettersInSubscription, replay_config
from pipelines.replay.config import LettersInTable as LetterTable
from pipelines.stream.config import OwnSubscription, Subscription, stream_config
from pipelines.stream_local import COMMAND as STREAM
from pipelines.stream_vertex import COMMAND as STREAM_VERTEX
from transforms.files.csv.dialect import PLAIN, Dialect

IN, OUT, SUB = "projects/p/topics/in", "projects/p/topics/out", "projects/p/subscriptions/s"
NEEDED: dict[str, dict[str, str]] = {
    "batch_local": {"input_files": "/f", "model": "/m", "output_files": "/o"},
    "batch_vertex": {"input_files": "/f", "model": "/m", "output_files": "/o", "endpoint": "e"},
    "stream_local": {
        "input_subscription": SUB,
        "model": "/m",
        "output_topic": OUT,
        "dead_letter_files": "/d",
    },
    "stream_vertex": {
        "input_subscription": SUB,
        "model": "/m",
        "output_topic": OUT,
        "dead_letter_files": "/d",
        "endpoint": "e",
    },
    "replay": {"input_files": "/f", "model": "/m", "output_files": "/o"},
}


def flags(command: Command, **changed: str | None) -> Parsed:
    """The flags that a command needs, with changes. A flag that is None is left out."""
    given = {**NEEDED[command.name], **changed}
    argv = [text for name, value in given.items() if value for text in (f"--{name}", value)]
    return parse_flags(command.name, command.about, command.options, argv)


def check(command: Command, parsed: Parsed) -> None:
    if command is REPLAY:
        check_replay(parsed)
    else:
        (check_stream if command.name.startswith("stream") else check_batch)(command.name, parsed)


@pytest.mark.parametrize(
    "command", [BATCH, BATCH_VERTEX, STREAM, STREAM_VERTEX, REPLAY], ids=lambda c: c.name
)
def test_the_flags_that_a_command_needs_are_enough(command: Command) -> None:
    check(command, flags(command))


@pytest.mark.parametrize(
    ("command", "changed", "message"),
    [
        # Missing.
        (
            BATCH,
            {"model": None},
            "missing --model; for example: python -m pipelines.batch_local --input",
        ),
        (
            BATCH,
            {"input_files": None, "output_files": None},
            "missing --input_files (or --input_table, --input_query), "
            "--output_files (or --output_table); for example: ",
        ),
        (BATCH_VERTEX, {"endpoint": None}, "missing --endpoint (or --endpoint_url); for example: "),
        (
            STREAM,
            {"input_subscription": None},
            "missing --input_subscription (or --input_topic); for example: ",
        ),
        (
            STREAM,
            {"output_topic": None},
            "missing --output_topic (or --output_table, --output_files); for example: ",
        ),
        (
            STREAM,
            {"dead_letter_files": None},
            "missing --dead_letter_topic (or --dead_letter_table, --dead_letter_files); "
            "for example: ",
        ),
        (
            REPLAY,
            {"input_files": None},
            "missing --input_files (or --input_table, --input_subscription); for example: ",
        ),
        # The example in the message has the flags that were given.
        (
            BATCH,
            {"input_files": None, "input_table": "p.d.t", "model": None},
            "missing --model; for example: python -m pipelines.batch_local --input_table "
            "p.d.t --model MODEL --output_files /o",
        ),
        (
            STREAM_VERTEX,
            {"endpoint": None, "endpoint_url": "http://h/x", "model": None},
            "missing --model; for example: python -m pipelines.stream_vertex --input_subscription "
            f"{SUB} --model MODEL --endpoint_url http://h/x --output_topic {OUT} "
            "--dead_letter_files /d",
        ),
        (
            REPLAY,
            {"input_files": None, "input_subscription": SUB, "output_files": None},
            "missing --output_files (or --output_table); for example: python -m pipelines.replay "
            f"--input_subscription {SUB} --model /m --output_files OUTPUT_FILES",
        ),
        # Contradictions.
        (
            BATCH,
            {"input_table": "p.d.t"},
            "--input_files and --input_table cannot be combined: use only one of them",
        ),
        (
            BATCH,
            {"input_files": None, "input_table": "p.d.t", "input_query": "SELECT 1"},
            "--input_table and --input_query cannot be combined: use only one of them",
        ),
        (
            REPLAY,
            {"input_subscription": SUB},
            "--input_files and --input_subscription cannot be combined: use only one of them",
        ),
        (
            STREAM,
            {"input_topic": IN, "create_subscription": "true"},
            "--input_subscription and --input_topic cannot be combined: use only one of them",
        ),
        (
            STREAM,
            {"input_subscription": None, "input_topic": IN},
            "--input_topic needs a subscription: add --create_subscription to create one for this "
            "run, or use --input_subscription instead",
        ),
        (
            STREAM,
            {"input_subscription": None, "input_topic": OUT, "create_subscription": "true"},
            f"{OUT} is both the input and an output: choose another topic",
        ),
        (
            STREAM,
            {"dead_letter_topic": OUT},
            f"--dead_letter_topic and --output_topic are both {OUT}: choose another topic for one "
            "of them",
        ),
        (STREAM, {"message_format": "avro"}, "--message_format avro needs --avro_schema"),
        (
            STREAM,
            {"avro_revisions": "r1=a.avsc"},
            "--avro_revisions needs --message_format avro, got json",
        ),
        (
            REPLAY,
            {"avro_schema": "{}"},
            "--avro_schema needs --message_format avro, got json",
        ),
        # No effect.
        (
            BATCH,
            {"row_restriction": "a > 1"},
            "--row_restriction has no effect without --input_t",
        ),
        (
            BATCH,
            {"max_bytes_billed": "9"},
            "--max_bytes_billed has no effect without --input_query",
        ),
        (
            BATCH,
            {"read_method": "export"},
            "--read_method has no effect without --input_query or --input_table: add one of them, "
            "or leave out --read_method",
        ),
        (
            BATCH,
            {"input_files": None, "input_table": "p.d.t", "input_format": "csv"},
            "--input_format has no effect without --input_files",
        ),
        (
            BATCH,
            {"cluster_by": "row_id"},
            "--cluster_by has no effect without --output_table: add it, or leave out --cluster_by",
        ),
        (
            BATCH,
            {"write_disposition": "truncate"},
            "--write_disposition has no effect without --output_table",
        ),
        (
            BATCH,
            {"output_files": None, "output_table": "a.b.c", "output_format": "csv"},
            "--output_format has no effect without --output_files",
        ),
        (
            BATCH,
            {"output_schema": "reference", "output_fields": "a"},
            "--output_fields has no effect with --output_schema, which sets the fields itself: "
            "leave out --output_fields",
        ),
        (
            REPLAY,
            {"device": "cpu", "endpoint_url": "http://h"},
            "--device has no effect with --endpoint_url, which runs the model: leave out --device",
        ),
        (REPLAY, {"endpoint_cache_rows": "5"}, "--endpoint_cache_rows has no effect without --end"),
        (
            REPLAY,
            {"max_messages": "5"},
            "--max_messages has no effect without --input_subscription",
        ),
        (
            BATCH_VERTEX,
            {"endpoint": "projects/p/locations/l/endpoints/1", "endpoint_project": "q"},
            "--endpoint_project has no effect with the full name in --endpoint: leave out",
        ),
        (
            BATCH_VERTEX,
            {"endpoint": None, "endpoint_url": "http://h", "endpoint_project": "p"},
            "--endpoint_project has no effect without --endpoint:",
        ),
        (
            STREAM,
            {"dead_letter_files": None, "dead_letter_topic": IN, "file_seconds": "5"},
            "--file_seconds has no effect without --output_files or --dead_letter_files",
        ),
        (STREAM, {"create_subscription": "true"}, "--create_subscription has no effect without --"),
        (
            STREAM,
            {"output_topic": None, "output_files": "out", "keep_ordering_keys": "true"},
            "--keep_ordering_keys has no effect without --output_topic: add it",
        ),
    ],
    ids=lambda value: value.name if isinstance(value, Command) else "",
)
def test_flags_that_do_not_go_together_are_rejected(
    command: Command, changed: dict[str, str | None], message: str
) -> None:
    with pytest.raises(UsageError) as caught:
        check(command, flags(command, **changed))
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("changed", "source"),
    [
        ({}, Files(patterns=("/f",), file_format=None, dialect=PLAIN)),
        ({"input_format": "csv"}, Files(patterns=("/f",), file_format="csv", dialect=PLAIN)),
        (
            {"input_files": None, "input_table": "p.d.t", "row_restriction": "a > 1"},
            Table(name="p.d.t", row_restriction="a > 1", method="direct"),
        ),
        (
            {"input_files": None, "input_query": "SELECT 1", "read_method": "export"},
            Query(sql="SELECT 1", max_bytes=None, method="export"),
        ),
    ],
)
def test_a_batch_run_has_the_source_that_its_flags_name(
    changed: dict[str, str | None], source: Any
) -> None:
    assert batch_config("batch_local", flags(BATCH, **changed)).source == source


def test_row_groups_are_cut_if_the_user_says_so_or_an_endpoint_runs_the_model() -> None:
    def range_rows(command: Any, **changed: str) -> int | None:
        return batch_config(command.name, flags(command, **changed)).range_rows

    assert range_rows(BATCH) is None
    assert range_rows(BATCH, range_rows="9") == 9
    assert range_rows(BATCH_VERTEX) == 131_072
    assert range_rows(BATCH_VERTEX, range_rows="9") == 9


@pytest.mark.parametrize(
    ("changed", "dialect"),
    [
        ({"csv_delimiter": "tab"}, Dialect(delimiter="\t")),
        ({"csv_delimiter": ";", "csv_quote": "none"}, Dialect(delimiter=";", quote=None)),
        ({"csv_quote": "'", "csv_escape": "\\"}, Dialect(quote="'", escape="\\")),
        (
            {"csv_encoding": "UTF16", "csv_multiline": "true"},
            Dialect(encoding="utf-16", multiline=True),
        ),
        ({"csv_encoding": "utf-8-sig"}, PLAIN),
    ],
)
def test_a_csv_file_is_written_as_the_flags_say(changed: dict[str, str], dialect: Dialect) -> None:
    source = batch_config("batch_local", flags(BATCH, **changed)).source
    assert isinstance(source, Files)
    assert source.dialect == dialect


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"csv_delimiter": '"'}, "--csv_delimiter, --csv_quote and --csv_escape must be different"),
        ({"csv_quote": ","}, "--csv_delimiter, --csv_quote and --csv_escape must be different"),
        ({"csv_quote": "none", "csv_multiline": "true"}, "--csv_multiline has no effect with"),
        ({"csv_encoding": "utf-9"}, "--csv_encoding: unknown encoding 'utf-9'"),
        ({"csv_encoding": "base64"}, "--csv_encoding: unknown encoding 'base64'"),
        ({"csv_delimiter": ";;"}, "--csv_delimiter must be one ASCII character, tab or space"),
        (
            {"input_files": None, "input_table": "p.d.t", "csv_escape": "\\"},
            "--csv_escape has no effect without --input_files",
        ),
    ],
)
def test_flags_of_csv_files_that_cannot_be_are_rejected(
    changed: dict[str, str | None], message: str
) -> None:
    with pytest.raises(UsageError) as caught:
        batch_config("batch_local", flags(BATCH, **changed))
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("changed", "sinks", "letters"),
    [
        (
            {},
            (FilesSink(folder="/o", file_format="parquet"),),
            (FilesSink(folder="/o", file_format="jsonl"),),
        ),
        (
            {"output_files": None, "output_table": "p.d.t", "cluster_by": "a,b"},
            (TableSink(name="p.d.t", flag="output_table", cluster_by=("a", "b")),),
            (TableSink(name="p.d.t_dead_letters", flag="dead_letter_table"),),
        ),
        (
            {"output_table": "p.d.t", "dead_letter_table": "p.d.l", "output_format": "csv"},
            (
                FilesSink(folder="/o", file_format="csv"),
                TableSink(name="p.d.t", flag="output_table"),
            ),
            (TableSink(name="p.d.l", flag="dead_letter_table"),),
        ),
    ],
)
def test_a_batch_run_has_the_sinks_that_its_flags_name(
    changed: dict[str, str | None], sinks: Any, letters: Any
) -> None:
    config = batch_config("batch_local", flags(BATCH, **changed))
    assert (config.sinks, config.letter_sinks) == (sinks, letters)


def test_a_model_runs_in_the_worker_or_behind_the_given_endpoint() -> None:
    assert isinstance(batch_config("batch_local", flags(BATCH)).predictor, DeviceOptions)
    vertex = batch_config("batch_vertex", flags(BATCH_VERTEX)).predictor
    assert isinstance(vertex, EndpointOptions)
    assert isinstance(replay_config(flags(REPLAY)).predictor, DeviceOptions)
    at = replay_config(flags(REPLAY, endpoint_url="http://h")).predictor
    assert isinstance(at, EndpointOptions)


def test_a_stream_reads_an_existing_subscription_or_creates_one() -> None:
    existing = stream_config("stream_local", flags(STREAM))
    assert (existing.source, existing.project) == (Subscription(name=SUB), "p")
    changed = {"input_subscription": None, "input_topic": IN, "create_subscription": "true"}
    own = stream_config("stream_local", flags(STREAM, **changed))
    assert (own.source, own.project) == (OwnSubscription(topic=IN), "p")


@pytest.mark.parametrize(
    ("changed", "source"),
    [
        ({}, LetterFiles(patterns=("/f",))),
        ({"input_files": None, "input_table": "p.d.t"}, LetterTable(name="p.d.t")),
        (
            {"input_files": None, "input_subscription": SUB, "max_messages": "5"},
            LettersInSubscription(subscription=SUB, limit=5),
        ),
    ],
)
def test_a_replay_has_the_source_that_its_flags_name(
    changed: dict[str, str | None], source: Any
) -> None:
    assert replay_config(flags(REPLAY, **changed)).source == source
