"""Build the example: windows to score, a trained regression, and its package.

python -m examples.sensors.build --output build/sensors

    windows.parquet    rows to score, 1 % of them faulty
    training.parquet   rows on which the model was trained
    package/           model.json, model.pt2 and the list of machines
    accuracy.json      figures on how well the model does on rows that it was not trained on
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from examples.raw_training import build_from, export_pt2, fit_model
from examples.sensors.data import LONGEST, generate
from examples.sensors.model import SensorModel
from millrace import column, field, fit, output, package, prepare
from millrace.packaging import Inputs
from model_handlers.packaging.fit import FittedInputs

HUNDRED = 100.0
# A machine that will run for less than these hours is replaced, or its replacement is planned.
THRESHOLDS = (48.0, 168.0)
DECISIONS = ("replace", "plan", "fine")
# The last readings count. Short windows are extended at their start.
_WINDOW: dict[str, Any] = {"to": LONGEST, "keep": "last", "side": "start"}

INPUTS: Inputs = {
    "temperature": [column("temperature").scale().pad(**_WINDOW)],
    "vibration": [column("vibration").log1p().scale().pad(**_WINDOW)],
    "mask": [column("temperature").mask(**_WINDOW)],
    "machine": column("machine").vocabulary(),
    "length": column("temperature").length(**_WINDOW),
}
FIELDS = {
    "hours_left": output("hundred_hours").multiply(HUNDRED),
    "decision": field("hours_left").cut(THRESHOLDS, DECISIONS),
}


def train(table: pa.Table, *, seed: int) -> tuple[SensorModel, FittedInputs]:
    """Train the model on windows.

    Args:
        table: The windows, with the hours for which their machines ran.
        seed: The seed of the weights and of the order of rows.

    Returns:
        The model in eval mode, and the fitted inputs.
    """
    inputs = fit(table, INPUTS)
    rows = prepare(table, inputs)
    target = torch.tensor(table["hours_left"].take(pa.array(rows.rows)).to_numpy() / HUNDRED)
    torch.manual_seed(seed)
    model = fit_model(
        SensorModel(),
        rows.torch(),
        target.float()[:, None],
        torch.nn.functional.l1_loss,
    )
    return model, inputs


def accuracy(model: SensorModel, inputs: FittedInputs, table: pa.Table) -> dict[str, float]:
    """Measure the mean absolute error in hours, and that of always answering the median."""
    rows = prepare(table, inputs)
    hours = table["hours_left"].take(pa.array(rows.rows)).to_numpy()
    with torch.inference_mode():
        answers = model(**rows.torch())[:, 0].numpy() * HUNDRED
    return {
        "rows": len(hours),
        "mean_absolute_error": float(abs(answers - hours).mean()),
        "mean_absolute_error_of_guessing": float(abs(hours - np.median(hours)).mean()),
    }


def build(folder: Path, *, rows: int, train_rows: int, seed: int) -> None:
    """Build the whole example in a folder, which is created if needed.

    Args:
        folder: The folder.
        rows: The number of rows to score.
        train_rows: The number of rows to train on.
        seed: The seed of the rows and the training.
    """
    folder.mkdir(parents=True, exist_ok=True)
    training = generate(train_rows, seed=seed, faulty=0.0)
    scored = generate(rows, seed=seed + 1)
    pq.write_table(training, folder / "training.parquet")
    pq.write_table(scored.drop(["hours_left"]), folder / "windows.parquet")
    model, inputs = train(training, seed=seed)
    export_pt2(model, prepare(training.slice(0, 100), inputs).torch(), folder / "model.pt2")
    package(
        folder / "model.pt2",
        folder / "package",
        name="sensors",
        version="1.0.0",
        sample=training,
        inputs=inputs,
        outputs=["hundred_hours"],
        fields=FIELDS,
        score="hours_left",
        output_fields=["decision"],
    )
    report = accuracy(model, inputs, scored)
    (folder / "accuracy.json").write_text(json.dumps(report, indent=1) + "\n")


def main(argv: list[str] | None = None) -> None:
    """Build the example in the folder that the command line names."""
    build_from("sensors", build, rows=20_000, train_rows=10_000, argv=argv)


if __name__ == "__main__":
    main()
