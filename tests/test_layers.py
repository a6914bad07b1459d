"""The direction of imports, as ARCHITECTURE.md states it."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("model_handlers", "transforms", "pipelines", "examples", "benchmarks", "tests")

# What the modules of a package may import of the others.
ALLOWED = {
    "model_handlers": {"model_handlers"},
    "transforms": {"transforms", "model_handlers"},
    "pipelines": {"pipelines", "transforms", "model_handlers"},
    "examples": {"examples", "pipelines", "transforms", "model_handlers"},
    "benchmarks": {"benchmarks", "examples", "pipelines", "transforms", "model_handlers"},
}
# The element type lies below everything: handlers answer with record batches.
BELOW_ALL = "transforms.record_batch"


def imported(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    return names


def modules(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


@pytest.mark.parametrize("package", ALLOWED)
def test_imports_go_one_way(package: str) -> None:
    for path in modules(package):
        ours = {name for name in imported(path) if name.split(".")[0] in PACKAGES}
        wrong = {name for name in ours if name.split(".")[0] not in ALLOWED[package]}
        wrong = {name for name in wrong if not name.startswith(BELOW_ALL)}
        if package == "model_handlers":
            wrong -= {"transforms"}
        assert not wrong, f"{path.relative_to(ROOT)} imports {sorted(wrong)}"


def test_record_batch_imports_nothing_of_ours() -> None:
    names = imported(ROOT / "transforms" / "record_batch.py")
    assert not {name for name in names if name.split(".")[0] in PACKAGES}


def test_flags_are_read_only_in_pipelines() -> None:
    for package in ("model_handlers", "transforms"):
        for path in modules(package):
            wrong = {name for name in imported(path) if "pipeline_options" in name}
            assert not wrong, f"{path.relative_to(ROOT)} reads pipeline options"


def test_the_manifest_can_be_read_without_torch_or_beam() -> None:
    for name in ("contract", "errors"):
        heads = {n.split(".")[0] for n in imported(ROOT / "model_handlers" / f"{name}.py")}
        assert not heads & {"torch", "apache_beam"}
