"""From flags to the dead letters that are replayed, looked at before the run.

Letters of files and tables stay where they are. A subscription's are held by this
process, and gone from there once their rows are written.
"""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace

from apache_beam.options.pipeline_options import PipelineOptions

from cloud.clients import Cloud
from cloud.errors import retry, told_as
from common.errors import InputError, UsageError, nearest
from pipelines.beam_args import runs_in_process
from pipelines.options import ReplayOptions, RunOptions
from pipelines.options.flag import Parsed
from pipelines.stream.subscription import HELD, hidden_seconds
from transforms.bigquery.schema import TableName
from transforms.bigquery.source import BigQuerySource, at_one_moment
from transforms.dead_letters.letters import (
    UNREPLAYABLE,
    Letter,
    Selection,
    from_message,
    moment,
    read_letter,
)
from transforms.dead_letters.read import LetterFiles, Letters, LetterTable
from transforms.failures import REASONS, utc_now
from transforms.files.writers import to_json_line
from transforms.json_rows.decode import content_id
from transforms.messages.lease import PATIENCE_SECONDS, Lease, leased
from transforms.messages.message import Message

SOURCES = ("input_files", "input_table", "input_subscription")
FILTERS = ("reason", "stage", "since", "pipeline", "replayed_run_id")
STAGES = ("decode", "validate", "infer", "encode")


@dataclass(frozen=True)
class Replay:
    """What is replayed. names: sources and filters, for the report."""

    letters: Letters
    selection: Selection
    names: tuple[str, ...]

    @property
    def run_id(self) -> str:
        """The id of the run that replays it."""
        return self.selection.run_id or ""


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
                f"--stage: {stage!r} is no stage{nearest(stage, STAGES)}; "
                f"expected {', '.join(STAGES)}"
            )
    for reason in flags.reason or ():
        if reason not in REASONS:
            raise UsageError(
                f"--reason: {reason!r} is no reason{nearest(reason, REASONS)}; expected "
                f"{', '.join(REASONS)}"
            )
    try:
        since = None if flags.since is None else moment(flags.since)
    except ValueError as error:
        raise UsageError(
            f"--since: {flags.since!r}: expected a time as 2026-11-20T12:00:00Z, or a day"
        ) from error
    return Selection(flags.reason, flags.stage, since, flags.pipeline, flags.replayed_run_id)


def check_source(flags: ReplayOptions, options: PipelineOptions) -> None:
    """Flags -> nothing, or UsageError unless they name one source that this runner can read."""
    given = [f"--{name}" for name in SOURCES if getattr(flags, name) is not None]
    if len(given) > 1:
        raise UsageError(f"{' and '.join(given)}: expected one source")
    if flags.input_subscription is not None and not runs_in_process(options):
        raise UsageError(
            "--input_subscription is read by this process, which holds the messages until their "
            "rows are written: leave --runner out, or let a stream write dead letters to a table"
        )


@contextlib.contextmanager
def open_letters(parsed: Parsed, selection: Selection, cloud: Cloud | None) -> Iterator[Replay]:
    """Flags -> what is replayed; of a subscription, gone from there if the block ends well."""
    flags = parsed.get(ReplayOptions)
    filters = [(name, getattr(flags, name)) for name in FILTERS]
    told = tuple(
        f"--{name} {value if isinstance(value, str) else ','.join(sorted(value))}"
        for name, value in filters
        if value is not None
    )
    run_id = parsed.get(RunOptions).run_id
    if flags.input_subscription is not None and cloud is not None:
        with _pull(flags, selection, run_id, cloud) as (letters, chosen):
            yield Replay(letters, chosen, (flags.input_subscription, *told))
        return
    letters, sources = _at_rest(flags, selection, cloud)
    names = (*sources, *told)
    own = run_id or derived_run_id(names)
    yield Replay(letters, replace(selection, run_id=own), names)


def derived_run_id(parts: tuple[str, ...], name: str = "replay") -> str:
    """What is replayed -> a run id: the same replay, run twice, replaces its first rows."""
    return f"{name}-{content_id(chr(0).join(parts).encode())[:12]}"


def _at_rest(
    flags: ReplayOptions, selection: Selection, cloud: Cloud | None
) -> tuple[Letters, tuple[str, ...]]:
    """Flags of files or a table -> the letters, and the names of their sources."""
    if flags.input_table is None or cloud is None:
        patterns = flags.input_files or ()
        return LetterFiles(patterns), patterns
    table = TableName.parse(flags.input_table, "input_table", cloud.project)
    source = at_one_moment(BigQuerySource(cloud, table))
    moment, rows = source.snapshot or utc_now(), source.rows
    return LetterTable(cloud, table, moment, selection.since, rows), (str(table),)


@contextlib.contextmanager
def _pull(
    flags: ReplayOptions, selection: Selection, run_id: str | None, cloud: Cloud
) -> Iterator[tuple[Letters, Selection]]:
    """Flags of a subscription -> its letters, in a file; those taken are acknowledged at the end.

    The run id is derived from them, a given one followed by what is derived: a subscription
    never holds the same ones again, and rows of an earlier replay must not be replaced by
    those of another.
    """
    name = flags.input_subscription or ""
    _check_subscription(name, flags, cloud)
    hidden = hidden_seconds(name, cloud)
    taken, keys, left = [], set(), 0
    with leased(cloud, name) as lease, tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "letters.jsonl")
        with open(path, "wb") as file:
            for message in _pulled(lease, flags.max_messages, name, hidden):
                record = from_message(message)
                line = b"" if record is None else to_json_line(record)
                letter = _letter(line, name)
                if letter is None or not selection.takes(letter):
                    left += 1
                    continue
                file.write(line)
                taken.append(message.message_id)
                keys.add(letter.key)
        if left:
            print(
                f"{left:,} messages stay in {name}: no dead letters, or left out", file=sys.stderr
            )
        own = derived_run_id(tuple(sorted(keys)), run_id or "replay")
        yield LetterFiles((path,)), replace(selection, run_id=own, own=True)
        lease.acknowledge(taken)


def _pulled(lease: Lease, limit: int, name: str, hidden: float) -> Iterator[Message]:
    """A lease -> its messages; where none comes, those that another reader may still hold."""
    first = next(found := lease.pull(limit), None)
    if first is None and hidden > PATIENCE_SECONDS:
        left = hidden - PATIENCE_SECONDS
        print(
            f"no message of {name} came within {PATIENCE_SECONDS:,.0f} s: waiting {left:,.0f} s "
            f"more, {HELD}",
            file=sys.stderr,
        )
        first = next(found := lease.pull(limit, left), None)
    if first is not None:
        yield first
        yield from found


def _letter(line: bytes, place: str) -> Letter | None:
    """A line that was made of a message -> its letter, None if it was no dead letter."""
    try:
        return read_letter(line, place)
    except InputError:
        return None


def _check_subscription(name: str, flags: ReplayOptions, cloud: Cloud) -> None:
    with told_as(InputError, f"subscription {name} cannot be read"):
        found = cloud.subscriber().get_subscription(
            subscription=name, retry=retry(cloud.retry_seconds)
        )
    if found.topic == flags.output_topic:
        raise UsageError(
            f"{found.topic} is the topic of {name} and --output_topic: scored rows are no dead "
            "letters; choose another topic"
        )
