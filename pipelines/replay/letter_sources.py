"""The sources of the dead letters of a replay, opened before the run.

Dead letters in files and tables stay there. Those in a subscription are leased by this process and
acknowledged, which removes them, once their rows are written.
"""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from cloud.clients import Cloud
from cloud.errors import retry, translate_errors
from common.errors import InputError, UsageError, suggest
from pipelines.replay.config import (
    LettersInFiles,
    LettersInSubscription,
    LettersInTable,
    ReplayConfig,
)
from pipelines.stream.subscription import HELD, hidden_seconds
from transforms.bigquery.schema import TableName
from transforms.bigquery.source import BigQuerySource, at_one_moment
from transforms.dead_letters import to_letter_line
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

# The most runs that an error lists.
_SHOWN_RUNS = 10


@dataclass(frozen=True)
class Replay:
    """The dead letters of a replay.

    Attributes:
        letters: All dead letters of the source.
        selection: Which of them are replayed.
        names: The sources and the filters, for the report.
        runs: Counts all dead letters of the source by the run id of their runs.
    """

    letters: Letters
    selection: Selection
    names: tuple[str, ...]
    runs: Callable[[], Counter[str]]

    @property
    def run_id(self) -> str:
        """The run id of the replay."""
        return self.selection.run_id or ""


@contextlib.contextmanager
def open_letters(config: ReplayConfig, cloud: Cloud | None) -> Iterator[Replay]:
    """Open the dead letters of a replay for the duration of the block.

    Those of a subscription are acknowledged, which removes them, if the block succeeds.

    Args:
        config: The configuration of the replay.
        cloud: The Cloud that reads a table or a subscription. Not needed for files.

    Raises:
        InputError: If the source cannot be read.
        UsageError: If the subscription belongs to --output_topic, or if the table is misnamed.
    """
    if isinstance(config.source, LettersInSubscription) and cloud is not None:
        with _pull(config, config.source, cloud) as replay:
            yield replay
        return
    letters, sources = _at_rest(config, cloud)
    names = (*sources, *config.filters)
    own = config.run.run_id or derived_run_id(names)
    yield Replay(letters, replace(config.selection, run_id=own), names, letters.runs)


def check_runs(config: ReplayConfig, found: Replay, *, has_letters: bool) -> None:
    """Raise InputError if a run of --replayed_run_id has no dead letters, but others have.

    Args:
        config: The configuration of the replay.
        found: The dead letters.
        has_letters: Whether any dead letter is selected.
    """
    wanted = config.selection.run_ids or ()
    if not wanted or (has_letters and len(wanted) == 1):
        return
    runs = found.runs()
    unknown = next((run for run in wanted if run not in runs), None)
    if unknown is None or not runs:
        return
    places = found.names[: len(found.names) - len(config.filters)]
    shown = [f"{run} ({count:,})" for run, count in runs.most_common(_SHOWN_RUNS)]
    more = f" and {len(runs) - _SHOWN_RUNS:,} others" if len(runs) > _SHOWN_RUNS else ""
    raise InputError(
        f"--replayed_run_id {unknown}: no dead letters of this run in {', '.join(places)}"
        f"{suggest(unknown, runs)}; runs with dead letters: {', '.join(shown)}{more}"
    )


def derived_run_id(parts: tuple[str, ...], name: str = "replay") -> str:
    """Derive a run id from what is replayed, so a replay that is run again replaces its rows.

    Args:
        parts: The texts that identify what is replayed, such as sources and filters.
        name: The start of the run id.
    """
    return f"{name}-{content_id(chr(0).join(parts).encode())[:12]}"


def _at_rest(config: ReplayConfig, cloud: Cloud | None) -> tuple[Letters, tuple[str, ...]]:
    """Return the dead letters in files or in a table, and the names of their sources."""
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
def _pull(config: ReplayConfig, source: LettersInSubscription, cloud: Cloud) -> Iterator[Replay]:
    """Pull the dead letters of a subscription into a file, and acknowledge them at the end.

    The run id is derived from them. A given run id gets the derived part as a suffix, because a
    subscription does not hold the same dead letters again, and a replay must not replace the rows
    of an earlier one.
    """
    name, selection = source.subscription, config.selection
    left: Counter[str] = Counter()
    runs: Counter[str] = Counter()
    _check_subscription(name, config.output_topic, cloud)
    hidden = hidden_seconds(name, cloud)
    replayed, keys = [], set()
    with leased(cloud, name) as lease, tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "letters.jsonl")
        with open(path, "wb") as file:
            for message in _pulled(lease, source.limit, name, hidden):
                record = from_message(message)
                line = b"" if record is None else to_letter_line(record)
                letter = _letter(line, name)
                if letter is None:
                    left["without a whole dead letter"] += 1
                    continue
                runs[letter.run_id] += 1
                if not selection.takes(letter):
                    left[selection.excludes(letter)] += 1
                    continue
                file.write(line)
                replayed.append(message.message_id)
                keys.add(letter.key)
        if left:
            why = ", ".join(f"{count:,} {reason}" for reason, count in sorted(left.items()))
            print(f"{left.total():,} messages stay in {name}: {why}", file=sys.stderr)
        own = derived_run_id(tuple(sorted(keys)), config.run.run_id or "replay")
        yield Replay(
            LetterFiles((path,)),
            replace(selection, run_id=own, own=True),
            (name, *config.filters),
            lambda: runs,
        )
        lease.acknowledge(replayed)


def _pulled(lease: Lease, limit: int, name: str, hidden: float) -> Iterator[Message]:
    """Yield messages. If none arrives, wait for those that another reader may still hold."""
    first = next(found := lease.pull(limit), None)
    if first is None and hidden > PATIENCE_SECONDS:
        left = hidden - PATIENCE_SECONDS
        print(
            f"no message from {name} within {PATIENCE_SECONDS:,.0f} s: waiting {left:,.0f} s "
            f"more, {HELD}",
            file=sys.stderr,
        )
        first = next(found := lease.pull(limit, left), None)
    if first is not None:
        yield first
        yield from found


def _letter(line: bytes, place: str) -> Letter | None:
    """Return the dead letter in a line, or None if the message was not a dead letter."""
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
            f"--output_topic {found.topic} is also the topic of {name}: scored rows would be mixed "
            "with dead letters; choose another topic"
        )
