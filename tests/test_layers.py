"""The direction of imports, as ARCHITECTURE.md states it."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = (
    "cloud",
    "model_handlers",
    "transforms",
    "pipelines",
    "resources",
    "serving",
    "examples",
    "benchmarks",
    "tests",
)

# What the modules of a package may import of the others.
ALLOWED = {
    "cloud": {"cloud"},
    "model_handlers": {"model_handlers", "cloud"},
    "transforms": {"transforms", "model_handlers", "cloud"},
    "pipelines": {"pipelines", "transforms", "model_handlers", "cloud"},
    "resources": {"resources", "transforms", "model_handlers", "cloud"},
    "serving": {"serving", "transforms", "model_handlers", "cloud"},
    "examples": {"examples", "serving", "pipelines", "transforms", "model_handlers", "cloud"},
    "benchmarks": {
        "benchmarks",
        "examples",
        "serving",
        "pipelines",
        "transforms",
        "model_handlers",
        "cloud",
    },
}
# What lies below everything: the element type, since handlers answer with record batches,
# the exception tree, what tells of memory and how addresses are shown; and the example's rows,
# which are made of nothing of ours.
BELOW = {
    "cloud": ("model_handlers.errors.", "model_handlers.memory.", "model_handlers.addresses."),
    "resources": ("examples.transactions.data.",),
    "model_handlers": ("transforms.record_batch.",),
}


def imported(path: Path) -> set[str]:
    """A module -> what it imports, by full name."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def heads(names: set[str]) -> set[str]:
    return {name.split(".")[0] for name in names}


def modules(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def module_names(package: str) -> list[str]:
    found = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in modules(package)]
    names = [name.removesuffix(".__init__") for name in found]
    return [name for name in names if not name.endswith("__main__")]


@pytest.mark.parametrize("package", ALLOWED)
def test_imports_go_one_way(package: str) -> None:
    assert modules(package)
    for path in modules(package):
        ours = {name for name in imported(path) if name.split(".")[0] in PACKAGES}
        wrong = {name for name in ours if name.split(".")[0] not in ALLOWED[package]}
        wrong = {name for name in wrong if not f"{name}.".startswith(BELOW.get(package, ()))}
        assert not wrong, f"{path.relative_to(ROOT)} imports {sorted(wrong)}"


def test_every_package_has_its_place_in_the_order() -> None:
    found = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert found | {"tests"} == set(PACKAGES) == {*ALLOWED, "tests"}


def test_record_batch_imports_nothing_of_ours() -> None:
    assert not heads(imported(ROOT / "transforms" / "record_batch.py")).intersection(PACKAGES)


def test_the_exception_tree_imports_nothing_of_ours_but_how_addresses_are_shown() -> None:
    names = {name for name in imported(ROOT / "model_handlers" / "errors.py") if "." in name}
    ours = {name for name in names if name.split(".")[0] in PACKAGES}
    assert ours == {"model_handlers.addresses.without_secrets"}
    assert not heads(imported(ROOT / "model_handlers" / "addresses.py")).intersection(PACKAGES)


def test_clients_of_google_are_built_without_beam() -> None:
    for path in modules("cloud"):
        assert not heads(imported(path)) & {"apache_beam", "torch"}, path.relative_to(ROOT)
    # Nor does what they import load it.
    code = (
        "import sys\n"
        f"import {', '.join(module_names('cloud'))}\n"
        "from cloud.clients import Cloud\n"
        "from cloud.endpoints import Endpoints\n"
        "cloud = Cloud('project', Endpoints(*['http://localhost:1'] * 3))\n"
        "cloud.bigquery(), cloud.bigquery_read(), cloud.bigquery_write(), cloud.storage()\n"
        "heavy = {'apache_beam', 'torch'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr


def test_resources_are_set_up_without_beam_or_torch() -> None:
    code = (
        "import sys\n"
        f"import {', '.join(module_names('resources'))}\n"
        "from examples.transactions.data import write_parquet\n"
        "heavy = {'apache_beam', 'torch'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr


def test_clients_of_google_are_built_in_one_place() -> None:
    for package in ("model_handlers", "transforms", "pipelines", "resources"):
        for path in modules(package):
            tree = ast.parse(path.read_text())
            calls = {
                ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)
            }
            built = {call for call in calls if call.rsplit(".", 1)[-1].endswith("Client")}
            assert not built, f"{path.relative_to(ROOT)} builds {sorted(built)}"


def test_flags_are_read_only_in_pipelines() -> None:
    for package in ("cloud", "model_handlers", "transforms"):
        for path in modules(package):
            wrong = {name for name in imported(path) if "pipeline_options" in name}
            assert not wrong, f"{path.relative_to(ROOT)} reads pipeline options"


def test_the_manifest_can_be_read_without_torch_or_beam() -> None:
    for name in ("manifest", "errors"):
        found = heads(imported(ROOT / "model_handlers" / f"{name}.py"))
        assert not found & {"torch", "apache_beam"}
