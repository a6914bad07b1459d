"""Check that the TorchScript code that runs while its file is read ends soon.

`__setstate__` runs while the file is read. A loop in it could run without end, and so could thirty
functions that each call the next one twice.
"""

from __future__ import annotations

import ast
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence

# Honest code only packs the weights of one layer.
MAX_CALLS = 1_000
# These methods run only if they are named.
_NAMED = {"__init__", "__setstate__", "__getstate__"}


class NeverEnds(Exception):
    """Reading the file may never end.

    Attributes:
        what: The cause, as a noun phrase.
        function: The name of the function.
    """

    def __init__(self, what: str, function: str) -> None:
        super().__init__(what, function)
        self.what, self.function = what, function


def check_reading_calls(functions: Sequence[ast.FunctionDef]) -> None:
    """Check the calls that `__setstate__` can lead to.

    Functions with the same name are treated as one, because a call does not say which class's
    method it means.

    Args:
        functions: All functions and methods of an archive.

    Raises:
        NeverEnds: Reading the file may run a loop, or too many calls.
    """
    names = {function.name for function in functions}
    if "__setstate__" not in names:
        return
    # Operators and `with` statements call methods without naming them.
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
    """Yield the functions that a node calls, or may call."""
    match node:
        case ast.Attribute(attr=name) | ast.Name(id=name) | ast.Constant(value=str() as name):
            # A constant may be the name in a getattr.
            if name in names:
                yield name
        case ast.BinOp() | ast.UnaryOp() | ast.Compare() | ast.Subscript() | ast.With():
            yield from operators
        case ast.AugAssign() | ast.Call(func=ast.Name()):
            yield from operators


def _measure(
    name: str, calls: dict[str, Counter[str]], loops: set[str], sizes: dict[str, int]
) -> int:
    """Return how many calls a call of a function leads to. Raise NeverEnds if too many."""
    if name in loops:
        raise NeverEnds("a loop that runs", name)
    if name not in sizes:
        # This value holds until the real one is known. It makes a recursive call one too many.
        sizes[name] = MAX_CALLS
        sizes[name] = 1 + sum(
            times * _measure(called, calls, loops, sizes) for called, times in calls[name].items()
        )
        if sizes[name] > MAX_CALLS:
            raise NeverEnds(f"more than {MAX_CALLS:,} calls that run", name)
    return sizes[name]
