"""Reads fuzzed files of every format, and accounts for every row.

python -m benchmarks.fuzz.files

Each row of a file must be either scored or one dead letter, and no other row may be. A file that
cannot be read is refused by an error of one line. The first violation is reported with the seed
that reproduces it: --seed SEED --cases 1.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.fuzz.check import run_case
from benchmarks.fuzz.schemas import run_folder

SEED = 20_261_129


def run_all(run: Callable[[int, Path], str], first: int, until: float, count: int) -> Counter[str]:
    """Run cases from a seed on, for a time or a number; count what became of them.

    Args:
        run: A function that runs the case of a seed in a folder.
        first: The first seed.
        until: When to stop, on the monotonic clock.
        count: The largest number of cases.
    """
    kinds: Counter[str] = Counter()
    shown = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        while kinds.total() < count and time.monotonic() < until:
            seed = first + kinds.total()
            try:
                kinds[run(seed, Path(folder))] += 1
            except Exception as error:
                raise SystemExit(
                    f"{run.__name__}, seed {seed}: {type(error).__name__}: {error}"
                ) from error
            if time.monotonic() - shown > 60:
                shown = time.monotonic()
                print(f"{kinds.total():,} cases, the last with seed {seed}", flush=True)
    return kinds


def main(argv: Sequence[str] | None = None) -> None:
    """Read fuzzed files for some minutes. Stop with an error at the first violation."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=2.0)
    parser.add_argument("--cases", type=int, default=1 << 62, help="stop after so many files")
    parser.add_argument("--seed", type=int, default=SEED)
    args = parser.parse_args(argv)
    start = time.monotonic()
    for run, share in ((run_folder, 0.1), (run_case, 1.0)):
        kinds = run_all(run, args.seed, start + 60 * args.minutes * share, args.cases)
        print(f"{kinds.total():,} cases, no row lost: {dict(sorted(kinds.items()))}", flush=True)


if __name__ == "__main__":
    main()
