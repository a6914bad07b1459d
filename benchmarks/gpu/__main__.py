"""Measures models on a GPU, beside the limits of that GPU.

python -m benchmarks.gpu --output benchmarks/results/gpu.json

Each section writes the file again, so that a section that fails or takes too long costs only
itself. Batches take turns: each round measures every way to run them once.
"""

from __future__ import annotations

import argparse
import copy
import json
import platform
import statistics
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.gpu.limits import SMALL, Sizes, bandwidths, multiplications, synchronize
from benchmarks.gpu.models import Subject, subjects
from benchmarks.gpu.scorer import Plain, Scorer, pace, runners, wrong_batches
from model_handlers.devices.find import find_devices
from model_handlers.devices.pass_size import PATIENCE, PassSize, gpu_memory, rows_that_fit
from model_handlers.devices.precision import (
    Trial,
    candidates,
    choose,
    describe,
    set_matmul_precision,
)
from model_handlers.manifests.tolerance import Tolerance

THREADS = (1, 2, 4)
ROUNDS = 3
BATCHES = 6
TOLERANCES = (Tolerance(), Tolerance(1e-3, 1e-3), Tolerance(1e-2, 1e-2))
# The rows that are tried when it is measured how many fit into memory.
MOST_ROWS = 1 << 20
# The bytes that are left of the memory when it runs out, and those of the inputs of a batch then.
LEFT, WANTED = 2 << 30, 2 << 30
Record = dict[str, Any]


