"""Choose the raw type of each column from the sample and from the steps that read it."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import takewhile

import numpy as np
import pyarrow as pa

from common.cells import is_list, is_text
from common.errors import InputError, ManifestError, UsageError, suggest
from common.texts import is_binary
from model_handlers.manifests.manifest import RawType
from model_handlers.packaging.to_fit import FillToFit
from model_handlers.steps import values
from model_handlers.steps.categories import OneHot
from model_handlers.steps.chain import Chain
from model_handlers.steps.general import Fill
from model_handlers.steps.own_function import Call
from model_handlers.steps.raw import RAW_TYPES, can_become, expected
from model_handlers.steps.step import Cells, Kind, Step, kind_of

_OF_LISTS: tuple[RawType, ...] = ("list<string>", "list<float64>", "list<int64>")
_OF_TEXT: tuple[RawType, ...] = (
    "string",
    "float64",
    "int64",
    "timestamp",
    "date",
    "datetime",
    "bool",
    *_OF_LISTS,
)
# What integers become if their mean fills them.
_FLOATS: Mapping[RawType, RawType] = {"int64": "float64", "list<int64>": "list<float64>"}


def choose_types(
    chains: Sequence[Chain],
    declared: Mapping[str, RawType],
    sample: pa.Table | None,
    whole: Collection[Chain] = (),
) -> dict[str, RawType]:
    """Return the raw type of each column that chains read, by name.

    A column that is not declared gets the type that the sample has. Text of a sample, as in a CSV
    file, becomes what the steps take: text, or else numbers, times, booleans or lists, whichever
    most of its cells spell. A function of the user takes all types: a column that is read by such
    functions, and otherwise only as numbers, has numbers if each of its cells spells one. Integers
    become float64 if the mean or median fills them, unless something needs integers.

    Args:
        chains: The chains of all inputs.
        declared: The types that the user declared.
        sample: The rows of the sample, or None.
        whole: The chains that must end in integers.

    Raises:
        UsageError: A column is not declared, and there is no sample; or it is declared, and no
            input reads it.
        InputError: The sample lacks a column, or has a type that cannot be used.
    """
    names = list(dict.fromkeys(name for chain in chains for name in chain.names))
    for name in declared:
        if name not in names:
            raise UsageError(
                f"columns: {name!r} is declared, but no input reads it{suggest(name, names)}"
            )
    possible = {name: _possible(name, declared, sample) for name in names}
    types: dict[str, RawType] = {}
    for name, choices in possible.items():
        known = possible | {other: (raw,) for other, raw in types.items()}
        fits = [raw for raw in choices if _fits(chains, known | {name: (raw,)}, name)]
        if len(fits) > 1 and fits[0] != choices[0] and sample is not None:
            fits.sort(key=lambda raw: _refused(sample_column(sample, name), raw))
        types[name] = _preferred(fits or choices, name, chains, whole, sample)
    return {name: types[name] for name in sorted(types, key=names.index)}


def sample_column(sample: pa.Table, name: str) -> pa.Array:
    """Return a column of a sample. Raise InputError if it does not exist."""
    if name not in sample.column_names:
        raise InputError(
            f"the sample has no column {name!r}{suggest(name, sample.column_names)}; it has "
            f"{', '.join(sample.column_names[:40])}"
        )
    if sample.column_names.count(name) > 1:
        raise InputError(f"the sample has several columns {name!r}: rename all but one")
    column = sample.column(name)
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def read_column(sample: pa.Table, name: str, raw: str) -> Cells:
    """Return a column of a sample as cells of a raw type.

    Raises:
        InputError: The sample lacks the column, or its type cannot be used.
    """
    column = sample_column(sample, name)
    if not can_become(column.type, raw):
        raise InputError(
            f"sample column {name!r}: expected {expected(raw)}, got {column.type}: declare another "
            "type, or convert the column"
        )
    return values.read_column(column, raw).of(name)


def spells_lists(sample: pa.Table, name: str) -> bool:
    """Return whether a column of a sample is text that spells lists, as in a CSV file."""
    column = sample_column(sample, name)
    return is_text(column.type) and _is_of(column, "list<string>")


def _possible(
    name: str, declared: Mapping[str, RawType], sample: pa.Table | None
) -> Sequence[RawType]:
    """Return the raw types that a column can have, the most likely one first."""
    if name in declared:
        return (declared[name],)
    if sample is None:
        raise UsageError(
            f"column {name!r}: expected its type, or a sample that shows it: pass --sample, or "
            f'declare it, for example {name} = "float64" in [columns]'
        )
    type_ = sample_column(sample, name).type
    if pa.types.is_dictionary(type_):
        type_ = type_.value_type
    found = tuple(raw for raw in _likely(type_) if can_become(type_, raw))
    if not found:
        raise InputError(
            f"sample column {name!r}: expected numbers, text, times, bytes or lists of them, got "
            f"{type_}: convert it first"
        )
    return found


def _likely(type_: pa.DataType) -> Sequence[RawType]:
    if is_list(type_):
        item = type_.value_type
        if is_text(item):
            return _OF_LISTS
        if pa.types.is_integer(item):
            return ("list<int64>", "list<float64>")
        return ("list<float64>",)
    if is_text(type_) or pa.types.is_null(type_):
        return _OF_TEXT
    if pa.types.is_integer(type_):
        return ("int64", "float64")
    if pa.types.is_boolean(type_):
        return ("bool",)
    if pa.types.is_timestamp(type_):
        return ("timestamp",) if type_.tz else ("datetime",)
    if pa.types.is_date(type_):
        return ("date",)
    return ("binary",) if is_binary(type_) else ("float64",)


def _preferred(
    fits: Sequence[RawType],
    name: str,
    chains: Sequence[Chain],
    whole: Collection[Chain],
    sample: pa.Table | None,
) -> RawType:
    """Return the best of the types that fit a column, the most likely of which is the first."""
    readers = [reader for chain in chains for reader in _readers(chain, name)]
    if len(fits) == 1 or sample is None or not all(map(_takes_any_number, readers)):
        return fits[0]
    if fits[0] == "string" and "float64" in fits:
        column = sample_column(sample, name)
        return "float64" if _is_of(column, "float64") else "string"
    reading = [chain for chain in chains if name in chain.names]
    rounds = any(chain.start == name and _fills_with_mean(chain) for chain in reading)
    if fits[0] in _FLOATS and rounds and not any(chain in whole for chain in reading):
        return _FLOATS[fits[0]]
    return fits[0]


def _readers(chain: Chain, name: str) -> Iterator[Step | None]:
    """Yield the steps of a chain that read a column; None if the chain ends in its cells."""
    if chain.start == name:
        yield next((step for step in chain.steps if not isinstance(step, Fill | FillToFit)), None)
    yield from (step for step in chain.steps if name in step.operands)


def _takes_any_number(step: Step | None) -> bool:
    """Return whether a step takes numbers, integers or not, and does not read them as text."""
    if step is None or isinstance(step, Call):
        return True
    return Kind.TEXT not in step.TAKES and not isinstance(step, OneHot)


def _fills_with_mean(chain: Chain) -> bool:
    fills = takewhile(lambda step: isinstance(step, Fill | FillToFit), chain.steps)
    return any(isinstance(step, FillToFit) and step.value != "most_frequent" for step in fills)


def _fits(chains: Sequence[Chain], possible: Mapping[str, Sequence[RawType]], name: str) -> bool:
    """Return whether all chains that read a column can end in numbers."""
    return all(
        any(_ends_in_numbers(chain, types) for types in _choices(chain, possible))
        for chain in chains
        if name in chain.names
    )


def _choices(
    chain: Chain, possible: Mapping[str, Sequence[RawType]]
) -> Iterator[dict[str, pa.DataType]]:
    """Yield the types that the columns of a chain can have together.

    The steps that take other columns take numbers or anything, whatever the others are. So a
    number is tried for these, and all types for the first one only.
    """
    others = {
        name: RAW_TYPES["float64" if "float64" in possible[name] else possible[name][0]]
        for name in chain.names
    }
    for raw in possible[chain.start]:
        yield others | {chain.start: RAW_TYPES[raw]}


def _ends_in_numbers(chain: Chain, types: Mapping[str, pa.DataType]) -> bool:
    try:
        return kind_of(chain.gives(types)) in (Kind.NUMBER, Kind.VECTOR)
    except ManifestError:
        return False


def _refused(column: pa.Array, raw: str) -> int:
    """Return how many cells of a column cannot be values of a raw type."""
    found = [refused.rows for refused in values.read_column(column, raw).refused]
    return len(np.unique(np.concatenate(found))) if found else 0


def _is_of(column: pa.Array, raw: str) -> bool:
    """Return whether all cells of a column but nulls are values of a raw type, one or more."""
    cells = values.read_column(column, raw)
    return not cells.refused and cells.values.null_count < len(cells.values)
