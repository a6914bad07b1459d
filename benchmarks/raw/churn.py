"""What the contestants share: the numbers of the package, the model, and the result."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import torch

from examples.churn.build import DECISIONS, THRESHOLDS
from examples.churn.data import DEVICES, OUTCOMES, PLANS
from examples.churn.model import MOST_DEVICES

ID_COLUMN = "customer_id"
COLUMNS = (
    *(ID_COLUMN, "plan", "region", "signed_up", "last_seen", "monthly_fee", "usage_gb"),
    *("support_calls", "is_company", "devices"),
)
ZONE = "Europe/Berlin"
SECONDS_A_DAY = 86_400.0
_LOADING = threading.Lock()
MOST_PER_GB, MOST_CALLS = 20.0, 10.0
RESULT = pa.schema(
    [
        ("row_id", pa.string()),
        ("score", pa.float32()),
        ("outcome", pa.string()),
        ("decision", pa.string()),
    ]
)

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """What was fitted when the model was trained.

    Attributes:
        median_fee: The fee of a row that has none.
        scales: The mean and the standard deviation of each scaled number, by name.
        plans: The plans, in the order of their positions.
        regions: The regions, in the order of their positions.
    """

    median_fee: float
    scales: Mapping[str, tuple[float, float]]
    plans: tuple[str, ...]
    regions: tuple[str, ...]

    def scale(self, name: str, values: Any) -> Any:
        """Return values as distances from the mean, in standard deviations."""
        mean, deviation = self.scales[name]
        return (values - mean) / deviation


SCALED = ("fee", "usage", "per_gb", "calls", "company", "signed_up", "last_seen")


def read_fitted(package: Path) -> Fitted:
    """Read what was fitted from a package of the churn example."""
    dense = json.loads((package / "model.json").read_text())["inputs"][0]["from"]
    scales = {
        name: (chain[-1]["mean"], chain[-1]["std"])
        for name, chain in zip(SCALED, dense, strict=False)
        if chain[-1].get("step") == "scale"
    }
    files = [tuple((package / f"{name}.txt").read_text().split()) for name in ("plan", "region")]
    return Fitted(median_fee=dense[0][1]["value"], scales=scales, plans=files[0], regions=files[1])


def load_model(package: Path) -> torch.nn.Module:
    """Load the model of the package, as PyTorch does."""
    # Daft loads it in each of its threads, and PyTorch reads one .pt2 file at a time.
    with _LOADING:
        return torch.export.load(str(package / "model.pt2")).module()


def devices_of(lists: pa.ListArray) -> tuple[Ints, npt.NDArray[np.float32]]:
    """Return the positions of devices, and 1 for each place that has one; both [rows, devices]."""
    counts = pc.list_value_length(lists).to_numpy(zero_copy_only=False)
    owned = (np.arange(MOST_DEVICES) < counts[:, None]).astype(np.float32)
    found = np.zeros(owned.shape, np.int64)
    found[owned > 0] = pc.index_in(pc.list_flatten(lists), pa.array(DEVICES)).to_numpy()
    return found, owned


def dense_of(fitted: Fitted, numbers: Mapping[str, Floats], hour: Floats) -> npt.NDArray[Any]:
    """Return the input `dense`, float32 [rows, 9], from numbers by name, each [rows]."""
    columns = [
        fitted.scale(name, numbers[name]) if name in fitted.scales else numbers[name]
        for name in SCALED
    ]
    angle = 2 * np.pi * hour / 24
    return np.stack([*columns, np.sin(angle), np.cos(angle)], axis=1).astype(np.float32)


def result_of(ids: pa.Array, logits: torch.Tensor) -> pa.RecordBatch:
    """Return the result of rows from their logits [rows, 3]."""
    probabilities = torch.softmax(logits, dim=1)
    risk = probabilities[:, OUTCOMES.index("leaves")].contiguous().numpy()
    best = pa.array(probabilities.argmax(dim=1).numpy())
    step = pa.array(np.searchsorted(np.array(THRESHOLDS, np.float32), risk, side="right"))
    columns = [ids, pa.array(risk), pa.array(OUTCOMES).take(best), pa.array(DECISIONS).take(step)]
    return pa.record_batch(columns, schema=RESULT)


def check(plan: Ints, dense: npt.NDArray[Any]) -> None:
    """Raise ValueError if a plan is unknown, or a number is missing or infinite."""
    if (plan < 0).any() or not np.isfinite(dense).all():
        raise ValueError(f"expected plans {PLANS} and finite numbers, got others")
