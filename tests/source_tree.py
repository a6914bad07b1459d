"""Reads the product's source: its packages, its modules and their imports."""

import ast
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parent.parent


def shipped_packages() -> list[str]:
    """Return the packages of the wheel, as setup.py lists them."""
    tree = ast.parse((ROOT / "setup.py").read_text())
    (value,) = (
        node.value
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "PACKAGES"
    )
    return list(ast.literal_eval(value))


@cache
def modules(package: str) -> list[Path]:
    """Return the files of all modules in a package and its subpackages."""
    return sorted((ROOT / package).rglob("*.py"))


def module_name(path: Path) -> str:
    """Return the name under which the module in a file is imported."""
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    return name.removesuffix(".__init__")


@cache
def module_names(package: str) -> list[str]:
    """Return the names of a package's modules, without those that run when they are imported."""
    names = [module_name(path) for path in modules(package)]
    return [name for name in names if not name.endswith("__main__")]


@cache
def imported(path: Path) -> set[str]:
    """Return the full names of the modules, and of the names in modules, that a file imports."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names
