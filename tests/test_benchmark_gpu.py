"""Tests that the benchmark of a GPU runs whole on a CPU, without the packages of the pipelines."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
RUN = """
import runpy, sys

MISSING = {"apache_beam", "google", "orjson", "msgspec", "psutil", "aiohttp", "grpc", "requests"}

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in MISSING:
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Missing())
sys.argv = ["gpu", "--device", "cpu", "--quick", "--output", sys.argv[1]]
runpy.run_module("benchmarks.gpu", run_name="__main__")
"""


def test_the_benchmark_runs_with_only_torch_numpy_and_pyarrow(tmp_path: Path) -> None:
    output = tmp_path / "gpu.json"
    done = subprocess.run(
        [sys.executable, "-c", RUN, str(output)],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    results = json.loads(output.read_text())
    assert results["complete"], done.stderr
    for name in ("autoencoder", "mlp", "transformer"):
        assert results[f"{name}_wrong_batches"]["wrong"] == 0
        exact = results[f"{name}_precisions"]["precisions"]["float32"]
        assert exact["largest_deviation"] < 1e-4
        paces = results[f"{name}_rows_per_second"]
        assert {"plain float32 1", "millrace float32 4"} <= paces.keys()
