"""A command that behaves like a batch, with a fault: python tests/faulty_batch.py FAULT FLAGS."""

import argparse
import json
import os
import signal
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq

ID = "scale_test_row"


def main(fault: str, argv: list[str]) -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--input_files", type=lambda text: Path(text.strip('"')))
    for name in ("output_files", "run_id"):
        parser.add_argument(f"--{name}", type=Path)
    parser.add_argument("--dry_run", action="store_true")
    args, _ = parser.parse_known_args(argv)
    if args.dry_run:
        if fault == "refuse":
            print("note: looking at it\nerror: --model is missing", file=sys.stderr)
        return 2 if fault == "refuse" else 0
    place = args.output_files / args.run_id
    if fault == "kill":
        staged = args.output_files / ".staging" / args.run_id / "part"
        staged.parent.mkdir(parents=True)
        staged.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    if fault == "hang":
        print("running", file=sys.stderr, flush=True)
        time.sleep(600)
    if fault == "fail":
        print("error: the disk is full", file=sys.stderr)
        return 1
    table = ds.dataset(args.input_files).to_table()
    bad = [not abs(value) < float("inf") for value in table["Amount"].to_pylist()]
    ids = table[ID].to_pylist()
    scored = [one for one, is_bad in zip(ids, bad, strict=True) if not is_bad]
    dead = [one for one, is_bad in zip(ids, bad, strict=True) if is_bad]
    report = {"rows_scored": len(scored), "rows_dead_lettered": len(dead)}
    if fault == "lose":
        scored, report["rows_scored"] = scored[10:], len(scored) - 10
    elif fault == "double":
        scored, report["rows_scored"] = scored + scored[:10], len(scored) + 10
    elif fault == "swap":
        scored, dead = [*scored[1:], dead[0]], [*dead[1:], scored[0]]
    elif fault == "foreign":
        scored, report["rows_scored"] = [*scored, "r-0", "r-1"], len(scored) + 2
    elif fault == "lie":
        report["rows_scored"] += 1
    (place / "scores").mkdir(parents=True)
    (place / "dead_letters").mkdir()
    now = pa.scalar(datetime.now(UTC), pa.timestamp("us", tz="UTC"))
    rows = pa.table({"row_id": scored, "scored_at": pa.repeat(now, len(scored))})
    pq.write_table(rows, place / "scores" / "part-0.parquet")
    letters = [{"row_id": one, "failed_at": str(now)} for one in dead]
    (place / "dead_letters" / "part-0.jsonl").write_text(
        "".join(f"{json.dumps(letter)}\n" for letter in letters)
    )
    if fault != "silent":
        print(json.dumps(report))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
