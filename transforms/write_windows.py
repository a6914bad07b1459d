"""WriteWindows: an endless run's rows as files, one or more for each span of time.

    FOLDER/scores/2026-11-20/12-34-00-060s-0-of-1-pane-0.parquet

The span is that in which the rows were scored: no row is late for it, and so none is
dropped. A file is named by what it holds, so that a repeated bundle writes it again
in place of the first.
"""

from __future__ import annotations

import datetime
import os
import random
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import apache_beam as beam
import pyarrow as pa
from apache_beam.io.filesystems import FileSystems
from apache_beam.transforms.trigger import AccumulationMode, AfterCount, AfterWatermark
from apache_beam.transforms.window import FixedWindows, TimestampedValue
from apache_beam.utils.timestamp import Timestamp

from transforms.commit_files import create_file, make_folder
from transforms.file_writers import OutputFormat, open_writer
from transforms.write_files import conform


def file_name(start: float, end: float, shard: int, shards: int, pane: int, suffix: str) -> str:
    """A span in seconds since 1970, a shard and a pane -> the file's name below its part."""
    moment = datetime.datetime.fromtimestamp(start, datetime.UTC)
    return (
        f"{moment:%Y-%m-%d}/{moment:%H-%M-%S}-{end - start:03.0f}s-{shard}-of-{shards}-"
        f"pane-{pane}.{suffix}"
    )


def write_file(path: str, batches: Iterable[pa.RecordBatch], output_format: OutputFormat) -> int:
    """Batches, at least one -> a whole file at a path, and its number of rows.

    Raises OutputError. Nobody sees a part of it: it is moved there when it is whole.
    """
    folder, name = os.path.split(path)
    make_folder(folder)
    unfinished = FileSystems.join(folder, f".{name}-{uuid.uuid4().hex}")
    rows, schema, writer = 0, None, None
    with create_file(unfinished) as handle:
        for batch in batches:
            if writer is None or schema is None:
                schema = batch.schema
                writer = open_writer(handle, schema, output_format)
            writer.write(batch if batch.schema.equals(schema) else conform(batch, schema))
            rows += batch.num_rows
        if writer is not None:
            writer.close()
    FileSystems.rename([unfinished], [path])
    return rows


class _WriteDoFn(beam.DoFn):
    """(shard, batches) of a window -> a file of them; gives its path and number of rows."""

    def __init__(self, folder: str, shards: int, output_format: OutputFormat) -> None:
        self._folder, self._shards, self._format = folder, shards, output_format

    def process(
        self,
        element: tuple[int, Iterable[pa.RecordBatch]],
        window: Any = beam.DoFn.WindowParam,
        pane: Any = beam.DoFn.PaneInfoParam,
    ) -> Iterator[tuple[str, int]]:
        shard, batches = element
        start, end = float(window.start), float(window.end)
        name = file_name(start, end, shard, self._shards, pane.index, self._format)
        path = FileSystems.join(self._folder, name)
        yield path, write_file(path, batches, self._format)


@dataclass
class WriteWindows(beam.PTransform):
    """Record batches -> (path, rows) of the files written, at the end of each span.

    folder: of the part. seconds: length of a span. shards: files a span at most.
    """

    folder: str
    seconds: int
    output_format: OutputFormat
    shards: int = 1

    def expand(
        self, batches: beam.PCollection[pa.RecordBatch]
    ) -> beam.PCollection[tuple[str, int]]:
        """now as the event time -> fixed windows -> group by shard -> write."""
        shards = self.shards
        late_as_well = AfterWatermark(late=AfterCount(1))
        return (
            batches
            | "Now" >> beam.Map(lambda batch: TimestampedValue(batch, Timestamp.now()))
            | "Shard"
            >> beam.Map(lambda batch: (random.randrange(shards), batch)).with_output_types(
                tuple[int, pa.RecordBatch]
            )
            | "Window"
            >> beam.WindowInto(
                FixedWindows(self.seconds),
                trigger=late_as_well,
                accumulation_mode=AccumulationMode.DISCARDING,
                allowed_lateness=86_400,
            )
            | "Group" >> beam.GroupByKey()
            | "Write" >> beam.ParDo(_WriteDoFn(self.folder, shards, self.output_format))
        )
