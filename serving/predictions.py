"""The outputs of the model that a prediction contains, and their keys."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from common.errors import UsageError
from model_handlers.manifest import Manifest

# The reference implementation's container uses this name for the score.
SCORE_KEY = "anomaly_score"
ALL, SCORE = "all", "score"


@dataclass(frozen=True)
class Field:
    """A key of each prediction, and the model output that is its value."""

    key: str
    output: str


def prediction_fields(manifest: Manifest, choice: str | Sequence[str]) -> tuple[Field, ...]:
    """Return the fields of a prediction.

    Args:
        manifest: The manifest of the model.
        choice: `all` for all outputs by name; `score` for `anomaly_score` and the manifest's output
            fields; or the names of outputs, which may include `anomaly_score`.

    Raises:
        UsageError: If an output does not exist, or the model has no score output.
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
                    f"model {manifest.name} has no score output: choose one with --score_output, "
                    f"or choose outputs with --outputs, from {', '.join(sorted(known))}"
                )
            output = manifest.score_output
        fields.append(Field(name, manifest.output(output).name))
    if not fields:
        raise UsageError(f"outputs: expected {ALL}, {SCORE} or names of outputs, got an empty list")
    return tuple(fields)
