"""Statistics of the columns of a sample, which a package keeps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from model_handlers.manifests.manifest import ColumnStatistics, FeatureStatistics, Spread
from model_handlers.packaging.to_fit import most_frequent, present
from model_handlers.steps.numeric import as_floats
from model_handlers.steps.step import Cells, Kind, kind_of

QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
# A category that is longer than this many characters is not kept, nor are more than this many.
MOST_CATEGORIES = 100
_LONGEST_CATEGORY = 200


def describe_features(columns: Sequence[str], values: np.ndarray) -> dict[str, FeatureStatistics]:
    """Compute the statistics of feature columns.

    Args:
        columns: The names of the columns.
        values: Their values `[rows, columns]`, all finite.

    Returns:
        The statistics by column.
    """
    spreads = (_spread(numbers) for numbers in values.astype(np.float64).T)
    return {
        column: FeatureStatistics(count=len(values), **vars(spread))
        for column, spread in zip(columns, spreads, strict=True)
        if spread is not None
    }


def describe_columns(columns: Mapping[str, Cells]) -> dict[str, ColumnStatistics]:
    """Compute the statistics of raw columns.

    Args:
        columns: The cells of each column, as the source has them.

    Returns:
        The statistics by column.
    """
    return {name: describe_column(cells) for name, cells in columns.items()}


def describe_column(cells: Cells) -> ColumnStatistics:
    """Compute the statistics of a raw column."""
    count = len(cells.values)
    rows = [some.rows for some in cells.refused]
    refused = len(np.unique(np.concatenate(rows))) if rows else 0
    members: dict[str, Any] = {}
    type_ = cells.values.type
    if kind_of(type_) is Kind.LIST:
        lengths = pc.list_value_length(cells.values).drop_null()
        members["lengths"] = _spread(np.asarray(lengths, np.float64))
        type_ = type_.value_type
    values = present(cells.values)
    if kind_of(type_) is Kind.TIME and len(values):
        ends = pc.min_max(values)
        members |= {"earliest": _text(ends["min"]), "latest": _text(ends["max"])}
    if kind_of(type_) is Kind.NUMBER and not pa.types.is_boolean(type_):
        members["numbers"] = _spread(np.asarray(as_floats(values)))
    if not (pa.types.is_floating(type_) or kind_of(type_) in (Kind.TIME, Kind.BYTES)):
        members |= _categories(values)
    return ColumnStatistics(
        count=count,
        nulls=(cells.values.null_count - refused) / count if count else 0.0,
        refused=refused / count if count else 0.0,
        **members,
    )


def _spread(numbers: np.ndarray) -> Spread | None:
    if not len(numbers):
        return None
    # The sum and the difference of very large numbers overflow.
    with np.errstate(over="ignore", invalid="ignore"):
        quantiles = np.quantile(numbers, QUANTILES)
        mean, std = float(numbers.mean()), float(numbers.std())
    if not np.isfinite(quantiles).all():
        quantiles = np.quantile(numbers, QUANTILES, method="lower")
    quantiles = quantiles.tolist()
    return Spread(
        mean=mean if np.isfinite(mean) else quantiles[3],
        std=std if np.isfinite(std) else 0.0,
        min=float(numbers.min()),
        max=float(numbers.max()),
        quantiles={str(q): value for q, value in zip(QUANTILES, quantiles, strict=True)},
    )


def _categories(values: pa.Array) -> dict[str, Any]:
    """Return the number of different values, and the most frequent ones with their counts."""
    found = most_frequent(values)
    texts = ((_category(value), count) for value, count in found[:MOST_CATEGORIES])
    kept = {text: count for text, count in texts if len(text) <= _LONGEST_CATEGORY}
    return {"distinct": len(found), "categories": kept}


def _category(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _text(scalar: pa.Scalar) -> str:
    text: str = scalar.cast(pa.string()).as_py()
    return text
