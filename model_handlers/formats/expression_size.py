"""How large a symbolic expression becomes when it is evaluated, told before it is.

`10**10**10` is a few characters, and fills the memory of whoever computes it; so does a power of
a sum once it is multiplied out. Numbers are counted in bits, sums in their terms.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Mapping, Sequence
from typing import Any

# Sizes have 63 bits; what is computed of them on the way may have some more.
SIZE_BITS = 63
_MAX_BITS = 640
_MAX_TERMS = 1000
_MAX_EXPONENT = 16
# What stands for a number however it is written: the class, then its arguments.
_NUMBERS = {"Integer", "Float", "Rational"}
_SUMS = {"Add", "And", "Or", "Max", "Min", "max", "min", "Piecewise", "ExprCondPair"}
_POWERS = {"Pow", "PowByNatural", "FloatPow"}


class TooLarge(Exception):
    """The expression's value, or the expression multiplied out, is beyond all measure."""


def measure(node: ast.expr) -> tuple[int, int]:
    """An expression -> bits of its value at most, and terms once it is multiplied out.

    Raises TooLarge.
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
    """Bits and terms of some parts -> those of their product, or of their sum or the like."""
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
    """A literal number, as `2`, `-1`, `Integer(2)` or `Rational(1, 2)` -> itself."""
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
    """A literal -> its bits. Raises TooLarge for one that is no size."""
    bits = value.bit_length() if isinstance(value, int) else SIZE_BITS
    if bits > SIZE_BITS + 1:
        raise TooLarge
    return bits


def check_nodes(nodes: Sequence[Mapping[str, Any]]) -> None:
    """Nodes of a .pt2's graph in order -> nothing, or TooLarge: their integers grow and grow."""
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
    """An argument of a node -> bits of the integer that it is."""
    name = (argument.get("as_sym_int") or {}).get("as_name")
    if isinstance(argument.get("as_int"), int):
        return int(argument["as_int"]).bit_length()
    return bits.get(str(name), SIZE_BITS)
