"""A tour of two minutes: build the example, score it and show the results.

python -m examples.transactions.demo --output build/demo
"""

from __future__ import annotations

import importlib.util
import json
import shlex
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from common.command_line import CommandParser, parse_or_exit

if TYPE_CHECKING:
    import pyarrow as pa

RUN_ID = "demo"


def command(example: Path, output: Path) -> list[str]:
    """Return the command that scores the example.

    Args:
        example: The folder of the example.
        output: The folder for the results.
    """
    flags = {
        "input_files": example / "transactions.parquet",
        "model": example / "model",
        "output_files": output,
        "id_column": "transaction_id",
        "score_output": "normalized_MAE",
        "output_fields": "encoded,Amount,Class",
        "run_id": RUN_ID,
    }
    pairs = [text for name, value in flags.items() for text in (f"--{name}", str(value))]
    page = ["--report_html"] if importlib.util.find_spec("vl_convert") else []
    return [sys.executable, "-m", "pipelines.batch_local", *pairs, *page]


def show_top(scores: pa.Table, rows: int = 10) -> str:
    """Return the rows with the highest scores as lines of text.

    Args:
        scores: The scored rows.
        rows: How many rows to show.
    """
    top = scores.sort_by([("score", "descending")]).slice(0, rows).to_pylist()
    lines = [f"{'row_id':<12} {'score':>7} {'Amount':>10}  fraud"]
    for row in top:
        fraud = "yes" if row["Class"] else ""
        lines.append(
            f"{row['row_id']:<12} {row['score']:>7.3f} {row['Amount']:>10,.2f}  {fraud}".rstrip()
        )
    return "\n".join(lines)


def show_detection(report: Mapping[str, float]) -> str:
    """Return the detection report of the trained model as lines of text."""
    lines = [
        f"as a detector of fraud, on {report['rows']:,.0f} rows that it was not trained on, "
        f"{report['frauds']:.0f} of them frauds:",
        f"{'':<17} precision at 100  average precision",
    ]
    for name in ("normalized_MAE", "denormalized_MAE"):
        top, average = report[f"{name}_precision_at_100"], report[f"{name}_average_precision"]
        lines.append(f"{name:<17} {top:>16.2f}  {average:>17.3f}")
    return "\n".join(lines)


def plot_scores(scores: pa.Table, path: Path) -> None:
    """Draw a histogram of the scores, with separate colors for frauds and normal payments.

    Args:
        scores: The scored rows.
        path: The path of the PNG file.

    Raises:
        ModuleNotFoundError: If matplotlib is not installed.
    """
    import matplotlib as mpl
    import numpy as np

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    values = scores["score"].to_numpy()
    fraud = scores["Class"].to_numpy() == 1
    bins = np.geomspace(values.min(), values.max(), 80)
    figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    axes.hist(values[~fraud], bins, label=f"normal ({(~fraud).sum():,})", color="#4c78a8")
    axes.hist(values[fraud], bins, label=f"fraud ({fraud.sum():,})", color="#e45756")
    axes.set(xscale="log", yscale="log", xlabel="score (normalized_MAE)", ylabel="transactions")
    axes.set_title("Anomaly scores of the example's transactions")
    axes.legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main(argv: list[str] | None = None) -> int:
    """Run the demo, and return the exit code of its scoring run."""
    parser = CommandParser(
        "examples.transactions.demo", "Build the example, score it and show the results."
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("build/demo"),
        help="folder for the results (default: build/demo)",
    )
    parser.add_argument(
        "--example",
        type=Path,
        default=Path("build/example"),
        help="folder of the example, which is built if it does not exist (default: build/example)",
    )
    args = parse_or_exit(parser, argv)
    # Imported only now, so that a wrong flag is reported at once: importing torch and Beam takes
    # seconds.
    from examples.transactions.build import ensure_example
    from transforms.results import open_result

    ensure_example(args.example)
    arguments = command(args.example, args.output)
    print("$ " + shlex.join(["python", *arguments[1:]]) + "\n", flush=True)
    finished = subprocess.run(arguments, check=False)
    if finished.returncode:
        return finished.returncode
    scores = open_result(str(args.output / RUN_ID)).to_table()
    picture = args.output / RUN_ID / "scores.png"
    try:
        plot_scores(scores, picture)
        print(f"histogram     {picture}")
    except ModuleNotFoundError:
        print("histogram     pip install 'millrace[plots]' draws one")
    print(f"\nthe ten most anomalous transactions:\n{show_top(scores)}\n")
    print(show_detection(json.loads((args.example / "detection.json").read_text())))
    return 0


if __name__ == "__main__":
    sys.exit(main())
