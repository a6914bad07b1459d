"""Writes the example pages of the documentation: a batch run and a scale test of the example.

python tools/example_pages.py            # both, in three minutes
python tools/example_pages.py batch      # only that of the batch run

Nothing else should run meanwhile, because the pages show rates and latencies. The scale test needs
the emulators (`make emulators`) and that of Pub/Sub.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from notebooks import ROOT, SHOWN_ROOT

FOLDER = ROOT / "docs/examples"
# Where each demo writes its page, and the page of the documentation.
DEMOS = {
    "batch": ("examples.transactions.demo", "demo/report.html", "batch-report.html"),
    "scale": ("examples.transactions.demo_scale", "report.html", "scale-test.html"),
}


def cleaned(page: str, folder: str) -> str:
    """Return a page that names neither this checkout nor the folder of its result.

    Args:
        page: The HTML.
        folder: The folder of the result.
    """
    return re.sub(rf"{re.escape(str(ROOT))}(?=\W)", SHOWN_ROOT, page.replace(folder, "build/demo"))


def main(argv: Sequence[str] | None = None) -> None:
    """Run the demos, and copy their pages."""
    parser = argparse.ArgumentParser(description="Write the example pages of the documentation.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="batch or scale")
    FOLDER.mkdir(exist_ok=True)
    for name in parser.parse_args(argv).names or DEMOS:
        module, written, page = DEMOS[name]
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-m", module, "--output", folder]
            subprocess.run(command, check=True, cwd=ROOT)
            text = (Path(folder) / written).read_text()
        (FOLDER / page).write_text(cleaned(text, folder))


if __name__ == "__main__":
    main()
