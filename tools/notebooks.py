"""Runs the notebooks from top to bottom, in order, and saves their outputs.

python tools/notebooks.py            # all notebooks
python tools/notebooks.py 02_batch   # only one

The notebooks run in the root of the checkout, and write to build/notebooks.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nbclient
import nbformat

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
CELL_SECONDS = 120
# The outputs name this folder instead of the one in which they were created.
SHOWN_ROOT = "/home/you/millrace"


def run(path: Path, folder: Path) -> Any:
    """Run a notebook with the Python of this process, and return it with its outputs.

    Args:
        path: The notebook.
        folder: The working directory of the notebook.

    Raises:
        nbclient.exceptions.CellExecutionError: A cell failed.
    """
    notebook = nbformat.read(path, as_version=4)
    client = nbclient.NotebookClient(
        notebook,
        timeout=CELL_SECONDS,
        # A busy kernel may be slow to send outputs. By default those of 4 s and more are lost.
        iopub_timeout=CELL_SECONDS,
        raise_on_iopub_timeout=True,
        resources={"metadata": {"path": str(folder)}},
    )
    with tempfile.TemporaryDirectory() as sockets:
        # Over TCP, other users of the machine could read what the cells print.
        manager = client.create_kernel_manager()
        manager.transport, manager.ip = "ipc", f"{sockets}/kernel"
        client.execute(env=os.environ | {"PYTHONPATH": str(ROOT)})
    return notebook


def cleaned(notebook: Any, folder: Path) -> str:
    """Return the JSON of a notebook, without times of execution and paths of this machine."""
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    text = json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"
    return re.sub(rf"{re.escape(str(folder))}(?=\W)", SHOWN_ROOT, text)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the named notebooks, and write their outputs into them."""
    parser = argparse.ArgumentParser(description="Run notebooks and save their outputs.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="for example 02_batch")
    names = parser.parse_args(argv).names
    for path in NOTEBOOKS:
        if not names or path.stem in names:
            print(f"running {path.relative_to(ROOT)}", flush=True)
            path.write_text(cleaned(run(path, ROOT), ROOT))


if __name__ == "__main__":
    main()
