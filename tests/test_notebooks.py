"""The notebooks run from top to bottom, and their committed outputs are complete."""

import sys
from pathlib import Path
from typing import Any

import nbformat
import pytest
from docs_pages import ROOT

sys.path.insert(0, str(ROOT / "tools"))

import notebooks

MAX_BYTES = 150_000
# The printed lines that do not depend on the machine start with these words.
FACTS = (
    "balance",
    "True",
    "300 published",
    "setup complete",
    "scored ",
    "11 removed",
    "accounts of",
)


def text_of(cell: Any) -> str:
    """Return what a cell printed and returned, as text."""
    parts = [output.get("text", "") for output in cell.outputs]
    parts += [output.get("data", {}).get("text/plain", "") for output in cell.outputs]
    return "\n".join(parts)


def printed(notebook: Any) -> str:
    """Return what the cells of a notebook printed and returned."""
    return "\n".join(text_of(cell) for cell in notebook.cells if cell.cell_type == "code")


def facts(notebook: Any) -> list[str]:
    """Return the printed lines that do not depend on the machine."""
    return [line for line in printed(notebook).splitlines() if line.startswith(FACTS)]


def test_the_notebooks_run(tmp_path: Path, stream_emulators: object) -> None:
    # The later notebooks use the package that the first one writes.
    counts = []
    for path in notebooks.NOTEBOOKS:
        notebook = notebooks.run(path, tmp_path)
        found = facts(notebook)
        assert found == facts(nbformat.read(path, 4)), printed(notebook)
        counts.append(len(found))
    assert counts == [0, 3, 3, 3, 5, 2]


@pytest.mark.parametrize("path", notebooks.NOTEBOOKS, ids=lambda path: path.stem)
def test_outputs_are_committed_and_small(path: Path) -> None:
    notebook = nbformat.read(path, 4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    for cell in code:
        assert all(output.output_type != "error" for output in cell.outputs)
        assert not any(output.get("name") == "stderr" for output in cell.outputs)
    assert path.stat().st_size < MAX_BYTES
    assert str(ROOT) not in path.read_text()
