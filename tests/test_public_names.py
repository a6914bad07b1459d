"""The public names of `import millrace`, each of which is loaded when it is first used."""

import ast
import importlib
import os
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from source_tree import ROOT, imported

import millrace
from millrace.version import find_version

NAMES = [
    "EncodeRows",
    "EndpointAddress",
    "InputSpec",
    "Manifest",
    "MillraceError",
    "OutputSpec",
    "Predict",
    "Provenance",
    "RecordBatchesToRows",
    "RequestLimits",
    "RowsToRecordBatches",
    "TorchModelHandler",
    "VertexEndpointHandler",
    "__version__",
    "choose_fields",
    "column",
    "external_table",
    "field",
    "fit",
    "open_result",
    "output",
    "package",
    "prepare",
    "read_manifest",
    "tensor",
    "write_package",
]


def printed(code: str, path: Path = ROOT) -> str:
    """Return what a new process prints for this code, with packages from this path."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        cwd=path,
        env=os.environ | {"PYTHONPATH": str(path)},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_list_of_public_names() -> None:
    assert millrace.__all__ == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_public_name_is_the_object_in_its_module(name: str) -> None:
    module = importlib.import_module(millrace._MODULES[name])
    assert getattr(millrace, name) is getattr(module, name)


def test_type_checkers_see_the_same_names() -> None:
    shown = {name.rpartition(".")[2]: name.rpartition(".")[0] for name in types_of_names()}
    assert shown | {"__version__": "millrace.version"} == millrace._MODULES
    assert sorted(millrace._MODULES) == NAMES


def types_of_names() -> set[str]:
    """Return the full names that the block for type checkers imports."""
    path = ROOT / "millrace" / "__init__.py"
    others = {"importlib", "typing.TYPE_CHECKING", "__future__.annotations"}
    (block,) = (
        node
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    )
    assert len([node for node in block.body if isinstance(node, ast.ImportFrom)]) > 5
    return imported(path) - others


def test_the_import_loads_no_other_package() -> None:
    code = (
        "import sys\n"
        "before = set(sys.modules)\n"
        "import millrace\n"
        "dir(millrace)\n"
        "print(*sorted(name.split('.')[0] for name in set(sys.modules) - before))\n"
    )
    loaded = set(printed(code).split())
    assert loaded - set(sys.stdlib_module_names) == {"millrace"}


def test_a_star_import_imports_all_names() -> None:
    code = "from millrace import *\nprint(*sorted(n for n in dir() if n[:2] != '__'), __version__)"
    assert printed(code).split() == [*(n for n in NAMES if n[:2] != "__"), millrace.__version__]


def test_dir_lists_names_that_were_not_used() -> None:
    assert set(NAMES) <= set(printed("import millrace\nprint(*dir(millrace))").split())


def test_other_names_do_not_exist() -> None:
    with pytest.raises(AttributeError, match="module 'millrace' has no attribute 'Predicter'"):
        millrace.Predicter  # type: ignore[attr-defined] # noqa: B018
    with pytest.raises(ImportError, match="cannot import name 'Predicter' from 'millrace'"):
        from millrace import Predicter  # type: ignore[attr-defined] # noqa: F401


def test_the_version_of_a_checkout_comes_from_its_pyproject() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert millrace.__version__ == find_version(ROOT) == project["version"]


@pytest.mark.parametrize("other", [None, '[project]\nname = "other"\nversion = "9"\n', "[", ""])
def test_the_version_of_an_installed_package_comes_from_its_metadata(
    distribution: Path, tmp_path: Path, other: str | None
) -> None:
    (wheel,) = distribution.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    (metadata,) = tmp_path.glob("*.dist-info/METADATA")
    metadata.write_text(metadata.read_text().replace("\nVersion: ", "\nVersion: 5."))
    # Some packages install a file with this name.
    if other is not None:
        (tmp_path / "pyproject.toml").write_text(other)
    found = printed("import millrace\nprint(millrace.__version__)", tmp_path)
    assert found == f"5.{millrace.__version__}"
