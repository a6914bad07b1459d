"""Check that the code of a TorchScript file does nothing but compute.

TorchScript has the syntax of Python, so the code is parsed with `ast`. Text that TorchScript might
parse differently is refused first. Every name that leads to an operator is resolved, whether it is
called or not, even in functions that no other code calls. Such names are torch.NAME,
ops.SPACE.NAME, getattr with a literal, and methods: if the class of a value does not have a method,
TorchScript calls the operator of that name.
"""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import NoReturn

import torch

from common.errors import UnsafeModel
from model_handlers.formats.operators import OPERATORS, PACKED_CLASSES, PACKED_METHODS
from model_handlers.formats.reading_calls import NeverEnds, check_reading_calls

# The tokens that torch.jit.save writes. Comments, tabs, prefixes of strings, triple quotes and
# characters beyond ASCII are left out: Python and TorchScript may tokenize them differently.
_TOKENS = re.compile(
    r"""(?:[A-Za-z_][A-Za-z0-9_]*+(?!")
        |(?:\d++(?:\.\d*+)?+|\.\d++)(?:[eE][+-]?\d++)?+j?+(?![A-Za-z0-9_."])
        |"(?:[^"\\\x00-\x1f\x7f]|\\[^\x00-\x1f\x7f])*+"(?![A-Za-z0-9_"])
        |[][(){}.,:=<>!+*/%@&|^~\x20\n-])*+""",
    re.VERBOSE | re.ASCII,
)
MAX_CODE_BYTES = 64 << 20
_MAX_DEPTH = 150
_SPACES = frozenset({"torch", "ops", "CONSTANTS", "__torch__"})
_FUNCTIONS = {
    "annotate", "bool", "complex", "float", "int", "isinstance", "len", "range", "str",
    "unchecked_cast", "uninitialized",
}  # fmt: skip
_BASES = frozenset({"Module", "NamedTuple", "Interface", "ModuleInterface", "Enum"})
_PLAIN = (
    ast.Module | ast.ClassDef | ast.FunctionDef | ast.arguments | ast.arg | ast.Return | ast.Assign
    | ast.AnnAssign | ast.AugAssign | ast.Expr | ast.If | ast.For | ast.While | ast.With
    | ast.withitem | ast.Pass | ast.Break | ast.Continue | ast.Assert | ast.Delete | ast.Attribute
    | ast.Name | ast.Constant | ast.Call | ast.keyword | ast.List | ast.Tuple | ast.Dict
    | ast.Subscript | ast.Slice | ast.UnaryOp | ast.BinOp | ast.BoolOp | ast.Compare | ast.IfExp
    | ast.operator | ast.unaryop | ast.boolop | ast.cmpop | ast.expr_context
)  # fmt: skip


def check_code(files: Mapping[str, bytes]) -> None:
    """Check all code of a TorchScript file.

    Args:
        files: The content of each code record, by its name.

    Raises:
        UnsafeModel: The code could do more than compute on tensors, or is not plain TorchScript.
    """
    if sum(map(len, files.values())) > MAX_CODE_BYTES:
        raise UnsafeModel(
            f"the TorchScript file contains more than {MAX_CODE_BYTES:,} bytes of code"
        )
    trees = {name: _parse(name, code) for name, code in files.items()}
    functions = [
        node
        for tree in trees.values()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef)
    ]
    methods = {function.name for function in functions}
    methods = {name for name in methods if not _is_operator(name)} | PACKED_METHODS
    for name, tree in trees.items():
        checker = _Checker(name, methods)
        checker.check(tree, 0)
        for function in checker.outermost(tree):
            checker.check_names(function)
    try:
        check_reading_calls(functions)
    except NeverEnds as error:
        _refuse(error.function, f"{error.what} while the file is read")


def check_type(text: str, where: str) -> None:
    """Check the text of a type in a pickle, such as `Dict[str, Tensor]`.

    Args:
        text: The text of the type.
        where: The name of the record, for error messages.

    Raises:
        UnsafeModel: The text is not a plain type.
    """
    tree = _parse(where, text.encode())
    if len(tree.body) != 1 or not isinstance(tree.body[0], ast.Expr):
        _refuse(where, f"the type {text[:80]!r}")
    for node in ast.walk(tree.body[0].value):
        if not isinstance(
            node, ast.Name | ast.Attribute | ast.Subscript | ast.Tuple | ast.List | ast.expr_context
        ):
            _refuse(where, f"the type {text[:80]!r}")
    _Checker(where, set()).check(tree, 0)


