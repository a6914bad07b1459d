"""Estimate how large a symbolic expression becomes, before it is evaluated.

`10**10**10` has few characters, but its value fills the memory of the machine. A power of a sum
does the same when it is multiplied out. Numbers are measured in bits, and sums in terms.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Mapping, Sequence
from typing import Any

# Sizes have 63 bits. Intermediate results may have more, up to _MAX_BITS.
SIZE_BITS = 63
_MAX_BITS = 640
_MAX_TERMS = 1000
_MAX_EXPONENT = 16
# Classes of numbers, which are called with the number as their first argument.
_NUMBERS = {"Integer", "Float", "Rational"}
_SUMS = {"Add", "And", "Or", "Max", "Min", "max", "min", "Piecewise", "ExprCondPair"}
_POWERS = {"Pow", "PowByNatural", "FloatPow"}


class TooLarge(Exception):
    """An expression is too large when it is evaluated or multiplied out."""


def measure(node: ast.expr) -> tuple[int, int]:
    """Return upper limits of an expression's size.

    Args:
        node: The expression.

    Returns:
        The bits of its value, and the number of its terms when it is multiplied out.

    Raises:
        TooLarge: One of them is above the limit.
    """
    bits, terms = _measure(node)
    if bits > _MAX_BITS or terms > _MAX_TERMS:
        raise TooLarge
    return bits, terms


def _measure(node: ast.expr) -> tuple[int, int]:
    match node:
        case ast.Constant(value=value):
            return _bits(value), 1
        case ast.BinOp(left=left, op=ast.Pow() | ast.LShift() as op, right=right):
            return _raised(left, right, isinstance(op, ast.LShift))
        case ast.BinOp(left=left, op=op, right=right):
            return _combined([measure(left), measure(right)], isinstance(op, ast.Mult))
        case ast.Call(func=ast.Name(id="Symbol")) | ast.Call(func=ast.Attribute(attr="size")):
            return SIZE_BITS, 1
        case ast.Call(func=ast.Name(id=name), args=[left, right]) if name in _POWERS | {"LShift"}:
            return _raised(left, right, name == "LShift")
        case ast.Call(func=ast.Name(id="Float"), args=[ast.Constant()]):
            return SIZE_BITS, 1
        case ast.Call(func=ast.Name(id=name), args=args):
            return _combined([measure(arg) for arg in args], name == "Mul")
        case ast.Name() | ast.Subscript():
            return SIZE_BITS, 1
    parts = [part for part in ast.iter_child_nodes(node) if isinstance(part, ast.expr)]
    return _combined([measure(part) for part in parts], False)


def _combined(parts: Sequence[tuple[int, int]], product: bool) -> tuple[int, int]:
    """Combine the bits and terms of parts of a product, or of a sum or a similar expression."""
    if product:
        return sum(bits for bits, _ in parts), math.prod(terms for _, terms in parts)
    return max((bits for bits, _ in parts), default=0) + 1, sum(terms for _, terms in parts)


def _raised(base: ast.expr, exponent: ast.expr, shifted: bool) -> tuple[int, int]:
    bits, terms = measure(base)
    power = _number(exponent)
    if power is None or abs(power) > (SIZE_BITS if shifted else _MAX_EXPONENT):
        raise TooLarge
    if shifted:
        return bits + int(abs(power)), terms
    times = math.ceil(abs(power))
    return bits * max(times, 1), terms**times


def _number(node: ast.expr) -> float | None:
    """Return a literal number, such as `2`, `-1` or `Integer(2)`; None for other expressions."""
    match node:
        case ast.Constant(value=int() | float() as value):
            return float(value) if _bits(value) <= SIZE_BITS else None
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            negated = _number(operand)
            return None if negated is None else -negated
        case ast.Call(func=ast.Name(id=name), args=[first, *_]) if name in _NUMBERS:
            return _number(first)
    return None


def _bits(value: Any) -> int:
    """Return the bits of a literal. Raise TooLarge if it is larger than any size."""
    bits = value.bit_length() if isinstance(value, int) else SIZE_BITS
    if bits > SIZE_BITS + 1:
        raise TooLarge
    return bits


def check_nodes(nodes: Sequence[Mapping[str, Any]]) -> None:
    """Raise TooLarge if integers that a graph computes can become too large.

    Args:
        nodes: The nodes of the graph of a .pt2, in order.

    Raises:
        TooLarge: An integer can become too large.
    """
    bits: dict[str, int] = {}
    for node in nodes:
        kind = str(node["target"]).removeprefix("_operator.")
        if kind not in ("add", "sub", "mul", "pow", "lshift"):
            continue
        arguments = [entry["arg"] for entry in node["inputs"]]
        sizes = [_bits_of(argument, bits) for argument in arguments]
        if kind in ("pow", "lshift"):
            power = arguments[-1].get("as_int")
            if power is None or not 0 <= power <= _MAX_EXPONENT:
                raise TooLarge
            found = sizes[0] * power if kind == "pow" else sizes[0] + power
        else:
            found = sum(sizes) if kind == "mul" else max(sizes, default=0) + 1
        if found > _MAX_BITS:
            raise TooLarge
        for output in node["outputs"]:
            bits[str(output.get("as_sym_int", {}).get("as_name"))] = found


def _bits_of(argument: Mapping[str, Any], bits: Mapping[str, int]) -> int:
    """Return the maximum number of bits of the integer in an argument of a node."""
    name = (argument.get("as_sym_int") or {}).get("as_name")
    if isinstance(argument.get("as_int"), int):
        return int(argument["as_int"]).bit_length()
    return bits.get(str(name), SIZE_BITS)
