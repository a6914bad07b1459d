"""Build the example: customers to score, a trained classifier, and its package.

python -m examples.churn.build --output build/churn

    customers.parquet   rows to score, 1 % of them faulty
    training.parquet    rows on which the model was trained
    package/            model.json, model.pt2 and the lists of categories
    accuracy.json       figures on how well the model does on rows that it was not trained on
"""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from examples.churn.data import DEVICES, OUTCOMES, generate
from examples.churn.model import MOST_DEVICES, ChurnModel
from examples.raw_training import build_from, export_pt2, fit_model
from millrace import column, field, fit, output, package, prepare
from millrace.packaging import Inputs
from model_handlers.packaging.fit import FittedInputs

SECONDS_A_DAY = 86_400.0
# A customer who leaves with at least these probabilities gets a call, or an offer.
THRESHOLDS = (0.3, 0.6)
DECISIONS = ("none", "call", "offer")

INPUTS: Inputs = {
    "dense": [
        column("monthly_fee").fill("median").log1p().scale(),
        column("usage_gb").log1p().scale(),
        column("monthly_fee")
        .fill("median")
        .divide("usage_gb", by_zero=20.0)
        .clip(max=20.0)
        .scale(),
        column("support_calls").clip(max=10.0).scale(),
        column("is_company"),
        column("signed_up").epoch().divide(SECONDS_A_DAY).scale(),
        column("last_seen").epoch().divide(SECONDS_A_DAY).scale(),
        column("last_seen").time_part("hour", zone="Europe/Berlin", cyclic=True),
    ],
    "plan": column("plan").lower().vocabulary(),
    "region": column("region").vocabulary(hash_unknown=1),
    "devices": [column("devices").vocabulary(DEVICES).pad(MOST_DEVICES)],
    "owned": [column("devices").mask(MOST_DEVICES)],
}
FIELDS = {
    "probabilities": output("logits").softmax(),
    "outcome": field("probabilities").argmax().names(OUTCOMES),
    "risk": field("probabilities").element(OUTCOMES.index("leaves")),
    "decision": field("risk").cut(THRESHOLDS, DECISIONS),
    "likely": field("probabilities").top_k(values=OUTCOMES, k=2),
}


def train(table: pa.Table, *, seed: int) -> tuple[ChurnModel, FittedInputs]:
    """Train the model on customers.

    Args:
        table: The customers, with what they did.
        seed: The seed of the weights and of the order of rows.

    Returns:
        The model in eval mode, and the fitted inputs.
    """
    inputs = fit(table, INPUTS)
    rows = prepare(table, inputs)
    outcome = table["outcome"].take(pa.array(rows.rows)).to_pylist()
    target = torch.tensor([OUTCOMES.index(name) for name in outcome])
    torch.manual_seed(seed)
    model = fit_model(ChurnModel(), rows.torch(), target, torch.nn.functional.cross_entropy)
    return model, inputs


def accuracy(model: ChurnModel, inputs: FittedInputs, table: pa.Table) -> dict[str, float]:
    """Measure how often the most likely outcome is the right one, and how often if guessed."""
    rows = prepare(table, inputs)
    outcome = table["outcome"].take(pa.array(rows.rows)).to_pylist()
    with torch.inference_mode():
        best = model(**rows.torch()).argmax(dim=1).tolist()
    right = sum(OUTCOMES[i] == name for i, name in zip(best, outcome, strict=True))
    usual = max(outcome.count(name) for name in OUTCOMES)
    return {
        "rows": len(outcome),
        "accuracy": right / len(outcome),
        "accuracy_of_guessing": usual / len(outcome),
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
    pq.write_table(scored.drop(["outcome"]), folder / "customers.parquet")
    model, inputs = train(training, seed=seed)
    export_pt2(model, prepare(training.slice(0, 100), inputs).torch(), folder / "model.pt2")
    package(
        folder / "model.pt2",
        folder / "package",
        name="churn",
        version="1.0.0",
        sample=training,
        inputs=inputs,
        outputs=["logits"],
        fields=FIELDS,
        score="risk",
        output_fields=["outcome", "decision", "likely"],
    )
    report = accuracy(model, inputs, scored)
    (folder / "accuracy.json").write_text(json.dumps(report, indent=1) + "\n")


def main(argv: list[str] | None = None) -> None:
    """Build the example in the folder that the command line names."""
    build_from("churn", build, rows=100_000, train_rows=40_000, argv=argv)


if __name__ == "__main__":
    main()
