"""Columns, outputs and fields with their steps, as people write them in Python."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

import numpy as np

from common.errors import ManifestError, UsageError
from model_handlers.manifests.manifest import DType
from model_handlers.manifests.model_json import parse_step
from model_handlers.packaging.step_methods import StepMethods
from model_handlers.packaging.to_fit import step_classes
from model_handlers.steps.chain import Chain
from model_handlers.steps.step import Step

Start = Literal["column", "output", "field"]


@dataclass(frozen=True)
class Steps(StepMethods):
    """A column, an output or a field, and the steps that it goes through.

    Each method returns another object with one more step; see the reference of steps.

    Attributes:
        start: The kind of what the chain starts at.
        name: Its name.
        steps: The steps, some of which may still have to be fitted on a sample.
    """

    start: Start
    name: str
    steps: tuple[Step, ...] = ()

    @property
    def chain(self) -> Chain:
        """The steps as a chain of a manifest."""
        return Chain(self.name, self.steps)

    def _then(self, step: str, **members: Any) -> Self:
        given = {name: _plain(value) for name, value in members.items()}
        given = {name: value for name, value in given.items() if value not in (None, [])}
        if isinstance(given.get("file"), list):
            given["values"] = given.pop("file")
        place = f"{self.start}({self.name!r})"
        try:
            made = make_step(step, given, place)
        except ManifestError as error:
            raise UsageError(without_file_name(error)) from error
        return type(self)(self.start, self.name, (*self.steps, made))


def column(name: str) -> Steps:
    """Return a column of the source, to which steps are added by methods.

    Args:
        name: The name of the column.
    """
    return Steps("column", name)


def output(name: str) -> Steps:
    """Return an output of the model, from which a field is computed by steps.

    Args:
        name: The name of the output.
    """
    return Steps("output", name)


def field(name: str) -> Steps:
    """Return a field, from which another field is computed by steps.

    Args:
        name: The name of the field, which is declared before the other one.
    """
    return Steps("field", name)


Columns = Steps | str | Sequence[Steps | str]


@dataclass(frozen=True)
class Tensor:
    """An input of a model: the columns it is read from, and what its file does not say.

    Attributes:
        columns: The columns. Their results, one after the other, are the elements of a row.
        is_list: Whether the input has a dimension for the columns, even if there is only one.
        dtype: The dtype of the elements; by default that of the model's file, or else int64 if all
            columns end in integers, and float32 otherwise.
        shape: The shape of one row; by default that of the model's file, or else the number of
            elements.
        as_numbers: Whether columns without steps are read as numbers, even if a sample has text.
    """

    columns: tuple[Steps, ...]
    is_list: bool = True
    dtype: DType | None = None
    shape: tuple[int, ...] | None = None
    as_numbers: bool = False

    @property
    def chains(self) -> tuple[Chain, ...]:
        """The chains of the columns."""
        return tuple(steps.chain for steps in self.columns)


def tensor(
    columns: Columns, *, dtype: DType | None = None, shape: Sequence[int] | None = None
) -> Tensor:
    """Return an input of a model whose dtype or shape the model's file does not say.

    Args:
        columns: The columns it is read from, with their steps. A single one, not in a list, gives
            one element for each row, of the shape `()`.
        dtype: The dtype of the elements.
        shape: The shape of one row, without the batch dimension.

    Raises:
        UsageError: Something else than columns was passed.
    """
    is_list = not isinstance(columns, Steps | str) and isinstance(columns, Sequence)
    given: list[Any] = list(columns) if is_list else [columns]  # type: ignore[arg-type]
    found = [column(each) if isinstance(each, str) else each for each in given]
    for each in found:
        if not isinstance(each, Steps) or each.start != "column":
            raise UsageError(
                f"inputs: expected column(...) or the name of a column, got {type(each).__name__}"
            )
    if not found:
        raise UsageError("inputs: expected one or more columns for each input, got none")
    return Tensor(tuple(found), is_list, dtype, None if shape is None else tuple(shape))


def tensors(inputs: Mapping[str, Columns | Tensor]) -> dict[str, Tensor]:
    """Return the inputs of a model by name, as the user wrote them.

    Raises:
        UsageError: Something else than columns was passed.
    """
    if not isinstance(inputs, Mapping) or not inputs:
        raise UsageError('inputs: expected a dict such as {"dense": [column("amount")]}')
    return {
        name: given if isinstance(given, Tensor) else tensor(given)
        for name, given in inputs.items()
    }


def make_step(name: str, members: Mapping[str, Any], where: str) -> Step:
    """Return a step, which is to be fitted if it lacks the members that a sample can give.

    Args:
        name: The name of the step.
        members: Its members, as in JSON.
        where: The place of the step, for messages.

    Raises:
        ManifestError: The members are wrong.
    """
    return parse_step({"step": name, **members}, where, step_classes(name, members))


def without_file_name(error: ManifestError) -> str:
    """Return the message of an error about a part of a manifest that is in no manifest yet."""
    return str(error).removeprefix("model.json: ")


def _plain(value: Any) -> Any:
    """Return a Python or NumPy value as JSON has it."""
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(item) for item in value]
    return value
