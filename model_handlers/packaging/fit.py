"""Fit steps on a sample, and prepare rows with them, for training and for packaging alike."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePath
from typing import Any

import pyarrow as pa

from common.cells import is_list, is_number
from common.errors import InputError, ManifestError, UsageError, one_line
from model_handlers.manifests.manifest import RawType
from model_handlers.packaging.builder import Steps, Tensor, without_file_name
from model_handlers.packaging.prepared import worst_of
from model_handlers.packaging.raw_types import (
    choose_types,
    read_column,
    sample_column,
    spells_lists,
)
from model_handlers.packaging.to_fit import ToFit, present
from model_handlers.steps.categories import Vocabulary
from model_handlers.steps.chain import Chain
from model_handlers.steps.general import Fill
from model_handlers.steps.raw import RAW_TYPES
from model_handlers.steps.step import Cells, Context, Step


@dataclass(frozen=True)
class FittedInputs:
    """The inputs of a model whose steps are all known.

    They prepare rows for training, and are passed to `package` afterwards.

    Attributes:
        tensors: The inputs by name.
        plain: The names of inputs that read columns of numbers as they are. They are declared as in
            a version 1 manifest, which is the fastest way.
        columns: The raw type of each column that the other inputs read.
        files: The content of the files that steps read, by their names in the package.
    """

    tensors: Mapping[str, Tensor]
    plain: frozenset[str]
    columns: Mapping[str, RawType]
    files: Mapping[str, bytes] = field(default_factory=dict)

    @property
    def digests(self) -> dict[str, str]:
        """The hex sha256 of each file, by name."""
        return digests(self.files)


def digests(files: Mapping[str, bytes]) -> dict[str, str]:
    """Return the hex sha256 of each file, by name."""
    return {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}


class PackagedFiles:
    """The files of a package that is being made.

    Args:
        folder: The folder to which paths of files are relative.
        content: The files that are known already, by name.
    """

    def __init__(self, folder: Path, content: Mapping[str, bytes] | None = None) -> None:
        self.folder = folder
        self.content = dict(content or {})

    def add(self, path: str) -> str:
        """Read a file, and return its name in the package.

        Raises:
            UsageError: The file cannot be read, or another one has the same name.
        """
        try:
            data = (self.folder / path).read_bytes()
        except OSError as error:
            raise UsageError(f"file {path} cannot be read: {one_line(error)}") from error
        name = PurePath(path).name
        if self.content.setdefault(name, data) != data:
            raise UsageError(f"file {path}: another file of the package is called {name}: rename")
        return name

    def write(self, stem: str, data: bytes) -> str:
        """Add a file with a name that starts with a stem, and return its name."""
        stem = re.sub(r"[^\w-]+", "_", stem) or "values"
        number = 1
        while True:
            name = f"{stem}.txt" if number == 1 else f"{stem}_{number}.txt"
            if self.content.setdefault(name, data) == data:
                return name
            number += 1

    def of_chain(self, chain: Chain) -> Chain:
        """Return a chain whose files are in the package."""
        return replace(chain, steps=tuple(self._of_step(step) for step in chain.steps))

    def _of_step(self, step: Step) -> Step:
        path = getattr(step, "file", None)
        if path is None:
            return step
        changed: Any = step
        return replace(changed, file=self.add(path))


def fit_inputs(
    tensors: Mapping[str, Tensor],
    sample: pa.Table | None,
    *,
    declared: Mapping[str, RawType],
    folder: Path,
    context: Context,
    whole: Collection[str] = (),
) -> FittedInputs:
    """Return inputs whose steps are all known.

    Args:
        tensors: The inputs, some of whose steps are to be fitted.
        sample: The rows to fit them on, or None.
        declared: The raw types of columns that the user declared.
        folder: The folder to which the paths of vocabularies are relative.
        context: How functions of the user are imported.
        whole: The names of the inputs that are integers, if their dtype is not given.

    Raises:
        UsageError: A step is to be fitted, and there is no sample; or a file cannot be read.
        InputError: The sample cannot be used.
        ManifestError: A step does not fit the column.
    """
    plain = _plain_inputs(tensors, sample)
    chains = [chain for name, each in tensors.items() if name not in plain for chain in each.chains]
    integers = {
        chain
        for name, each in tensors.items()
        if (name in whole if each.dtype is None else "float" not in each.dtype)
        for chain in each.chains
    }
    columns = choose_types(chains, declared, sample, integers)
    cells = {}
    if sample is not None:
        cells = {name: read_column(sample, name, raw) for name, raw in columns.items()}
    files = PackagedFiles(folder)
    fitting = _Fitting(columns, cells, files, context, sample)
    fitted = {
        name: replace(each, columns=tuple(fitting.fitted(name, one) for one in each.columns))
        for name, each in tensors.items()
    }
    return FittedInputs(fitted, plain, columns, files.content)


@dataclass(frozen=True)
class _Fitting:
    """What chains are fitted with."""

    columns: Mapping[str, RawType]
    cells: Mapping[str, Cells]
    files: PackagedFiles
    context: Context
    sample: pa.Table | None

    def fitted(self, name: str, steps: Steps) -> Steps:
        """Return a column of an input with fitted steps."""
        chain = self.files.of_chain(steps.chain)
        done: list[Step] = []
        place = f"inputs.{name}, column {chain.start!r}"
        try:
            if chain.steps:
                chain.gives({name: RAW_TYPES[raw] for name, raw in self.columns.items()})
            self._check(chain)
            for step in chain.steps:
                done.append(self._fit(step, Chain(chain.start, tuple(done))))
        except ManifestError as error:
            raise ManifestError(f"{place}: {without_file_name(error)}") from error
        except InputError as error:
            raise InputError(f"{place}: {error}") from error
        return replace(steps, steps=tuple(done))

    def _fit(self, step: Step, before: Chain) -> Step:
        """Return a step, fitted on what the steps before it give for the sample."""
        if not isinstance(step, ToFit):
            return step
        if self.sample is None:
            step.bind(self.context)
        context = replace(self.context, files=self.files.content)
        result = before.bind(context).run(self.cells)
        values = present(result.values)
        if not len(values):
            raise InputError(
                f"{step.NAME} cannot be fitted, because {self._why_no_value(before, result)}"
            )
        fitted = step.fitted(values)
        if not isinstance(fitted, Vocabulary):
            return fitted
        lines = "".join(f"{value}\n" for value in fitted.values)
        # The reader takes U+FEFF at the start of the file for a byte order mark.
        encoding = "utf-8-sig" if lines.startswith("\ufeff") else "utf-8"
        return replace(
            fitted, values=(), file=self.files.write(before.start, lines.encode(encoding))
        )

    def _check(self, chain: Chain) -> None:
        """Raise InputError if a column of the sample has values, and none is of its raw type."""
        cells = self.cells.get(chain.start)
        if self.sample is None or cells is None or not cells.refused or len(present(cells.values)):
            return
        if any(step.NAME == Fill.NAME for step in chain.steps):
            # Its rows with null may be usable.
            return
        hint = "add steps that take its values, or declare another type in columns"
        if spells_lists(self.sample, chain.start):
            hint = "pad gives its lists the same length"
        raise InputError(f"{_worst(cells)}, and no other row has a value: {hint}")

    def _why_no_value(self, before: Chain, cells: Cells) -> str:
        """Return why the sample has no value for a step, and what to do."""
        if not cells.refused:
            return "the sample has only nulls there: pass another sample"
        why = _worst(cells)
        if all(one.reason != "function_error" for one in cells.refused):
            return f"{why}: pass another sample"
        types = ", ".join(f"{name} is {self.columns[name]}" for name in before.names)
        return f"{why} ({types}): correct the function, or declare other types in columns"


def _worst(cells: Cells) -> str:
    """Return why most of the cells that were refused cannot be used."""
    worst = worst_of(cells.refused)
    return f"{worst.message} in {len(worst.rows):,} of {len(cells.values):,} rows of the sample"


def _plain_inputs(tensors: Mapping[str, Tensor], sample: pa.Table | None) -> frozenset[str]:
    """Return the names of inputs that read columns of numbers as they are, without steps."""

    def is_plain(tensor: Tensor) -> bool:
        names = {steps.name for steps in tensor.columns}
        if any(steps.steps for steps in tensor.columns):
            return False
        if len(names) < len(tensor.columns) and not tensor.as_numbers:
            return False
        return (
            sample is None
            or tensor.as_numbers
            or all(
                _holds_numbers(sample_column(sample, steps.name).type) for steps in tensor.columns
            )
        )

    plain = {name for name, tensor in tensors.items() if is_plain(tensor)}
    others = {
        column
        for name, tensor in tensors.items()
        if name not in plain
        for chain in tensor.chains
        for column in chain.names
    }
    # A column is declared, or it is not.
    return frozenset(
        name
        for name in plain
        if not others.intersection(steps.name for steps in tensors[name].columns)
    )


def _holds_numbers(type_: pa.DataType) -> bool:
    return is_number(type_.value_type if is_list(type_) else type_)
