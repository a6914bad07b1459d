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
    elements: beam.PCollection[Any], dofn: beam.DoFn, good_type: Any = pa.RecordBatch
) -> Split:
    """Elements and a DoFn that tags what it refuses as `failures` -> its two outputs.

    good_type: of the elements of the main output.
    """
    outputs = elements | beam.ParDo(dofn).with_outputs("failures", main="good")
    outputs.good.element_type = good_type
    return Split(outputs.good, typed(outputs.failures))
