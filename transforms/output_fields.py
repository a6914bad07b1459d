"""Which columns an output row has: what a user chose, or the layout of the reference pipeline."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from common.errors import UsageError, suggest
from common.record_batch import ROW_ID
from model_handlers.manifests.manifest import Manifest
from transforms.row_schemas import CARRIED, LINEAGE, SCORE, WINDOW

ENCODED = "encoded"
_OWN = {ROW_ID, SCORE, *LINEAGE}
_OF_STREAMS = {"event_time", "received_at", *WINDOW, *(name for name, _ in CARRIED)}

OutputLayout = Literal["default", "reference"]


@dataclass(frozen=True, kw_only=True)
class OutputFields:
    """The columns of an output row besides its id and lineage.

    Attributes:
        score: The output or field that is written as `score`, or None.
        outputs: The outputs and fields to write, each under its own name.
        source: The source columns to write, each under its own name.
        numbers: The columns of `source` that are features. They are written as numbers even if
            the source has them as strings, for example in some batches of a CSV file.
        layout: `reference` for the rows of the reference pipeline.
        stream: Whether rows arrive as messages.
        window_seconds: The length in seconds of the windows in the columns WINDOW, or None to
            leave out these columns.
        timings: The columns of the batch with times at which it passed a step of the stream.
    """

    score: str | None
    outputs: tuple[str, ...]
    source: tuple[str, ...] = ()
    numbers: tuple[str, ...] = ()
    layout: OutputLayout = "default"
    stream: bool = False
    window_seconds: int | None = None
    timings: tuple[str, ...] = ()

    @property
    def time_column(self) -> str:
        """The column with the time at which a row was scored."""
        return "timestamp" if self.layout == "reference" else "scored_at"

    @property
    def score_column(self) -> str | None:
        """The column of the score, or None if the rows have no score."""
        if self.layout == "reference":
            return "anomaly_score"
        return None if self.score is None else SCORE

    def decisions(self, manifest: Manifest) -> tuple[str, ...]:
        """Return the columns whose values are names of decisions or classes."""
        return tuple(name for name in manifest.decisions if name in self.outputs)

    @property
    def needed(self) -> tuple[str, ...]:
        """The outputs and fields of the model that a row needs."""
        score = () if self.score is None or self.score in self.outputs else (self.score,)
        return (*score, *self.outputs)


def choose_fields(
    manifest: Manifest,
    names: Sequence[str] | None = None,
    *,
    stream: bool = False,
    timings: tuple[str, ...] = (),
) -> OutputFields:
    """Return the output fields for the names that a user chose.

    Args:
        manifest: The manifest of the model.
        names: Names of outputs and fields of the model; other names are source columns. None means
            the `output_fields` of the manifest, or all outputs and fields if the manifest has none.
        stream: Whether rows arrive as messages.
        timings: As in OutputFields.

    Raises:
        UsageError: A name is one that output rows always use.
    """
    score = manifest.score_output
    every = tuple(manifest.results)
    own = (_OWN if score is not None else _OWN - {SCORE}).union(timings)
    if stream:
        own |= _OF_STREAMS
    if names is None:
        chosen = manifest.output_fields or tuple(name for name in every if name != score)
        chosen = tuple(name for name in chosen if not name == score == SCORE)
        if taken := sorted(own.intersection(chosen)):
            raise UsageError(
                f"model {manifest.name} has {manifest.kinds} {', '.join(map(repr, taken))}, but "
                "output rows already have other columns with these names: choose other "
                f"{manifest.kinds} with --output_fields"
            )
        return OutputFields(score=score, outputs=chosen, stream=stream, timings=timings)
    for name in names:
        if name in own:
            raise UsageError(
                f"--output_fields: {name!r} is always written, so leave it out; choose from the "
                f"{manifest.kinds} {', '.join(every)}, and the columns of the source"
            )
    distinct = dict.fromkeys(names)
    return OutputFields(
        score=score,
        outputs=tuple(name for name in distinct if name in every),
        source=tuple(name for name in distinct if name not in every),
        numbers=tuple(n for n in distinct if _is_number(n, manifest) and n not in every),
        stream=stream,
        timings=timings,
    )


def _is_number(name: str, manifest: Manifest) -> bool:
    """Return whether a source column is a feature of numbers."""
    if name in manifest.columns:
        return manifest.columns[name] in ("float64", "int64")
    return name in manifest.features


def reference_fields(manifest: Manifest) -> OutputFields:
    """Return the fields of the reference rows; raise UsageError if the model lacks the outputs."""
    latent = [spec for spec in manifest.outputs if spec.name == ENCODED and len(spec.shape) == 1]
    if manifest.score_output is None or not latent:
        score = manifest.score_output
        raise UsageError(
            f"--output_schema reference: expected a model with a score and a one-dimensional "
            f"output {ENCODED!r}; model {manifest.name} has "
            f"{'no score' if score is None else f'the score {score}'} and the outputs "
            f"{', '.join(spec.name for spec in manifest.outputs)}"
        )
    return OutputFields(score=manifest.score_output, outputs=(ENCODED,), layout="reference")


def check_fields(fields: OutputFields, manifest: Manifest, available: Sequence[str]) -> None:
    """Raise UsageError unless the source has all columns that were chosen.

    Args:
        fields: The chosen fields.
        manifest: The manifest of the model.
        available: The columns of the source.

    Raises:
        UsageError: A name is neither an output nor a column; the message suggests similar names.
    """
    known = [*manifest.results, *available]
    for name in fields.source:
        if name not in available:
            raise UsageError(
                f"--output_fields: {name!r} is neither an output"
                f"{' nor a field' if manifest.fields else ''} of model {manifest.name} nor a "
                f"column of the source{suggest(name, known)}"
            )
