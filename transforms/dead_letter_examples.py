"""A few dead letters of each reason, for the page of a run. They hold values of rows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import apache_beam as beam
import orjson
import pyarrow as pa

# The payload of an example is cut after so many characters.
PAYLOAD_CHARS = 500


class Example(NamedTuple):
    """A dead letter of a run.

    Attributes:
        row_id: The id of the row, or an empty text.
        column: The column at fault, or an empty text.
        message: What was wrong.
        payload: The start of the row's original content, as text.
    """

    row_id: str
    column: str
    message: str
    payload: str


# Examples by stage and reason.
Examples = Mapping[tuple[str, str], tuple[Example, ...]]


def examples_of(letters: pa.RecordBatch, most: int) -> Examples:
    """Return the first dead letters of each stage and reason of a batch, by their row ids.

    Args:
        letters: Dead letters of FAILURE_SCHEMA.
        most: How many to return of each stage and reason.
    """
    table = pa.Table.from_batches([letters]).sort_by("row_id")
    kinds = zip(table.column("stage").to_pylist(), table.column("reason").to_pylist(), strict=True)
    wanted: dict[tuple[str, str], list[int]] = {}
    for i, kind in enumerate(kinds):
        places = wanted.setdefault(kind, [])
        if len(places) < most:
            places.append(i)
    return {kind: tuple(map(_example, table.take(i).to_pylist())) for kind, i in wanted.items()}


def _example(letter: Mapping[str, object]) -> Example:
    payload = letter["payload"]
    text = payload.decode(errors="replace") if isinstance(payload, bytes) else ""
    cut = f"{text[:PAYLOAD_CHARS]}..." if len(text) > PAYLOAD_CHARS else text
    column = orjson.loads(str(letter["attributes"])).get("column", "")
    return Example(str(letter["row_id"] or ""), column, str(letter["message"] or ""), cut)


def merge_examples(parts: Iterable[Examples], most: int) -> Examples:
    """Merge examples: the first of each stage and reason, by their row ids.

    Args:
        parts: The examples of several sets of dead letters.
        most: How many to keep of each stage and reason.
    """
    found: dict[tuple[str, str], list[Example]] = {}
    for part in parts:
        for kind, examples in part.items():
            found[kind] = sorted([*found.get(kind, ()), *examples])[:most]
    return {kind: tuple(examples) for kind, examples in found.items()}


@dataclass
class KeepExamples(beam.PTransform):
    """A transform from collections of batches of dead letters to examples of all, in one element.

    No batch, no element.

    Attributes:
        most: How many to keep of each stage and reason.
    """

    most: int

    def _merge(self, parts: Iterable[Examples]) -> Examples:
        return merge_examples(parts, self.most)

    def expand(
        self, letters: Sequence[beam.PCollection[pa.RecordBatch]]
    ) -> beam.PCollection[Examples]:
        """Take examples of each batch, and merge them."""
        found = [
            one | f"Take{i or ''}" >> beam.Map(examples_of, self.most).with_output_types(dict)
            for i, one in enumerate(letters)
        ] | beam.Flatten()
        return found | "Merge" >> beam.CombineGlobally(self._merge).without_defaults()