def is_operator_allowed(space: str, name: str) -> bool:
    """Return whether models may use the operator with this namespace and name."""
    return name in OPERATORS.get(space, ())


def check_class(name: str, where: str) -> None:
    """Check the name of a class in code or in a pickle.

    Args:
        name: The name of the class, with its module.
        where: The name of the record, for error messages.

    Raises:
        UnsafeModel: It is a C++ class that models may not use.
    """
    if name.startswith("__torch__.torch.classes") and name not in PACKED_CLASSES:
        _refuse(where, f"the class {name!r}")


def _is_operator(name: str) -> bool:
    """Return whether a method of this name could be an operator that models may not use."""
    known = torch._C._jit_get_schemas_for_operator(f"aten::{name}")
    return bool(known) and name not in OPERATORS["aten"]


def _parse(where: str, code: bytes) -> ast.Module:
    try:
        text = code.decode("ascii")
        end = _end_of_tokens(text)
        if end != len(text):
            _refuse(where, f"text that torch.jit.save does not write, {text[end : end + 40]!r}")
        return ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        _refuse(where, f"code that is not plain TorchScript ({type(error).__name__})")


def _end_of_tokens(text: str) -> int:
    found = _TOKENS.match(text)
    return found.end() if found else 0


def _path(node: ast.AST) -> tuple[ast.AST, list[str]]:
    """Split an expression into its start and the attributes after it, including literal getattr."""
    names: list[str] = []
    while True:
        match node:
            case ast.Attribute(value=value, attr=attr):
                node = value
                names.append(attr)
            case ast.Call(
                func=ast.Name(id="getattr"),
                args=[value, ast.Constant(value=str() as attr)],
                keywords=[],
            ):
                node = value
                names.append(attr)
            case _:
                return node, names[::-1]


