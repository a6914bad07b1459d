"""Which of the model's outputs a prediction shows, and under which keys."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from common.errors import UsageError
from model_handlers.manifest import Manifest

# What the reference's container calls the score.
SCORE_KEY = "anomaly_score"
ALL, SCORE = "all", "score"


@dataclass(frozen=True)
class Field:
    """A key of each prediction, and the model's output that it shows."""

    key: str
    output: str


def prediction_fields(manifest: Manifest, choice: str | Sequence[str]) -> tuple[Field, ...]:
    """A model and what is wanted of it -> the fields of a prediction. Raises UsageError.

    choice: `all` outputs by their names; `score`: `anomaly_score` and the manifest's
    output_fields; or names of outputs, of which `anomaly_score` may be one.
    """
    known = {spec.name for spec in manifest.outputs}
    if choice == ALL:
        return tuple(Field(spec.name, spec.name) for spec in manifest.outputs)
    names = choice.split(",") if isinstance(choice, str) else list(choice)
    if choice == SCORE and SCORE not in known:
        names = [SCORE_KEY, *manifest.output_fields]
    fields = []
    for name in dict.fromkeys(names):
        output = name
        if name == SCORE_KEY and name not in known:
            if manifest.score_output is None:
                raise UsageError(
                    f"model {manifest.name} has no score: choose one with --score_output, or other "
                    f"outputs with --outputs, of {', '.join(sorted(known))}"
                )
            output = manifest.score_output
        fields.append(Field(name, manifest.output(output).name))
    if not fields:
        raise UsageError(f"outputs: expected {ALL}, {SCORE} or names of outputs, got none")
    return tuple(fields)
