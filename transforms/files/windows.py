"""WriteWindows: an endless run's rows as files, one or more for each span of time.

    FOLDER/scores/2026-11-20/12-34-00-060s-0-of-1-pane-0-3f0c2a71.parquet

The span is that in which the rows were scored: no row is late for it, and so none is
dropped. A file is named by what it holds, so that a repeated bundle writes it again
in place of the first; and by the run, so that the next run of the same span does not.
"""

from __future__ import annotations

import datetime
import os
import random
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import apache_beam as beam
import pyarrow as pa
from apache_beam.io.filesystem import BeamIOError
from apache_beam.io.filesystems import FileSystems
from apache_beam.transforms.trigger import AccumulationMode, AfterCount, AfterWatermark
from apache_beam.transforms.window import FixedWindows, TimestampCombiner, TimestampedValue
from apache_beam.utils.timestamp import Timestamp

from cloud.errors import translate_errors
from common.errors import OutputError, one_line
from common.memory import check_memory
from transforms.files.store import create_file, make_folder
from transforms.files.unfinished import begun
from transforms.files.writers import OutputFormat, open_writer


def check_folder(folder: str) -> None:
    """A folder -> it is there and files can be made in it, or OutputError."""
    make_folder(folder)
    probe = FileSystems.join(folder, f".probe-{uuid.uuid4().hex}")
    try:
        with create_file(probe) as handle:
            handle.write(b"probe")
        FileSystems.delete([probe])
    except OutputError:
        raise
    # Cloud Storage's client answers what cannot be with exceptions of many kinds.
    except Exception as error:
        check_memory(error, folder)
        raise OutputError(
            f"folder {folder} cannot be written: {one_line(error)}; check its name and the "
            "account's roles"
        ) from error


def file_name(
    start: float, end: float, shard: int, *, shards: int, pane: int, run: str, suffix: str
) -> str:
    """A span in seconds since 1970, a shard, a pane and a run -> the file's name in its part."""
    moment = datetime.datetime.fromtimestamp(start, datetime.UTC)
    return (
        f"{moment:%Y-%m-%d}/{moment:%H-%M-%S}-{end - start:03.0f}s-{shard}-of-{shards}-"
        f"pane-{pane}-{run}.{suffix}"
    )


def write_file(path: str, batches: Iterable[pa.RecordBatch], output_format: OutputFormat) -> int:
    """Batches of one schema, at least one -> a whole file at a path, and its number of rows.

    Raises OutputError. Nobody sees a part of it: it is moved there when it is whole.
    """
    make_folder(os.path.dirname(path))
    rows, writer = 0, None
    with _write_errors(path), begun(path) as handle:
        for batch in batches:
            writer = writer or open_writer(handle, batch.schema, output_format)
            writer.write(batch)
            rows += batch.num_rows
        if writer is not None:
            writer.close()
    return rows


@contextmanager
def _write_errors(path: str) -> Iterator[None]:
    """A file's path -> what goes wrong with it in the block raised as an OutputError."""
    with translate_errors(OutputError, f"{path} cannot be written"):
        try:
            yield
        except (OSError, BeamIOError, pa.ArrowException) as error:
            check_memory(error, path)
            raise OutputError(f"{path} cannot be written: {one_line(error)}") from error


def _now(batch: pa.RecordBatch) -> TimestampedValue:
    return TimestampedValue(batch, Timestamp.now())


class _WriteDoFn(beam.DoFn):
    """(shard, batches) of a window -> a file of them; gives its path and number of rows."""

    def __init__(self, folder: str, shards: int, run: str, output_format: OutputFormat) -> None:
        self._folder, self._shards, self._run = folder, shards, run
        self._format = output_format

    def process(
        self,
        element: tuple[int, Iterable[pa.RecordBatch]],
        window: Any = beam.DoFn.WindowParam,
        pane: Any = beam.DoFn.PaneInfoParam,
    ) -> Iterator[tuple[str, int]]:
        shard, batches = element
        start, end = float(window.start), float(window.end)
        name = file_name(
            start,
            end,
            shard,
            shards=self._shards,
            pane=pane.index,
            run=self._run,
            suffix=self._format,
        )
        path = FileSystems.join(self._folder, name)
        yield path, write_file(path, batches, self._format)


@dataclass(kw_only=True)
class WriteWindows(beam.PTransform):
    """Record batches -> (path, rows) of the files written, at the end of each span.

    folder: of the part. seconds: length of a span. shards: files a span at most. run: a
    name that no other run of the pipeline has.
    """

    folder: str
    seconds: int
    output_format: OutputFormat
    shards: int = 1
    run: str = field(default_factory=lambda: uuid.uuid4().hex[:8])

    def expand(
        self, batches: beam.PCollection[pa.RecordBatch]
    ) -> beam.PCollection[tuple[str, int]]:
        """now as the event time -> fixed windows -> group by shard -> write."""
        shards = self.shards
        windows = beam.WindowInto(
            FixedWindows(self.seconds),
            trigger=AfterWatermark(late=AfterCount(1)),
            accumulation_mode=AccumulationMode.DISCARDING,
            # Rows hold the watermark back until they are written (messages/in_process_source.py).
            timestamp_combiner=TimestampCombiner.OUTPUT_AT_EARLIEST,
            allowed_lateness=86_400,
        )
        return (
            batches
            | "Now" >> beam.Map(_now).with_output_types(pa.RecordBatch)
            | "Shard"
            >> beam.Map(lambda batch: (random.randrange(shards), batch)).with_output_types(
                tuple[int, pa.RecordBatch]
            )
            | "Window" >> windows
            | "Group" >> beam.GroupByKey()
            | "Write" >> beam.ParDo(_WriteDoFn(self.folder, shards, self.run, self.output_format))
        )
