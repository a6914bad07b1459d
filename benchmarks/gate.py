"""Compares the scores of a contestant with an eager reference, before the contestant may run."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch

from benchmarks.contestant import (
    ID_COLUMN,
    LATENT,
    LATENT_OUTPUT,
    SCORE_OUTPUT,
    score_files,
)
from examples.transactions.data import FEATURES
from examples.transactions.model import TransactionAutoencoder
from model_handlers.manifests.tolerance import TOLERANCE


@dataclass(frozen=True)
class Scores:
    """Row ids `[rows]`, scores `[rows]` and latent codes `[rows, 4]`, with rows in any order."""

    ids: npt.NDArray[np.str_]
    score: npt.NDArray[np.floating[Any]]
    encoded: npt.NDArray[np.floating[Any]]


def find_faults(found: Scores, expected: Scores) -> list[str]:
    """Return a line for each kind of fault.

    The ids must be those of the reference, each exactly once. Values must match within the
    tolerance of `model_handlers`.
    """
    ids, counts = np.unique(found.ids, return_counts=True)
    faults = [
        _fault("id doubled", ids[counts > 1]),
        _fault("id missing", np.setdiff1d(expected.ids, ids)),
        _fault("id unknown", np.setdiff1d(ids, expected.ids)),
    ]
    order = np.argsort(expected.ids)
    sorted_ids = expected.ids[order]
    place = np.searchsorted(sorted_ids, found.ids).clip(max=sorted_ids.size - 1)
    known = sorted_ids[place] == found.ids
    row = order[place[known]]
    score_ok = TOLERANCE.agree(found.score[known], expected.score[row])
    encoded_ok = TOLERANCE.agree(found.encoded[known], expected.encoded[row]).all(axis=1)
    faults += [
        _fault("score differs", found.ids[known][~score_ok]),
        _fault("encoded differs", found.ids[known][~encoded_ok]),
    ]
    return [fault for fault in faults if fault]


def _fault(kind: str, ids: npt.NDArray[np.str_]) -> str:
    """Return a line about a kind of fault, empty if no id has it."""
    return f"{kind}: {ids.size} rows, the first is {ids[0]}" if ids.size else ""


def read_scores(output: Path) -> Scores:
    """Read the scores that a contestant wrote.

    Raises:
        ValueError: There are no files, or a column is missing, has the wrong type or has nulls.
    """
    files = score_files(output)
    if not files:
        raise ValueError(f"expected Parquet files part-* in {output}, found none")
    columns = ["row_id", "score", "encoded"]
    table = pa.concat_tables([pq.read_table(path, columns=columns) for path in files])
    if table.column_names != columns or any(column.null_count for column in table.columns):
        raise ValueError(f"expected {columns} without nulls, got {table.schema}")
    encoded = table["encoded"]
    if table["score"].type != pa.float32() or encoded.type.value_type != pa.float32():
        raise ValueError(f"expected score and encoded of float32, got {table.schema}")
    if pc.any(pc.not_equal(pc.list_value_length(encoded), LATENT)).as_py():
        raise ValueError(f"expected {LATENT} values in each encoded")
    return Scores(
        table["row_id"].to_numpy().astype(np.str_),
        table["score"].to_numpy(),
        pc.list_flatten(encoded).to_numpy().reshape(-1, LATENT),
    )


def reference(data: Path, model: Path) -> Scores:
    """Score a Parquet file of transactions with the eager model in float64."""
    eager = TransactionAutoencoder()
    eager.load_state_dict(torch.jit.load(str(model)).state_dict())
    eager.eval().double()
    table = pq.read_table(data, columns=[ID_COLUMN, *FEATURES])
    rows = np.stack([table[name].to_numpy() for name in FEATURES], axis=1).astype(np.float64)
    with torch.no_grad():
        outputs = eager(torch.from_numpy(rows))
    return Scores(
        table[ID_COLUMN].to_numpy().astype(np.str_),
        outputs[SCORE_OUTPUT].numpy(),
        outputs[LATENT_OUTPUT].numpy(),
    )
