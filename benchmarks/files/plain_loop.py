"""The contestant plain loop: record batches with pyarrow and torch, without Beam (roofline)."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from benchmarks.contestant import (
    ID_COLUMN,
    LATENT,
    LATENT_OUTPUT,
    SCORE_OUTPUT,
    print_scores_at,
    read_task,
    timed,
)
from benchmarks.two_outputs import load_two_outputs
from examples.transactions.data import FEATURES

# Measured on 2 cores with 10 million rows, each in a new process, best rate in million rows per
# second:
#   rows per batch: 4,096 1.26; 8,192 1.48; 16,384 1.66; 32,768 2.00; 65,536 2.17; 131,072 1.99
#   (1,024, measured with 1 million rows: half the rate of 16,384);
#   torch threads: 2 (its default here) 2.17, 1 1.79;
#   pyarrow's use_threads: on 2.17, off 1.98; pre_buffer: off 2.17, on 1.04 and 4 times the memory;
#   memory_map, and reading one row group at a time: no gain.
# From columns to a matrix, in us per row at 8,192 and 65,536 rows:
#   RecordBatch.to_tensor 0.022 and 0.030; np.stack(axis=1) and out[:, j] = column 0.029 and 0.034;
#   a transposed copy by torch 0.031 and 0.031, by numpy 0.17 and 0.11;
#   a transposed view 0.010 and 0.004, but then the forward pass takes 0.02 more.
# The dictionary encoding that Parquet writers try by default takes longer than the forward pass.
BATCH_ROWS = 65_536
ROW_GROUP_ROWS = 131_072
SCHEMA = pa.schema(
    [
        ("row_id", pa.string()),
        ("score", pa.float32()),
        ("encoded", pa.list_(pa.float32(), LATENT)),
    ]
)


def to_matrix(batch: pa.RecordBatch) -> npt.NDArray[np.float32]:
    """Return a record batch with 30 float32 columns as a matrix `[rows, 30]` in row-major order.

    Raises:
        ValueError: A feature is null, NaN or infinite.
    """
    features = batch.select(FEATURES)
    if any(column.null_count for column in features.columns):
        raise ValueError(f"expected no nulls in the features, got some among {batch.num_rows} rows")
    matrix: npt.NDArray[np.float32] = features.to_tensor(row_major=True).to_numpy()
    if not np.isfinite(matrix).all():
        raise ValueError(f"expected finite features, got others among {batch.num_rows} rows")
    return matrix


def scored(batches: Iterator[pa.RecordBatch], model: torch.nn.Module) -> Iterator[pa.RecordBatch]:
    """Score record batches of transactions, and yield a record batch of `SCHEMA` for each."""
    for batch in batches:
        outputs = model(torch.from_numpy(to_matrix(batch)))
        latent = pa.array(outputs[LATENT_OUTPUT].numpy().reshape(-1))
        columns = [
            batch.column(ID_COLUMN),
            pa.array(outputs[SCORE_OUTPUT].numpy()),
            pa.FixedSizeListArray.from_arrays(latent, LATENT),
        ]
        yield pa.record_batch(columns, schema=SCHEMA)


def run(source: Path, target: Path, model: torch.nn.Module) -> None:
    """Score a Parquet file of transactions into another Parquet file."""
    reader = pq.ParquetFile(source, pre_buffer=False)
    batches = reader.iter_batches(BATCH_ROWS, columns=[ID_COLUMN, *FEATURES], use_threads=True)
    with (
        torch.inference_mode(),
        pq.ParquetWriter(target, SCHEMA, compression="snappy", use_dictionary=False) as writer,
    ):
        for batch in scored(batches, model):
            writer.write_batch(batch, row_group_size=ROW_GROUP_ROWS)


def main() -> None:
    """Score the file and print the report."""
    task = read_task("Score a Parquet file in a plain loop.")
    model = load_two_outputs(task.torchscript)
    with timed() as clock:
        run(task.input, task.output / "part-00000.parquet", model)
    print_scores_at(task.output, clock)


if __name__ == "__main__":
    main()
