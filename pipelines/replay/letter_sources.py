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

from cloud.clients import Cloud
from cloud.errors import retry, translate_errors
from common.errors import InputError, UsageError
from pipelines.replay.config import (
    LettersInFiles,
    LettersInSubscription,
    LettersInTable,
    ReplayConfig,
)
from pipelines.stream.subscription import HELD, hidden_seconds
from transforms.bigquery.schema import TableName
from transforms.bigquery.source import BigQuerySource, at_one_moment
from transforms.files.writers import to_json_line
from transforms.messages.lease import PATIENCE_SECONDS, Lease, leased
from transforms.messages.message import Message
from transforms.provenance import utc_now
from transforms.replay.letters import (
    Letter,
    Selection,
    from_message,
    read_letter,
)
from transforms.replay.read import LetterFiles, Letters, LetterTable
from transforms.row_ids import content_id


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


@contextlib.contextmanager
def open_letters(config: ReplayConfig, cloud: Cloud | None) -> Iterator[Replay]:
    """A replay and its Cloud -> what is replayed.

    Letters of a subscription are gone from there if the block ends well.
    """
    if isinstance(config.source, LettersInSubscription) and cloud is not None:
        with _pull(config, config.source, cloud) as (letters, chosen):
            yield Replay(letters, chosen, (config.source.subscription, *config.filters))
        return
    letters, sources = _at_rest(config, cloud)
    names = (*sources, *config.filters)
    own = config.run.run_id or derived_run_id(names)
    yield Replay(letters, replace(config.selection, run_id=own), names)


def derived_run_id(parts: tuple[str, ...], name: str = "replay") -> str:
    """What is replayed -> a run id: the same replay, run twice, replaces its first rows."""
    return f"{name}-{content_id(chr(0).join(parts).encode())[:12]}"


def _at_rest(config: ReplayConfig, cloud: Cloud | None) -> tuple[Letters, tuple[str, ...]]:
    """A replay of files or a table -> the letters, and the names of their sources."""
    source = config.source
    if isinstance(source, LettersInFiles):
        return LetterFiles(source.patterns), source.patterns
    if not isinstance(source, LettersInTable) or cloud is None:
        raise TypeError(f"expected files or a table, got {source}")
    table = TableName.parse(source.name, "input_table", cloud.project)
    found = at_one_moment(BigQuerySource(cloud=cloud, table=table))
    moment, rows = found.snapshot or utc_now(), found.rows
    return LetterTable(
        cloud=cloud, table=table, moment=moment, since=config.selection.since, rows=rows
    ), (str(table),)


@contextlib.contextmanager
def _pull(
    config: ReplayConfig, source: LettersInSubscription, cloud: Cloud
) -> Iterator[tuple[Letters, Selection]]:
    """A replay of a subscription -> its letters, in a file; they are acknowledged at the end.

    The run id is derived from them, a given one followed by what is derived: a subscription
    never holds the same ones again, and rows of an earlier replay must not be replaced by
    those of another.
    """
    name, selection = source.subscription, config.selection
    _check_subscription(name, config.output_topic, cloud)
    hidden = hidden_seconds(name, cloud)
    taken, keys, left = [], set(), 0
    with leased(cloud, name) as lease, tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "letters.jsonl")
        with open(path, "wb") as file:
            for message in _pulled(lease, source.limit, name, hidden):
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
        own = derived_run_id(tuple(sorted(keys)), config.run.run_id or "replay")
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


def _check_subscription(name: str, output_topic: str | None, cloud: Cloud) -> None:
    with translate_errors(InputError, f"subscription {name} cannot be read"):
        found = cloud.subscriber().get_subscription(
            subscription=name, retry=retry(cloud.retry_seconds)
        )
    if found.topic == output_topic:
        raise UsageError(
            f"{found.topic} is the topic of {name} and --output_topic: scored rows are no dead "
            "letters; choose another topic"
        )
