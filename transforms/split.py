"""Steps that set failed rows apart: one result, one wiring."""

from __future__ import annotations

from typing import Any, NamedTuple

import apache_beam as beam
import pyarrow as pa

from common.record_batch import typed


class Split(NamedTuple):
    """What a step makes of its input.

    good: record batches, of a sink counts of what it wrote. failures: failure records.
    """

    good: beam.PCollection[Any]
    failures: beam.PCollection[pa.RecordBatch]


def split_outputs(
    elements: beam.PCollection[Any], dofn: beam.DoFn, *, counts: bool = False
) -> Split:
    """Elements and a DoFn that tags what it refuses as `failures` -> its two outputs.

    counts: its main output is counts instead of record batches.
    """
    outputs = elements | beam.ParDo(dofn).with_outputs("failures", main="good")
    good = outputs.good if counts else typed(outputs.good)
    return Split(good, typed(outputs.failures))
