"""Finds the underscore names of Beam that a module of this project uses, in its syntax tree."""

import ast
import importlib
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from source_tree import ROOT, imported, module_name, modules, shipped_packages

# Underscore names of other libraries, and where they come from.
OTHERS = {
    "_asdict": "a named tuple",
    "_codegen": "a graph of torch.fx",
    "_content": "an answer of requests",
    "_fields": "a named tuple",
    "_fmt": "a formatter of logging",
    "_in_spec": "a program of torch.export",
    "_properties": "a job of google.cloud.bigquery",
    "_replace": "a named tuple",
    "_schema": "an operator of PyTorch",
    "_session": "a transport of google.auth",
}
_BY_NAME = ("getattr", "setattr", "hasattr", "delattr")
_PATH = re.compile(r"apache_beam(?:\.\w+)+")


def is_private(name: str) -> bool:
    """Return whether a name starts with an underscore and does not end with two."""
    return name.startswith("_") and not name.endswith("__")


def private_names(path: Path) -> dict[str, int]:
    """Return the underscore names of Beam in a module's file, with a line for each."""
    return names_in(path.read_text(), path)


def names_in(source: str, path: Path = ROOT / "unknown.py") -> dict[str, int]:
    """Return the underscore names of Beam in the text of a module, with a line for each."""
    tree = ast.parse(source)
    origins = _origins(tree)
    own = _defined(tree).union(*map(_defined_in, _own_files(path)))
    found = [
        *_imports(tree),
        *_attributes(tree, origins, own),
        *_overrides(tree, origins),
        *_paths(tree),
    ]
    return dict(sorted(found, key=lambda pair: -pair[1]))


def _own_files(path: Path) -> Iterator[Path]:
    """Yield the files of the product's modules that a module imports."""
    if not path.exists():
        return
    files = _files()
    for name in imported(path):
        for module in (name, name.rpartition(".")[0]):
            if module in files:
                yield files[module]


@cache
def _files() -> dict[str, Path]:
    """Return the files of the product's modules by module name."""
    return {module_name(path): path for name in shipped_packages() for path in modules(name)}


@cache
def _defined_in(path: Path) -> set[str]:
    return _defined(ast.parse(path.read_text()))


def _defined(tree: ast.AST) -> set[str]:
    """Return the names of the functions, classes and fields that a module defines."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif (
            isinstance(node, ast.Attribute)
            and isinstance(node.ctx, ast.Store)
            and ast.unparse(node.value) in ("self", "cls")
        ):
            names.add(node.attr)
    return names


def _origins(tree: ast.AST) -> dict[str, str]:
    """Return the full names of everything that a module imports, by local name."""
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                head = alias.name.split(".")[0]
                found[alias.asname or head] = alias.name if alias.asname else head
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {a.asname or a.name: f"{node.module}.{a.name}" for a in node.names}
    return found


def _is_beams(origin: str) -> bool:
    return f"{origin}.".startswith("apache_beam.")


def _imports(tree: ast.AST) -> Iterator[tuple[str, int]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            paths = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            paths = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for path in filter(_is_beams, paths):
            yield from ((part, node.lineno) for part in path.split(".") if is_private(part))


def _paths(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Yield the private parts of texts that are dotted paths in Beam."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and _PATH.fullmatch(str(node.value)):
            parts = str(node.value).split(".")
            yield from ((part, node.lineno) for part in parts if is_private(part))


def _root(node: ast.AST) -> str:
    """Return the name at the start of an expression, or an empty text."""
    while isinstance(node, ast.Attribute | ast.Call | ast.Subscript):
        node = node.func if isinstance(node, ast.Call) else node.value
    return node.id if isinstance(node, ast.Name) else ""


def _attributes(tree: ast.AST, origins: dict[str, str], own: set[str]) -> Iterator[tuple[str, int]]:
    """Yield underscore attributes of Beam's objects, and those whose origin is unknown."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            owner, name = node.value, node.attr
        elif isinstance(node, ast.Call) and _root(node.func) in _BY_NAME and len(node.args) > 1:
            owner, key = node.args[0], node.args[1]
            name = str(key.value) if isinstance(key, ast.Constant) else ""
        else:
            continue
        if not is_private(name):
            continue
        origin = origins.get(_root(owner), "")
        is_foreign = origin.split(".")[0] not in ("", *shipped_packages())
        if _is_beams(origin) or not (is_foreign or name in own or name in OTHERS):
            yield name, node.lineno


def _overrides(tree: ast.AST, origins: dict[str, str]) -> Iterator[tuple[str, int]]:
    """Yield underscore names that a class defines and that its base class in Beam has too."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.ClassDef):
            continue
        defined = {name for part in node.body for name in _defined(part) if is_private(name)}
        for base in node.bases:
            named = base.value if isinstance(base, ast.Subscript) else base
            head, _, rest = ast.unparse(named).partition(".")
            path = f"{origins.get(head, '')}.{rest}".rstrip(".")
            if _is_beams(path):
                yield from ((n, node.lineno) for n in defined if hasattr(_load(path), n))


def _load(path: str) -> object:
    """Import a class by its dotted path."""
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)
