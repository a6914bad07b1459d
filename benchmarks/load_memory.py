"""Compares the memory of runs with large models with the estimate that the runs print.

python -m benchmarks.load_memory --megabytes 500 1500

Each model has the same layers in all formats. Few rows are scored, so loading the model decides
the peak.
"""

from __future__ import annotations

import argparse
import json
import os
import pty
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import nn

from benchmarks.row_costs import write_results
from millrace import package

COLUMNS = tuple(f"c{i}" for i in range(30))
ROWS, WIDTH = 2_000, 4_096
POLL_SECONDS = 0.02
GB = 1 << 30
# How far an estimate may be off, as a part of what was measured.
MOST = 0.25
METHOD = {
    "peak_gb": "the largest resident memory of the process (VmHWM), 2^30 bytes",
    "estimate_gb": "what the run prints on a terminal before it starts, 2^30 bytes",
    "off": "the estimate divided by the peak, minus 1",
}


class Layers(nn.Module):
    """Square layers, which are as large as they are useless."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        self.first = nn.Linear(len(COLUMNS), WIDTH)
        self.rest = nn.ModuleList([nn.Linear(WIDTH, WIDTH) for _ in range(layers)])
        self.last = nn.Linear(WIDTH, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map `[rows, 30]` to `[rows, 1]`."""
        x = self.first(x)
        for layer in self.rest:
            x = torch.relu(layer(x))
        found: torch.Tensor = self.last(x)
        return found


def save(model: Layers, kind: str, path: Path) -> None:
    """Write a model file of a format."""
    if kind == "pt2":
        rows = torch.export.Dim("rows", min=1, max=1 << 20)
        example = (torch.zeros(3, len(COLUMNS)),)
        torch.export.save(
            torch.export.export(model, example, dynamic_shapes={"x": {0: rows}}), path
        )
    elif kind == "torchscript":
        torch.jit.save(torch.jit.script(model), path)
    elif kind == "safetensors":
        from safetensors.torch import save_file

        save_file(model.state_dict(), path)
    else:
        torch.save(model.state_dict(), path)


def make(kind: str, megabytes: int, folder: Path) -> list[str]:
    """Write a package into a folder, and return the flags of a run that name it."""
    layers = megabytes * 1_000_000 // (4 * WIDTH * WIDTH)
    suffix = {"torchscript": "pt", "state_dict": "pth"}.get(kind, kind)
    path = folder / f"model.{suffix}"
    save(Layers(layers).eval(), kind, path)
    given: dict[str, Any] = {}
    flags = ["--model", str(folder / "package")]
    if kind in ("safetensors", "state_dict"):
        given = {
            "architecture": "benchmarks.load_memory:Layers",
            "architecture_args": {"layers": layers},
            "trusted_modules": ["benchmarks"],
        }
        flags += ["--trusted_modules", "benchmarks"]
    package(path, folder / "package", inputs={"x": list(COLUMNS)}, **given)
    path.unlink()
    return flags


def run(command: Sequence[str]) -> tuple[float, float]:
    """Run a command on a terminal, and return its peak and the estimate that it prints, in GB."""
    master, slave = pty.openpty()
    printed: list[bytes] = []

    def read() -> None:
        while True:
            try:
                printed.append(os.read(master, 1 << 16))
            except OSError:
                return

    reader = threading.Thread(target=read)
    reader.start()
    process = subprocess.Popen(command, stdin=slave, stdout=slave, stderr=slave)
    os.close(slave)
    peak = 0
    while process.poll() is None:
        # What getrusage reports would include the memory of this process.
        peak = _peak_of(process.pid) or peak
        time.sleep(POLL_SECONDS)
    reader.join()
    os.close(master)
    text = b"".join(printed).decode(errors="replace")
    found = re.search(r"memory: about ([\d.]+) GB", text)
    if process.returncode or found is None:
        raise RuntimeError(f"a run failed: {text[-2000:]}")
    return peak / GB, float(found[1])


def _peak_of(process: int) -> int:
    """Return the largest resident memory of a process so far, in bytes, or 0 if it has ended."""
    with suppress(OSError):
        for line in Path(f"/proc/{process}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return 0


def measure(kind: str, megabytes: int, rows: Path) -> dict[str, Any]:
    """Score a file with a model, and return the figures."""
    with tempfile.TemporaryDirectory(dir=rows.parent) as place:
        folder = Path(place)
        flags = make(kind, megabytes, folder)
        command = [sys.executable, "-m", "pipelines.batch_local", "--input_files", str(rows)]
        command += ["--output_files", str(folder / "out"), *flags]
        peak, estimate = run(command)
    return {
        "format": kind,
        "model_mb": megabytes,
        "peak_gb": round(peak, 2),
        "estimate_gb": estimate,
        "off": round(estimate / peak - 1, 3),
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Write load_memory.json to the output folder. Return 1 if an estimate is too far off."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--megabytes", type=int, nargs="+", default=[500, 1_500])
    parser.add_argument("--workdir", type=Path, default=Path("build/bench"))
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results"))
    args = parser.parse_args(argv)
    args.workdir.mkdir(parents=True, exist_ok=True)
    rows = args.workdir / "few.parquet"
    values = np.random.default_rng(1).random((len(COLUMNS), ROWS), np.float32)
    pq.write_table(pa.table(dict(zip(COLUMNS, values, strict=True))), rows)
    models = []
    for megabytes in args.megabytes:
        for kind in ("pt2", "torchscript", "safetensors", "state_dict"):
            models.append(measure(kind, megabytes, rows))
            print(json.dumps(models[-1]), flush=True)
    worst = max(abs(one["off"]) for one in models)
    results = {"models": models, "targets": {"off": {"at_most": MOST, "measured": worst}}}
    write_results(args.output / "load_memory.json", {"method": METHOD}, results, 1)
    return int(worst > MOST)


if __name__ == "__main__":
    sys.exit(main())