class Measurement:
    """The sections of a measurement and their results."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.device = find_devices(args.device)[0]
        self._ways = runners(self.device)
        self._gpu = self.device.type == "cuda"
        self.threads = torch.get_num_threads()
        self.quick: bool = args.quick
        self.end = time.perf_counter() + args.seconds
        self._output: Path = args.output
        self.results: Record = {"complete": False}

    def section(self, name: str, measure: Callable[[], Any]) -> None:
        """Measure one section if there is time, and write all results so far."""
        start = time.perf_counter()
        if start > self.end:
            self.results[name] = {"left_out": "the time was over"}
        else:
            try:
                self.results[name] = measure()
            except Exception as error:  # the other sections still count
                self.results[name] = {"error": f"{type(error).__name__}: {str(error)[:300]}"}
                traceback.print_exc()
        self.results.setdefault("seconds", {})[name] = round(time.perf_counter() - start, 1)
        self._output.write_text(json.dumps(self.results, indent=1) + "\n")
        print(f"{name}: {self.results['seconds'][name]} s", flush=True)

    def run(self) -> None:
        """Measure everything."""
        sizes = SMALL if self.quick else Sizes()
        self.section("machine", self._machine)
        self.section("gigabytes_per_second", lambda: bandwidths(self.device, sizes))
        self.section("teraflops", lambda: multiplications(self.device, sizes))
        for subject in subjects(self.quick):
            self.section(subject.name, partial(self._model, subject))
            if self._gpu:
                torch.cuda.empty_cache()
        if self._gpu:
            self.section("out_of_memory", self._out_of_memory)
        ran = [value for value in self.results.values() if isinstance(value, dict)]
        self.results["complete"] = not any({"error", "left_out"} & value.keys() for value in ran)
        self.section("end", lambda: {})

    def _machine(self) -> Record:
        gpu = {}
        if self._gpu:
            found = torch.cuda.get_device_properties(self.device)
            gpu = {"gpu": found.name, "gpu_memory_gb": round(found.total_memory / 1e9)}
        return {
            "python": platform.python_version(),
            **{name: metadata.version(name) for name in ("torch", "numpy")},
            "cuda": torch.version.cuda,
            "threads": torch.get_num_threads(),
            **gpu,
        }

    def _model(self, subject: Subject) -> Record:
        torch.manual_seed(0)
        torch.set_num_threads(self.threads)
        on_cpu = subject.make().eval()
        module = self._on_device(copy.deepcopy(on_cpu))
        golden, cpu = subject.draw(subject.golden, 99), torch.device("cpu")
        size = PassSize(subject.rows)
        expected = Scorer(module=on_cpu, device=cpu, runner=Plain(cpu), size=size).score(golden)
        # Workers run torch's operations on the CPU in one thread; only the answers of the CPU above
        # were computed by all.
        torch.set_num_threads(1)
        name = subject.name
        self.section(
            f"{name}_precisions", lambda: self._precisions(module, subject, golden, expected)
        )
        self.section(f"{name}_rows_per_second", lambda: self._paces(module, subject))
        self.section(f"{name}_wrong_batches", lambda: self._wrong(module, subject))
        if self._gpu:
            fit = self._rows_that_fit
            self.section(f"{name}_rows_that_fit", lambda: {"rows": fit(module, subject)})
        size_mb = sum(p.nbytes for p in module.parameters()) / 1e6
        return {"parameters_mb": round(size_mb, 1), "rows_of_a_pass": subject.rows}

    def _on_device(self, module: Any) -> Any:
        module = module.eval().to(self.device)
        synchronize(self.device)
        return module

    def _scorer(
        self, module: Any, subject: Subject, way: str = "millrace", precision: str = "float32"
    ) -> Scorer:
        return Scorer(
            module=module,
            device=self.device,
            runner=self._ways[way],
            size=PassSize(subject.rows),
            precision=precision,
        )

    def _rows_that_fit(self, module: Any, subject: Subject) -> int:
        """Return how many rows of a pass fit into the memory of the GPU."""
        scorer, free = self._scorer(module, subject), 0

        def peak(rows: int) -> int:
            nonlocal free
            used, free = gpu_memory([self.device], lambda: scorer.score(subject.draw(rows, 0)))
            return used

        peak(8)
        return rows_that_fit(peak, free, MOST_ROWS)

    def _precisions(
        self, module: Any, subject: Subject, golden: np.ndarray, expected: Sequence[np.ndarray]
    ) -> Record:
        """Return the deviation of each precision from the CPU, and which ones `auto` takes."""
        found: Record = {}
        trials: dict[Tolerance, list[Trial]] = {tolerance: [] for tolerance in TOLERANCES}
        batches = [subject.draw(subject.rows, seed) for seed in range(2)]
        for precision in candidates(self.device.type):
            scorer = self._scorer(module, subject, precision=precision)
            set_matmul_precision(precision)
            answers = scorer.score(golden)
            rate = pace(scorer, batches, 1, 0.0 if self.quick else 0.5)
            pairs = [*zip(answers, expected, strict=True)]
            for tolerance, tried in trials.items():
                share = max(tolerance.share(a, b) for a, b in pairs)
                tried.append(Trial(precision, rate, share))
            found[precision] = {
                "largest_deviation": float(max(np.abs(a - b).max() for a, b in pairs)),
                "largest_value": float(max(np.abs(b).max() for b in expected)),
                "rows_per_second": round(rate),
            }
        auto = {str(t): f"{choose(tried)} ({describe(tried)})" for t, tried in trials.items()}
        return {"precisions": found, "auto": auto}

    def _paces(self, module: Any, subject: Subject) -> Record:
        """Return the median pace of each way, precision and number of threads."""
        batches = [subject.draw(subject.rows, seed) for seed in range(BATCHES)]
        contestants = {
            f"{way} {precision} {threads}": (self._scorer(module, subject, way, precision), threads)
            for precision in (("float32", "bf16") if self._gpu else ("float32",))
            for way in self._ways
            for threads in THREADS
        }
        found: dict[str, list[float]] = {name: [] for name in contestants}
        for turn in range(1 + (1 if self.quick else ROUNDS)):
            for name, (scorer, threads) in contestants.items():
                if time.perf_counter() > self.end:
                    break
                # The first turn fetches memory and is not counted.
                seconds = 0.0 if self.quick or not turn else 0.4
                rate = pace(scorer, batches, threads, seconds)
                found[name] += [rate] if turn else []
        return {name: round(statistics.median(rates)) for name, rates in found.items() if rates}

    def _wrong(self, module: Any, subject: Subject) -> Record:
        """Return how many batches of four threads differ from those of the plain way."""
        rows = max(subject.rows // 4, 1)
        batches = [subject.draw(rows, seed) for seed in range(2 * BATCHES)]
        set_matmul_precision("float32")
        expected = [self._scorer(module, subject, "plain").score(batch) for batch in batches]
        synchronize(self.device)
        wrong = wrong_batches(self._scorer(module, subject), batches, expected, 4)
        return {"tried": 4 * len(batches), "wrong": wrong}

    def _out_of_memory(self) -> Record:
        """Score a batch that is too large while other tensors fill the GPU, then free them."""
        subject = subjects(self.quick)[1]
        module = self._on_device(subject.make())
        some = subject.draw(1024, 1)
        batch = np.resize(some, (WANTED // some[0].nbytes, some.shape[1]))
        expected = self._scorer(module, subject).score(some)[0]
        torch.cuda.empty_cache()
        free = torch.cuda.mem_get_info(self.device)[0]
        filling = torch.empty(max(free - LEFT, 0), dtype=torch.uint8, device=self.device)
        fit = self._rows_that_fit(module, subject)
        fitting = replace(self._scorer(module, subject), size=PassSize(fit))
        fitting.score(batch[:fit])
        torch.cuda.empty_cache()
        scorer = replace(fitting, size=PassSize(len(batch)))
        answer = scorer.score(batch)[0]
        shrunk = scorer.size.rows
        del filling
        torch.cuda.empty_cache()
        for _ in range(PATIENCE):
            scorer.score(batch[:shrunk])
        return {
            "gigabytes_left": LEFT / 1e9,
            "rows_that_fit": fit,
            "they_did_fit": fitting.size.rows == fit,
            "rows": len(batch),
            "no_row_is_lost": len(answer) == len(batch),
            "answers_are_right": bool(
                np.allclose(answer.reshape(-1, *expected.shape), expected, 1e-3, 1e-3)
            ),
            "rows_of_a_pass_while_memory_was_short": shrunk,
            "rows_of_a_pass_later": scorer.size.rows,
        }


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, and write the results."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/gpu.json"))
    parser.add_argument("--device", default="cuda", help="cuda, cuda:N or cpu (default: cuda)")
    parser.add_argument("--seconds", type=float, default=240, help="no section starts later")
    parser.add_argument("--quick", action="store_true", help="small models, to try the program")
    args = parser.parse_args(argv)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    measurement = Measurement(args)
    measurement.run()
    print(json.dumps(measurement.results, indent=1))


if __name__ == "__main__":
    main()
