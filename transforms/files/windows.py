"""Write the rows of a stream on Dataflow to files, one or more for each span of time.

    FOLDER/scores/2026-11-20/12-34-00-060s-0-of-1-pane-0-3f0c2a71.parquet

The span is the one in which the rows were scored, so no row is late and none is dropped. The file
name describes the content, so a retried bundle replaces the file that it wrote before. The name
also contains a token of the run, so another run in the same span does not replace the file.
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
    """Create a folder if it does not exist; raise OutputError unless files can be written to it."""
    make_folder(folder)
    probe = FileSystems.join(folder, f".probe-{uuid.uuid4().hex}")
    try:
        with create_file(probe) as handle:
            handle.write(b"probe")
        FileSystems.delete([probe])
    except OutputError:
        raise
    # The client of Cloud Storage raises exceptions of many kinds.
    except Exception as error:
        check_memory(error, folder)
        raise OutputError(
            f"folder {folder} cannot be written: {one_line(error)}; check its name and the roles "
            "of the account"
        ) from error


def file_name(
    start: float, end: float, shard: int, *, shards: int, pane: int, run: str, suffix: str
) -> str:
    """Return the name of a file, relative to the folder of its part.

    Args:
        start: The start of the span, in seconds since 1970.
        end: The end of the span, in seconds since 1970.
        shard: The number of the shard, from 0.
        shards: How many shards there are.
        pane: The number of the pane, from 0.
        run: The token of the run.
        suffix: The suffix of the file's format, without a dot.
    """
    moment = datetime.datetime.fromtimestamp(start, datetime.UTC)
    return (
        f"{moment:%Y-%m-%d}/{moment:%H-%M-%S}-{end - start:03.0f}s-{shard}-of-{shards}-"
        f"pane-{pane}-{run}.{suffix}"
    )


def write_file(path: str, batches: Iterable[pa.RecordBatch], output_format: OutputFormat) -> int:
    """Write batches to a file and return its number of rows.

    The file appears at its path only when it is complete.

    Args:
        path: The path of the file.
        batches: At least one batch; all have the same schema.
        output_format: The format of the file.

    Raises:
        OutputError: The file cannot be written.
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
    """Raise errors of writing a file in the block as OutputError."""
    with translate_errors(OutputError, f"{path} cannot be written"):
        try:
            yield
        except (OSError, BeamIOError, pa.ArrowException) as error:
            check_memory(error, path)
            raise OutputError(f"{path} cannot be written: {one_line(error)}") from error


def _now(batch: pa.RecordBatch) -> TimestampedValue:
    return TimestampedValue(batch, Timestamp.now())


class _WriteDoFn(beam.DoFn):
    """A DoFn that writes the batches of a shard and a window to one file.

    It yields the path and the number of rows of the file.
    """

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
    """A transform that writes record batches to files at the end of each span.

    It returns the path and the number of rows of each file.

    Attributes:
        folder: The folder of the part.
        seconds: The length of a span in seconds.
        output_format: The format of the files.
        shards: The maximum number of files per span.
        run: A token that no other run of the pipeline uses.
    """

    folder: str
    seconds: int
    output_format: OutputFormat
    shards: int = 1
    run: str = field(default_factory=lambda: uuid.uuid4().hex[:8])

    def expand(
        self, batches: beam.PCollection[pa.RecordBatch]
    ) -> beam.PCollection[tuple[str, int]]:
        """Use the current time as event time, group by window and shard, then write."""
        shards = self.shards
        windows = beam.WindowInto(
            FixedWindows(self.seconds),
            trigger=AfterWatermark(late=AfterCount(1)),
            accumulation_mode=AccumulationMode.DISCARDING,
            # Rows hold back the watermark until they are written.
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