class _Checker:
    """The checks of the tree of one record; `methods` has the names of methods of the file."""

    def __init__(self, where: str, methods: set[str] | frozenset[str]) -> None:
        self.where = where
        self.methods = methods

    def check(self, node: ast.AST, depth: int) -> None:
        """Raise UnsafeModel if a node, or a node below it, is not allowed."""
        if depth > _MAX_DEPTH:
            _refuse(self.where, f"code nested more than {_MAX_DEPTH} deep")
        if not isinstance(node, _PLAIN):
            _refuse(self.where, f"{type(node).__name__} in its code")
        match node:
            case ast.ClassDef(bases=bases, keywords=keywords, decorator_list=decorators):
                names = [base.id if isinstance(base, ast.Name) else "" for base in bases]
                if keywords or decorators or not _BASES.issuperset(names):
                    _refuse(self.where, f"the class {node.name!r} with a base or decorator")
            case ast.FunctionDef(decorator_list=[_, *_]):
                _refuse(self.where, f"the decorated function {node.name!r}")
            case ast.keyword(arg=None):
                _refuse(self.where, "** in a call")
            case ast.Attribute() | ast.Name():
                self._check_path(*_path(node))
            case ast.Call():
                self._check_call(node)
        for child in self._children(node):
            self.check(child, depth + 1)

    def _children(self, node: ast.AST) -> Iterator[ast.AST]:
        """Yield the nodes below a node that are still to be checked; for a path, only its start."""
        start, names = _path(node)
        if names and not isinstance(start, ast.Name):
            yield start
        elif names:
            return
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            # The target is an attribute, or a variable, which check_names checks.
            yield from filter(None, [node.annotation, node.value])
        elif isinstance(node, ast.Call) and _path(node.func)[0] is not node.func:
            yield from (node.func, *node.args, *node.keywords)
        elif isinstance(node, ast.Call):
            # _check_call checks the plain name. The first argument of fork is a function.
            forks = isinstance(node.func, ast.Name) and node.func.id == "fork"
            yield from (*node.args[1 if forks else 0 :], *node.keywords)
        else:
            yield from ast.iter_child_nodes(node)

    def _check_path(self, start: ast.AST, names: list[str]) -> None:
        """Check a path that starts with torch, ops, CONSTANTS or __torch__."""
        if not isinstance(start, ast.Name) or start.id not in _SPACES:
            return
        root, path = start.id, ".".join([start.id, *names])
        match root, names:
            case ("torch", [name]) if is_operator_allowed("aten", name):
                return
            case ("ops", [space, name]) if is_operator_allowed(space, name):
                return
            case ("CONSTANTS", [_]):
                return
            case ("__torch__", [_, *_]):
                check_class(path.removesuffix(".__new__"), self.where)
                return
        _refuse(self.where, f"the operator {path!r}")

    def _check_call(self, call: ast.Call) -> None:
        if isinstance(call.func, ast.Name):
            self._check_function(call, call.func.id)
            return
        start, names = _path(call.func)
        if not names:
            _refuse(self.where, f"a call of a value of the kind {type(start).__name__}")
        if isinstance(start, ast.Name) and start.id in _SPACES:
            return
        name = names[-1]
        known = name in self.methods or name == "__new__" or is_operator_allowed("aten", name)
        if not known:
            _refuse(self.where, f"the operator or method {name!r}")

    def _check_function(self, call: ast.Call, name: str) -> None:
        """Check a call of getattr; check_names checks calls of other plain names."""
        if name == "getattr":
            literal = call.args[1] if len(call.args) == 2 else None
            if call.keywords or not isinstance(literal, ast.Constant):
                _refuse(self.where, "getattr with something other than a literal name")
            width = (literal.end_col_offset or 0) - literal.col_offset
            self._check_path(*_path(call))
            if literal.lineno != literal.end_lineno or width != len(str(literal.value)) + 2:
                _refuse(
                    self.where, f"getattr with {str(literal.value)[:80]!r}, spelled with escapes"
                )

    def outermost(self, tree: ast.Module) -> Iterator[ast.FunctionDef]:
        """Yield the functions of a record and the methods of its classes."""
        for node in tree.body:
            for inner in node.body if isinstance(node, ast.ClassDef) else [node]:
                if isinstance(inner, ast.FunctionDef):
                    yield inner

    def check_names(self, function: ast.FunctionDef) -> None:
        """Raise UnsafeModel if a function calls a name that may stand for anything.

        A local name may be called if it always stands for a function of the archive. It may be
        forked if it is a function within this one.
        """
        bound, aliases, inner = _bindings(function)
        if taken := _SPACES.intersection(bound):
            _refuse(self.where, f"a variable named {min(taken)!r}")
        for node in ast.walk(function):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
                continue
            name = node.func.id
            if name == "fork" and not bound["fork"]:
                first = node.args[0] if node.args else None
                if not isinstance(first, ast.Name) or bound[first.id] != inner[first.id] > 0:
                    _refuse(
                        self.where,
                        "a fork of something other than a function within the same function",
                    )
            elif name == "getattr" or name in _FUNCTIONS:
                if bound[name]:
                    _refuse(self.where, f"a variable named {name!r}")
            elif bound[name] == 0 or bound[name] != aliases[name]:
                _refuse(self.where, f"the function {name!r}")


def _bindings(function: ast.FunctionDef) -> tuple[Counter[str], Counter[str], Counter[str]]:
    """Count how many times a function binds each local name.

    The first counter has all bindings, the second the bindings to functions of the archive, and the
    third the functions that are defined within this one.
    """
    bound: Counter[str] = Counter()
    aliases: Counter[str] = Counter()
    inner: Counter[str] = Counter()
    for node in ast.walk(function):
        match node:
            case ast.Name(id=name, ctx=ast.Store() | ast.Del()) | ast.arg(arg=name):
                bound[name] += 1
            case ast.FunctionDef(name=name) if node is not function:
                bound[name] += 1
                inner[name] += 1
            case ast.Assign(targets=[ast.Name(id=name)], value=value):
                start, path = _path(value)
                if path and isinstance(start, ast.Name) and start.id == "__torch__":
                    aliases[name] += 1
    return bound, aliases, inner


def _refuse(where: str, what: str) -> NoReturn:
    raise UnsafeModel(
        f"the TorchScript file contains {what}, in {where!r}; a model may only use operators on "
        "tensors (model_handlers/formats/operators.py): remove it from the model, and save the "
        "model again with torch.jit.save"
    )
