"""The result and the wiring of steps that separate failed rows from good ones."""

from __future__ import annotations

from typing import Any, NamedTuple

import apache_beam as beam
import pyarrow as pa

from common.record_batch import typed


class Split(NamedTuple):
    """The two outputs of a step that separates failed rows.

    Attributes:
        good: Record batches, or the counts of what a sink wrote.
        failures: Dead letters, as batches of FAILURE_SCHEMA.
    """

    good: beam.PCollection[Any]
    failures: beam.PCollection[pa.RecordBatch]


def split_outputs(
    elements: beam.PCollection[Any], dofn: beam.DoFn, *, counts: bool = False
) -> Split:
    """Apply a DoFn that tags dead letters as `failures`, and return its two outputs.

    Args:
        elements: The input of the DoFn.
        dofn: The DoFn.
        counts: Whether its main output is counts instead of record batches.
    """
    outputs = elements | beam.ParDo(dofn).with_outputs("failures", main="good")
    good = outputs.good if counts else typed(outputs.good)
    return Split(good, typed(outputs.failures))
