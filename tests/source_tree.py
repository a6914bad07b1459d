"""The product's own source: its packages, modules, and what they import."""

import ast
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parent.parent


def shipped_packages() -> list[str]:
    """The packages of the wheel, as setup.py names them."""
    tree = ast.parse((ROOT / "setup.py").read_text())
    (value,) = (
        node.value
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "PACKAGES"
    )
    return list(ast.literal_eval(value))


@cache
def modules(package: str) -> list[Path]:
    """A package -> the files of its modules, of its rooms as well."""
    return sorted((ROOT / package).rglob("*.py"))


def module_name(path: Path) -> str:
    """A module's file -> the name by which it is imported."""
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    return name.removesuffix(".__init__")


@cache
def module_names(package: str) -> list[str]:
    """A package -> the names of its modules that may be imported anywhere."""
    names = [module_name(path) for path in modules(package)]
    return [name for name in names if not name.endswith("__main__")]


@cache
def imported(path: Path) -> set[str]:
    """A module's file -> what it imports, by full name: modules and names in them."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names
