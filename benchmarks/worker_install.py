"""Measures what a Dataflow worker without an image installs, apart from torch.

python -m benchmarks.worker_install --output benchmarks/results

pip downloads the packages that the requirements pin into a folder, and installs them from there
into an empty environment, without a cache. torch is left out, because its CPU build comes from
PyTorch's own index. A worker's container already has some of the packages, so this is the most.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.machine import describe_machine, versions
from benchmarks.summary import spread
from pipelines.dataflow.worker_packages import own_requirements


def megabytes(folder: Path) -> int:
    """Return the size of all files in a folder."""
    return round(sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6)


def timed(*argv: str | Path) -> float:
    """Run a command, and return the seconds that it takes."""
    start = time.perf_counter()
    subprocess.run([*map(str, argv)], check=True)
    return time.perf_counter() - start


def install(lines: Sequence[str], folder: Path) -> dict[str, float]:
    """Install pinned packages into an empty environment.

    Args:
        lines: The lines of the requirements file.
        folder: An empty folder.

    Returns:
        The seconds of downloading and of installing, and the megabytes of both.
    """
    requirements, wheels, place = folder / "requirements.txt", folder / "wheels", folder / "env"
    requirements.write_text("\n".join(lines))
    subprocess.run([sys.executable, "-m", "venv", str(place)], check=True)
    pip = (place / "bin" / "python", "-m", "pip", "--quiet", "--no-cache-dir")
    before = megabytes(place)
    given = ("--no-deps", "-r", requirements)
    return {
        "download_s": timed(*pip, "download", "--dest", wheels, *given),
        "install_s": timed(*pip, "install", "--no-index", "--find-links", wheels, *given),
        "download_mb": megabytes(wheels),
        "installed_mb": megabytes(place) - before,
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, and write worker_install.json."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args(argv)
    lines = [x for x in own_requirements() if not x.startswith(("--", "torch=="))]
    rounds = []
    for _ in range(args.rounds):
        with tempfile.TemporaryDirectory() as name:
            rounds.append(install(lines, Path(name)))
    result: dict[str, Any] = {
        "packages": len(lines),
        **{name: spread([found[name] for found in rounds]) for name in rounds[0]},
        "rounds": args.rounds,
        "versions": versions(),
        "machine": describe_machine(),
    }
    args.output.mkdir(parents=True, exist_ok=True)
    (args.output / "worker_install.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
