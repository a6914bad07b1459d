"""The contestant Daft: expressions for the numbers, and a class of batches for the model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import daft
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from daft import DataType, col
from daft.functions import clip, convert_time_zone, fill_null, hour, log1p, lower

from benchmarks.contestant import print_scores_at, read_task, timed
from benchmarks.raw.churn import (
    ID_COLUMN,
    MOST_CALLS,
    MOST_PER_GB,
    RESULT,
    SCALED,
    SECONDS_A_DAY,
    ZONE,
    Fitted,
    check,
    dense_of,
    devices_of,
    load_model,
    read_fitted,
    result_of,
)

BATCH_ROWS = 65_536
RESULT_TYPE = DataType.struct(
    {
        field.name: DataType.float32() if field.name == "score" else DataType.string()
        for field in RESULT
    }
)


@daft.cls(use_process=False)
class Scorer:
    """The model, which takes prepared columns."""

    def __init__(self, package: str) -> None:
        self.fitted, self.model = read_fitted(Path(package)), load_model(Path(package))

    @daft.method.batch(return_dtype=RESULT_TYPE, batch_size=BATCH_ROWS)
    def score(self, *columns: daft.Series) -> daft.Series:
        """Return the results of a batch as structs."""
        ids, plan, region, devices, hours, *numbers = (_array(column) for column in columns)
        by_name = {
            name: np.asarray(values.to_numpy(zero_copy_only=False), np.float64)
            for name, values in zip(SCALED, numbers, strict=True)
        }
        dense = dense_of(self.fitted, by_name, hours.to_numpy(zero_copy_only=False))
        plans = _positions(plan, self.fitted.plans)
        check(plans, dense)
        regions = _positions(region, self.fitted.regions)
        positions, owned = devices_of(devices)
        arrays = {
            "dense": dense,
            "plan": plans,
            "region": np.where(regions < 0, len(self.fitted.regions), regions),
            "devices": positions,
            "owned": owned,
        }
        with torch.inference_mode():
            logits = self.model(**{name: torch.from_numpy(array) for name, array in arrays.items()})
        found = result_of(ids.cast(pa.string()), logits)
        return daft.Series.from_arrow(
            pa.StructArray.from_arrays(found.columns, fields=list(RESULT))
        )


def _array(column: daft.Series) -> pa.Array:
    array: Any = column.to_arrow()
    return array.combine_chunks() if isinstance(array, pa.ChunkedArray) else array


def _positions(values: pa.Array, names: tuple[str, ...]) -> Any:
    found = pc.index_in(values, pa.array(names, values.type))
    return found.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)


def numbers(fitted: Fitted) -> dict[str, daft.Expression]:
    """Return the numbers of the input `dense` by name, before they are scaled."""
    fee = fill_null(col("monthly_fee"), fitted.median_fee)
    return {
        "fee": log1p(fee),
        "usage": log1p(col("usage_gb")),
        "per_gb": clip(fee / col("usage_gb"), max=MOST_PER_GB),
        "calls": clip(col("support_calls"), max=MOST_CALLS),
        "company": col("is_company").cast(DataType.float64()),
        "signed_up": col("signed_up").cast(DataType.int32()).cast(DataType.float64()),
        "last_seen": col("last_seen").cast(DataType.int64()) / (1e6 * SECONDS_A_DAY),
    }


def run(source: Path, target: Path, package: Path) -> None:
    """Score a Parquet file of customers into Parquet files."""
    fitted = read_fitted(package)
    hours = hour(convert_time_zone(col("last_seen"), ZONE)).cast(DataType.float64())
    frame = daft.read_parquet(str(source))
    columns = [col(ID_COLUMN), lower(col("plan")), col("region"), col("devices"), hours]
    scored = Scorer(str(package)).score(*columns, *numbers(fitted).values()).alias("scored")
    found = frame.select(scored).select(
        *(col("scored").get(field.name).alias(field.name) for field in RESULT)
    )
    found.write_parquet(str(target))


def main() -> None:
    """Score the file and print the report."""
    task = read_task("Score a Parquet file of customers with Daft.")
    with timed() as clock:
        run(task.input, task.output, task.model)
    for number, path in enumerate(sorted(task.output.glob("*.parquet"))):
        path.rename(task.output / f"part-{number:05d}.parquet")
    print_scores_at(task.output, clock)


if __name__ == "__main__":
    main()
