"""The direction of imports, as ARCHITECTURE.md describes it."""

import ast
import graphlib
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import TypeGuard

import pytest
from source_tree import ROOT, imported, module_name, module_names, modules, shipped_packages

# From the ground up: a package may import packages of lower floors, and itself.
FLOORS = (
    {"common"},
    {"cloud"},
    {"model_handlers"},
    {"transforms"},
    {"pipelines", "resources", "scale_tests", "serving"},
    {"millrace"},
    {"examples"},
    {"benchmarks"},
)
PACKAGES = set().union(*FLOORS)
# The rows of the example import nothing of the project, so any floor may use them.
ANYWHERE = ("examples.transactions.data.",)


def heads(names: set[str]) -> set[str]:
    return {name.split(".")[0] for name in names}


@cache
def all_modules() -> set[str]:
    return {name for package in PACKAGES for name in module_names(package)}


@cache
def own_modules(path: Path) -> set[str]:
    """Return the modules of this project that a module imports."""
    known = all_modules()
    found = imported(path)
    parents = {name.rpartition(".")[0] for name in found}
    # A name in a module counts as the module. A module in a package does not also count as the
    # package.
    exact = found & known
    found = exact | ((parents & known) - {name.rpartition(".")[0] for name in exact})
    return found - {module_name(path)}


def cycles(arrows: dict[str, set[str]]) -> list[str]:
    """Return the names of one cycle in a graph, if it has one."""
    try:
        graphlib.TopologicalSorter(arrows).prepare()
    except graphlib.CycleError as error:
        return list(error.args[1])
    return []


@pytest.mark.parametrize("floor", range(len(FLOORS)))
def test_imports_go_down(floor: int) -> None:
    for package in FLOORS[floor]:
        allowed = {package}.union(*FLOORS[:floor])
        assert modules(package)
        for path in modules(package):
            wrong = {
                name
                for name in imported(path)
                if name.split(".")[0] in PACKAGES - allowed and not f"{name}.".startswith(ANYWHERE)
            }
            assert not wrong, f"{path.relative_to(ROOT)} imports {sorted(wrong)}"


def test_every_package_has_a_floor() -> None:
    assert {path.parent.name for path in ROOT.glob("*/__init__.py")} == PACKAGES
    assert set(shipped_packages()) == PACKAGES - {"benchmarks"}


def test_modules_do_not_import_each_other_in_a_cycle() -> None:
    arrows = {
        module_name(path): own_modules(path) for package in PACKAGES for path in modules(package)
    }
    assert len(arrows) > 200
    assert not cycles(arrows)


@pytest.mark.parametrize("package", sorted(PACKAGES))
def test_subpackages_do_not_import_each_other_in_a_cycle(package: str) -> None:
    rooms = {path.parent.name for path in (ROOT / package).glob("*/__init__.py")}
    arrows: dict[str, set[str]] = {room: set() for room in rooms}
    for room in rooms:
        for path in modules(f"{package}/{room}"):
            own = {
                name.split(".")[1] for name in own_modules(path) if name.startswith(f"{package}.")
            }
            arrows[room] |= own & rooms - {room}
    assert not cycles(arrows)


def test_clients_of_google_are_built_without_beam() -> None:
    for path in modules("cloud"):
        assert not heads(imported(path)) & {"apache_beam", "torch"}, path.relative_to(ROOT)
    # The modules that they import must not load them either.
    code = (
        "import sys\n"
        f"import {', '.join(module_names('cloud'))}\n"
        "from cloud.clients import Cloud\n"
        "from cloud.endpoints import Endpoints\n"
        "here = 'http://localhost:1'\n"
        "cloud = Cloud('project', Endpoints(bigquery=here, bigquerystorage=here, storage=here))\n"
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
    for package in ("common", "cloud", "model_handlers", "transforms"):
        for path in modules(package):
            # This module builds Beam's parser for the pipelines.
            if path.relative_to(ROOT).as_posix() == "common/private_beam/any_runner.py":
                continue
            wrong = {name for name in imported(path) if "pipeline_options" in name}
            assert not wrong, f"{path.relative_to(ROOT)} reads pipeline options"


def test_the_manifest_can_be_read_without_torch_or_beam() -> None:
    for path in ("common/errors.py", "model_handlers/manifests/manifest.py"):
        assert not heads(imported(ROOT / path)) & {"torch", "apache_beam"}


def lines_of(node: ast.stmt) -> int:
    return (node.end_lineno or 0) - node.lineno + 1


def is_docstring(node: ast.AST) -> TypeGuard[ast.stmt]:
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )


LIMITS = {"module": 400, "function": 45}


@pytest.mark.parametrize("package", [*sorted(PACKAGES), "dags", "templates"])
def test_modules_and_functions_are_short_enough_to_read(package: str) -> None:
    """The limits in CONTRIBUTING.md. Aim at 300 and 40 lines. Docstrings do not count."""
    for path in modules(package):
        text = path.read_text()
        tree = ast.parse(text)
        described = sum(lines_of(node) for node in ast.walk(tree) if is_docstring(node))
        assert text.count("\n") - described <= LIMITS["module"], path
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                described = sum(lines_of(inner) for inner in node.body if is_docstring(inner))
                lines = lines_of(node) - described
                assert lines <= LIMITS["function"], f"{path}: {node.name} has {lines} lines"


def test_the_description_of_the_architecture_stays_short() -> None:
    assert len((ROOT / "ARCHITECTURE.md").read_text().split()) <= 2_500
