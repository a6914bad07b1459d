"""The contestant pandas loop: record batches as data frames, prepared by pandas and numpy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from benchmarks.contestant import print_scores_at, read_task, timed
from benchmarks.raw.churn import (
    COLUMNS,
    ID_COLUMN,
    MOST_CALLS,
    MOST_PER_GB,
    RESULT,
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


def prepare(batch: pa.RecordBatch, fitted: Fitted) -> dict[str, torch.Tensor]:
    """Return the inputs of the model for a record batch of customers."""
    frame = batch.drop_columns([ID_COLUMN, "devices"]).to_pandas(date_as_object=False)
    fee = frame["monthly_fee"].fillna(fitted.median_fee)
    seen = frame["last_seen"]
    numbers = {
        "fee": np.log1p(fee),
        "usage": np.log1p(frame["usage_gb"]),
        "per_gb": (fee / frame["usage_gb"]).clip(upper=MOST_PER_GB),
        "calls": frame["support_calls"].clip(upper=MOST_CALLS),
        "company": frame["is_company"].astype(np.float64),
        "signed_up": frame["signed_up"].astype("datetime64[s]").astype("int64") / SECONDS_A_DAY,
        "last_seen": seen.astype("int64") / (1e6 * SECONDS_A_DAY),
    }
    dense = dense_of(fitted, numbers, seen.dt.tz_convert(ZONE).dt.hour.to_numpy(np.float64))
    plan = pd.Index(fitted.plans).get_indexer(frame["plan"].str.lower())
    check(plan, dense)
    region = pd.Index(fitted.regions).get_indexer(frame["region"])
    devices, owned = devices_of(batch.column("devices"))
    arrays = {
        "dense": dense,
        "plan": plan.astype(np.int64),
        "region": np.where(region < 0, len(fitted.regions), region).astype(np.int64),
        "devices": devices,
        "owned": owned,
    }
    return {name: torch.from_numpy(values) for name, values in arrays.items()}


def run(source: Path, target: Path, package: Path) -> None:
    """Score a Parquet file of customers into another Parquet file."""
    fitted, model = read_fitted(package), load_model(package)
    reader = pq.ParquetFile(source, pre_buffer=False)
    with (
        torch.inference_mode(),
        pq.ParquetWriter(target, RESULT, compression="snappy", use_dictionary=False) as writer,
    ):
        for batch in reader.iter_batches(BATCH_ROWS, columns=list(COLUMNS), use_threads=True):
            logits = model(**prepare(batch, fitted))
            writer.write_batch(result_of(batch.column(ID_COLUMN), logits))


def main() -> None:
    """Score the file and print the report."""
    task = read_task("Score a Parquet file of customers in a pandas loop.")
    with timed() as clock:
        run(task.input, task.output / "part-00000.parquet", task.model)
    print_scores_at(task.output, clock)


if __name__ == "__main__":
    main()
