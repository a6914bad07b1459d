"""What TorchScript code may do while its file is read: it has to come to an end, and soon.

`__setstate__` runs then. A loop there could keep the reader for ever, and so could some thirty
functions each of which calls the next one twice.
"""

from __future__ import annotations

import ast
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence

# Honest code packs the weights of one layer.
MAX_CALLS = 1_000
# These run only where they are named.
_NAMED = {"__init__", "__setstate__", "__getstate__"}


class NeverEnds(Exception):
    """Reading the file may take for ever; what makes it so, and in which function."""

    def __init__(self, what: str, function: str) -> None:
        super().__init__(what, function)
        self.what, self.function = what, function


def check_reading_calls(functions: Sequence[ast.FunctionDef]) -> None:
    """Functions of an archive -> nothing. Raises NeverEnds.

    Functions of one name are taken for one, since nothing says whose method a call means.
    """
    names = {function.name for function in functions}
    if "__setstate__" not in names:
        return
    # Operators and `with` call methods without naming them.
    implicit = {name for name in names if name.startswith("__") and name.endswith("__")}
    calls: dict[str, Counter[str]] = defaultdict(Counter)
    loops = set()
    for function in functions:
        for node in ast.walk(function):
            if isinstance(node, ast.While | ast.For):
                loops.add(function.name)
            calls[function.name].update(_called(node, names, implicit - _NAMED))
    try:
        _measure("__setstate__", calls, loops, {})
    except RecursionError:
        raise NeverEnds(f"more than {MAX_CALLS:,} calls that run", "__setstate__") from None


def _called(node: ast.AST, names: set[str], operators: set[str]) -> Iterator[str]:
    """A node -> the functions that it calls, or may."""
    match node:
        case ast.Attribute(attr=name) | ast.Name(id=name) | ast.Constant(value=str() as name):
            # Of getattr a constant is the name.
            if name in names:
                yield name
        case ast.BinOp() | ast.UnaryOp() | ast.Compare() | ast.Subscript() | ast.With():
            yield from operators
        case ast.AugAssign() | ast.Call(func=ast.Name()):
            yield from operators


def _measure(
    name: str, calls: dict[str, Counter[str]], loops: set[str], sizes: dict[str, int]
) -> int:
    """A function's name -> the calls that it comes to. Raises NeverEnds."""
    if name in loops:
        raise NeverEnds("a loop that runs", name)
    if name not in sizes:
        # Until it is known: a call of itself is one too many.
        sizes[name] = MAX_CALLS
        sizes[name] = 1 + sum(
            times * _measure(called, calls, loops, sizes) for called, times in calls[name].items()
        )
        if sizes[name] > MAX_CALLS:
            raise NeverEnds(f"more than {MAX_CALLS:,} calls that run", name)
    return sizes[name]
