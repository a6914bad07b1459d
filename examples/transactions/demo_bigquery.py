"""Score a BigQuery table into another one on this machine, with the servers of `make emulators`.

python -m examples.transactions.demo_bigquery
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from google.cloud import bigquery

from examples.local_cloud import INSTALL_COMMAND, PROJECT, LocalCloud, is_installed, local_cloud
from examples.transactions.build import ensure_example

SOURCE = f"{PROJECT}.frameworks.frameworks"
SCORES = f"{PROJECT}.frameworks.pytorch_autoencoder_scores"
BUCKET = "millrace-demo"
QUERIES = {
    "the most anomalous transactions": (
        f"SELECT row_id, ROUND(score, 3) AS score, Amount, Class FROM `{SCORES}` "
        "ORDER BY score DESC LIMIT 5"
    ),
    "one complete row": f"SELECT * FROM `{SCORES}` WHERE row_id = 't000000001'",
    "why rows were not scored": (
        f"SELECT stage, reason, COUNT(*) AS n FROM `{SCORES}_dead_letters` "
        "GROUP BY stage, reason ORDER BY n DESC"
    ),
}


def command(example: Path) -> list[str]:
    """Return the command that scores the table with the model of the example's folder."""
    flags = {
        "input_table": SOURCE,
        "model": example / "model",
        "output_table": SCORES,
        "id_column": "transaction_id",
        "score_output": "normalized_MAE",
        "output_fields": "encoded,Amount,Class",
        "cluster_by": "row_id",
        "temp_location": f"gs://{BUCKET}/tmp",
        "run_id": "demo",
    }
    pairs = [text for name, value in flags.items() for text in (f"--{name}", str(value))]
    return [sys.executable, "-m", "pipelines.batch_local", *pairs]


def fill(servers: LocalCloud, path: Path) -> int:
    """Load a Parquet file into the source table, and create an empty bucket.

    Args:
        servers: The running servers.
        path: The path of the Parquet file.

    Returns:
        The number of rows of the table.
    """
    client = servers.cloud.bigquery()
    client.create_dataset(SOURCE.rsplit(".", 1)[0])
    config = bigquery.LoadJobConfig(source_format="PARQUET")
    with path.open("rb") as file:
        job = client.load_table_from_file(file, SOURCE, job_config=config).result()
    servers.cloud.storage().create_bucket(BUCKET)
    return int(job.output_rows)


def show(rows: list[dict[str, Any]]) -> str:
    """Return rows as a text table, or a single row with one line per column."""
    if len(rows) == 1:
        return "\n".join(f"  {name:<15} {_text(value)}" for name, value in rows[0].items())
    cells = [list(rows[0])] + [[_text(value) for value in row.values()] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join(
        "  " + "  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip()
        for line in cells
    )


def _text(value: Any) -> str:
    if isinstance(value, list):
        return "[" + ", ".join(_text(item) for item in value) + "]"
    return f"{value:,.3f}" if isinstance(value, float) else str(value)


def main(argv: list[str] | None = None) -> int:
    """Run the demo, and return the exit code of its scoring run."""
    parser = argparse.ArgumentParser(
        description="Score a table of the local BigQuery into another."
    )
    parser.add_argument(
        "--example",
        type=Path,
        default=Path("build/example"),
        help="folder of the example, which is built if it does not exist (default: build/example)",
    )
    args = parser.parse_args(argv)
    if not is_installed():
        print(f"error: the emulators are not installed: run {INSTALL_COMMAND}", file=sys.stderr)
        return 1
    ensure_example(args.example)
    with tempfile.TemporaryDirectory() as folder, local_cloud(Path(folder)) as servers:
        rows = fill(servers, args.example / "transactions.parquet")
        print(f"table {SOURCE} of the local BigQuery holds {rows:,} transactions")
        for name, address in servers.environment.items():
            print(f"$ export {name}={address}")
        arguments = command(args.example)
        print("$ " + shlex.join(["python", *arguments[1:]]) + "\n", flush=True)
        finished = subprocess.run(arguments, check=False, env=servers.environ())
        if finished.returncode:
            return finished.returncode
        client = servers.cloud.bigquery()
        for title, sql in QUERIES.items():
            print(f"\n{title}:\n  {sql}\n{show([dict(row) for row in client.query(sql).result()])}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
