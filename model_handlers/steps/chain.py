"""A chain: a column and the steps that it goes through, one after the other."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import takewhile
from typing import NoReturn

import pyarrow as pa

from common.cells import decoded, is_list
from common.errors import ManifestError, suggest
from model_handlers.steps.general import Fill
from model_handlers.steps.raw import each_distinct, each_item
from model_handlers.steps.step import (
    NUMBERS_FROM,
    WORDS,
    Apply,
    Cells,
    Context,
    Kind,
    Step,
    kind_of,
    refuse_cells,
)

_Bound = tuple[Step, Apply]


@dataclass(frozen=True)
class Chain:
    """The name of a column, an output or a field, and steps.

    Attributes:
        start: The name of the column; in fields, of an output or of a field before this one.
        steps: The steps in order.
    """

    start: str
    steps: tuple[Step, ...] = ()

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The columns, outputs or fields that the chain reads, each once."""
        others = (name for step in self.steps for name in step.operands)
        return tuple(dict.fromkeys((self.start, *others)))

    @property
    def files(self) -> tuple[str, ...]:
        """The files of the package that the steps read."""
        return tuple(name for step in self.steps for name in step.files)

    @property
    def functions(self) -> tuple[str, ...]:
        """The functions of the user that the steps call."""
        return tuple(name for step in self.steps for name in step.functions)

    def gives(self, types: Mapping[str, pa.DataType]) -> pa.DataType:
        """Return the type of the result.

        Args:
            types: The type of each name that the chain may read.

        Raises:
            ManifestError: A name is unknown, or a step does not take what it gets. The message
                starts with the number of the link, such as `[2]`.
        """
        return self.types(types)[-1]

    def types(self, known: Mapping[str, pa.DataType]) -> list[pa.DataType]:
        """Return the type of the start and after each step; see `gives`."""
        found = [_known(self.start, known, 0)]
        for number, step in enumerate(self.steps, 1):
            operands = [_known(name, known, number) for name in step.operands]
            try:
                found.append(_after(step, found[-1], operands))
            except ManifestError as error:
                raise ManifestError(f"[{number}]: {error}") from error
        return found

    def fills(self, known: Mapping[str, pa.DataType]) -> bool:
        """Return whether a step replaces null; in lists, `fill` only replaces items."""
        return any(
            isinstance(step, Fill) and not is_list(type_)
            for step, type_ in zip(self.steps, self.types(known), strict=False)
        )

    def bind(self, context: Context) -> BoundChain:
        """Return the chain, ready to run.

        Raises:
            ManifestError: A file does not have the content that a step needs.
            ModelError: A function of the user cannot be imported.
        """
        return BoundChain(self, tuple(step.bind(context) for step in self.steps))


@dataclass(frozen=True)
class BoundChain:
    """A chain that is ready to run."""

    chain: Chain
    functions: tuple[Apply, ...]

    @cached_property
    def _steps(self) -> tuple[list[_Bound], list[_Bound]]:
        """The first steps, which change each distinct text once, and the others."""
        steps = list(zip(self.chain.steps, self.functions, strict=True))
        alike = list(takewhile(lambda one: one[0].EACH and not one[0].operands, steps))
        return alike, steps[len(alike) :]

    def run(self, columns: Mapping[str, Cells]) -> Cells:
        """Return the cells of the result.

        Args:
            columns: The cells of each column, output or field that the chain reads. Texts may be
                a dictionary.
        """
        alike, others = self._steps
        cells = columns[self.chain.start]
        if pa.types.is_dictionary(cells.values.type):
            cells = each_distinct(cells, lambda distinct: _run(alike, distinct, {}))
        else:
            cells = _run(alike, cells, columns)
        return _run(others, cells, columns).of(self.chain.start)


def _run(steps: Iterable[_Bound], cells: Cells, columns: Mapping[str, Cells]) -> Cells:
    """Return what steps make of cells."""
    for step, function in steps:
        if _by_item(step, cells.values.type):
            cells = each_item(cells, function)
        else:
            cells = function(cells, *(_plain(columns[name]) for name in step.operands))
    return cells


def _plain(cells: Cells) -> Cells:
    """Return cells whose texts are no dictionary."""
    return cells.become(decoded(cells.values))


def _known(name: str, types: Mapping[str, pa.DataType], number: int) -> pa.DataType:
    if name in types:
        return types[name]
    raise ManifestError(
        f"[{number}]: expected one of {', '.join(list(types)[:40])}, got {name[:80]!r}"
        f"{suggest(name, types)}"
    )


def _by_item(step: Step, type_: pa.DataType) -> bool:
    """Return whether a step is applied to the items of lists of a type."""
    return step.EACH and is_list(type_)


def _after(step: Step, type_: pa.DataType, operands: list[pa.DataType]) -> pa.DataType:
    """Return the type after a step. Raise ManifestError if the step does not take the type."""
    if not _by_item(step, type_):
        if kind_of(type_) not in step.TAKES:
            _refuse_kind(step, type_)
        return step.gives(type_, *operands)
    if operands or kind_of(type_.value_type) not in step.TAKES:
        _refuse_kind(step, type_)
    item = step.gives(type_.value_type)
    if is_list(item):
        _refuse_kind(step, type_)
    fixed = pa.types.is_fixed_size_list(type_)
    return pa.list_(item, type_.list_size) if fixed else pa.list_(item)


def _refuse_kind(step: Step, type_: pa.DataType) -> NoReturn:
    kind, hint = kind_of(type_), None
    if Kind.NUMBER in step.TAKES or Kind.VECTOR in step.TAKES:
        hint = NUMBERS_FROM.get(kind)
    elif step.TAKES == (Kind.TEXT,):
        hint = "cast turns numbers and times into text"
    refuse_cells(step, " or ".join(WORDS[kind] for kind in step.TAKES), type_, hint)
