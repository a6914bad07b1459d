"""The outputs and fields of the model that a prediction contains, and their keys."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from common.errors import UsageError
from common.json_objects import json_cells
from model_handlers.loaded_model import describe_error
from model_handlers.manifests.manifest import Manifest, OutputSpec
from model_handlers.run_model import Answer
from transforms.dead_letters import Fault
from transforms.predict import field_faults

# The reference implementation's container uses this name for the score.
SCORE_KEY = "anomaly_score"
ALL, SCORE = "all", "score"


@dataclass(frozen=True)
class Field:
    """A key of each prediction, and the output or field of the model that is its value."""

    key: str
    output: str


@dataclass(frozen=True)
class Choice:
    """What the predictions of a request contain.

    Attributes:
        fields: The fields of each prediction, in order.
        outputs: The outputs that the model has to return.
        derived: The fields of the model that have to be computed.
    """

    fields: tuple[Field, ...]
    outputs: frozenset[str]
    derived: frozenset[str]


def choose(manifest: Manifest, choice: str | Sequence[str]) -> Choice:
    """Return what predictions contain. The arguments and errors are those of prediction_fields."""
    fields = prediction_fields(manifest, choice)
    names = [field.output for field in fields]
    outputs = frozenset(manifest.outputs_for(names))
    return Choice(fields, outputs, manifest.fields_for(names))


def prediction_values(
    choice: Choice, outputs: Sequence[OutputSpec], answer: Answer
) -> list[np.ndarray | Sequence[bytes]]:
    """Return the values of each field of a prediction, as `dump_objects` takes them.

    Args:
        choice: The fields.
        outputs: The output of each array of the answer.
        answer: The answer of the model, with the fields that have to be computed.
    """
    found: dict[str, np.ndarray | Sequence[bytes]] = {
        spec.name: array for spec, array in zip(outputs, answer.arrays, strict=True)
    }
    for field in choice.fields:
        if field.output in choice.derived:
            cells = json_cells(answer.fields[field.output])
            found[field.output] = [b"null" if cell is None else cell for cell in cells]
    return [found[field.output] for field in choice.fields]


def prediction_faults(choice: Choice, answer: Answer) -> dict[int, Fault]:
    """Return the fault of each row that has no prediction, by its number.

    Args:
        choice: The fields of the prediction. A row whose other fields cannot be computed is good.
        answer: The answer of the model.
    """
    wanted = {field.output for field in choice.fields}
    refused = field_faults(some for some in answer.refused if some.column in wanted)
    return refused | {
        row: Fault("model_error", describe_error(error)) for row, error in answer.faults.items()
    }


def prediction_fields(manifest: Manifest, choice: str | Sequence[str]) -> tuple[Field, ...]:
    """Return the fields of a prediction.

    Args:
        manifest: The manifest of the model.
        choice: `all` for all outputs and fields by name; `score` for `anomaly_score`, if the model
            has a score, and the manifest's output fields; or the names of outputs and fields, which
            may include `anomaly_score`.

    Raises:
        UsageError: If an output or field does not exist, or the model has no score output.
    """
    known = manifest.results
    if choice == ALL:
        return tuple(Field(name, name) for name in known)
    names = choice.split(",") if isinstance(choice, str) else list(choice)
    if choice == SCORE and SCORE not in known:
        has_score = manifest.score_output is not None or not manifest.output_fields
        names = [*([SCORE_KEY] if has_score else []), *manifest.output_fields]
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
        manifest.result_type(output)
        fields.append(Field(name, output))
    if not fields:
        raise UsageError(
            f"outputs: expected {ALL}, {SCORE} or names of {manifest.kinds}, got an empty list"
        )
    return tuple(fields)
