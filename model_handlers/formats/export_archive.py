"""Check the content of a torch.export file (.pt2) before torch reads it.

torch's loader trusts the file. It unpickles weights, constants and sample inputs. It passes
symbolic sizes to sympy, which evaluates them. It puts guards, names and operators into Python
source, which it compiles. In each of these ways the file could run code. Therefore only records,
names, expressions and operators that torch.export.save writes are accepted.
"""

from __future__ import annotations

import ast
import io
import json
import re
from collections.abc import Mapping
from typing import Any, NoReturn

from common.errors import UnsafeModel
from model_handlers.formats.expression_size import TooLarge, check_nodes, measure
from model_handlers.formats.inert_pickle import check_view
from model_handlers.formats.operators import OPERATORS
from model_handlers.formats.plain_pickle import load_plain

_RECORDS = re.compile(
    r"archive_format|archive_version|byteorder|version|\.data/\w+|extra/.*|models/model\.json"
    r"|data/sample_inputs/model\.pt|data/weights/(model_weights_config\.json|weight_\d+)"
    r"|data/constants/(model_constants_config\.json|tensor_\d+)"
)
_PAYLOADS = {
    "data/weights/model_weights_config.json": re.compile(r"weight_\d+"),
    "data/constants/model_constants_config.json": re.compile(r"tensor_\d+"),
}
# torch turns names into Python identifiers or attribute paths. It puts labels into code only within
# double quotes, or not at all.
_NAME = re.compile(r"[A-Za-z0-9_.]*")
_LABEL = re.compile(r'[^"\\\x00-\x1f\x7f]*')
_LABELS = {"fqn", "parameter_name", "buffer_name", "tensor_constant_name", "torch_version"}
_LABELS |= {"range_constraints", "treespec_namedtuple_fields"}
# Metadata of a node for human readers. torch only splits and stores it.
_METADATA = {"stack_trace", "nn_module_stack", "source_fn_stack", "torch_fn", "custom", "from_node"}

_OPERATORS = re.compile(
    r"torch\.ops\.(prims|quantized_decomposed)\.\w+\.\w+"
    r"|torch\.ops\.higher_order\.(cond|while_loop|scan|associative_scan|map_impl"
    r"|wrap_with_set_grad_enabled|wrap_with_autocast)"
    r"|_operator\.(eq|ne|le|ge|lt|gt|neg|pos|add|sub|mul|truediv|floordiv|mod|pow|and_|or_"
    r"|lshift|rshift|getitem)"
    r"|torch\._?sym_[a-z0-9]+"
)
# Functions that turn small numbers into very large ones, such as factorial and comb, are left out.
_MATH = re.compile(
    r"math\.(a?(sin|cos|tan)h?|atan2|ceil|exp|fabs|floor|fmod|log(2|10|1p)?|pow|sqrt|trunc)"
)
_ATEN = re.compile(r"torch\.ops\.aten\.(\w+)\.\w+")
_FUNCTIONS = re.compile(
    r"Symbol|Integer|Float|Rational|Add|Mul|Pow|Mod|Max|Min|Abs|floor|ceiling|sqrt|Eq|Ne|Gt|Ge|Lt|Le"
    r"|Equality|Unequality|GreaterThan|LessThan|StrictGreaterThan|StrictLessThan|And|Or|Not"
    r"|Piecewise|ExprCondPair|FloorDiv|ModularIndexing|Where|PythonMod|CleanDiv|CeilDiv|CeilToInt"
    r"|FloorToInt|TruncToInt|TruncToFloat|RoundToInt|RoundDecimal|LShift|RShift|PowByNatural"
    r"|FloatPow|FloatTrueDiv|IntTrueDiv|ToFloat|Identity|IsNonOverlappingAndDenseIndicator|min|max"
)
_SYMBOL = re.compile(r"[A-Za-z0-9_.+-]*")
# JSON has no numbers for these, so torch writes them as text where its schema has a float.
_FLOATS = {"as_float", "as_floats", "as_float_lists", "real", "imag"}
_SPECIAL_FLOATS = {"Infinity", "-Infinity", "NaN"}
_MAX_EXPRESSION = 4000
_MAX_PROGRAM_BYTES = 512 << 20
_TREES = {"builtins.tuple", "builtins.list", "builtins.dict", "collections.OrderedDict"}


def check_export(data: bytes) -> None:
    """Raise UnsafeModel if loading a .pt2 could run code or exhaust the machine.

    The records are read with torch's own reader, which returns the records that the loader will
    read.

    Args:
        data: The bytes of the .pt2.

    Raises:
        UnsafeModel: The file contains something that torch.export.save does not write.
    """
    from torch.export.pt2_archive._package import PT2ArchiveReader

    with PT2ArchiveReader(io.BytesIO(data)) as archive:  # type: ignore[no-untyped-call]
        for name in archive.get_file_names():
            if not _RECORDS.fullmatch(name):
                _refuse("a record that torch.export.save does not write", name)
        for name, payload in _PAYLOADS.items():
            for entry in json.loads(archive.read_string(name))["config"].values():
                if entry.get("use_pickle") or not payload.fullmatch(entry["path_name"]):
                    _refuse(f"an object in {name} that would be unpickled,", entry["path_name"])
                record = f"{name.rpartition('/')[0]}/{entry['path_name']}"
                _check_tensor(entry["tensor_meta"], archive.archive_file.get_record_size(record))
        # torch's loader first reads plain tensors too, but if that fails it unpickles objects.
        load_plain(archive.read_bytes("data/sample_inputs/model.pt"), "the .pt2's sample inputs")
        text = archive.read_string("models/model.json")
        if len(text) > _MAX_PROGRAM_BYTES:
            _refuse("a graph whose number of characters is too large,", f"{len(text):,}")
        check_program(json.loads(text))


def _check_tensor(meta: Mapping[str, Any], found: int) -> None:
    """Raise UnsafeModel if a tensor's description does not fit the size of its record."""
    sizes, strides = ([n["as_int"] for n in meta[key]] for key in ("sizes", "strides"))
    # A record has at least as many bytes as elements. torch compares the exact numbers itself,
    # except for tensors without elements.
    check_view(found, meta["storage_offset"]["as_int"], sizes, strides)


def check_program(value: Any, key: str = "", in_argument: bool = False) -> None:
    """Raise UnsafeModel if the decoded graph of a .pt2 could run code when it is loaded.

    Args:
        value: The decoded graph, or a part of it.
        key: The key of this part in its object.
        in_argument: Whether the part is an argument of an operator, whose strings torch does not
            put into code.

    Raises:
        UnsafeModel: The graph contains something that torch.export.save does not write.
    """
    if isinstance(value, list):
        for item in value:
            check_program(item, key, in_argument)
    elif isinstance(value, dict):
        if "nodes" in value and key in ("graph", "as_graph"):
            _check_growth(value["nodes"])
        for name, item in value.items():
            _check_name(name, _LABEL if key in _LABELS else _NAME, "the name")
            if name != "metadata" or not _is_metadata(item):
                check_program(item, name, in_argument or (key, name) == ("inputs", "arg"))
    elif isinstance(value, str):
        _check_text(value, key, in_argument)
    elif isinstance(value, int) and not -(1 << 63) <= value < 1 << 63:
        _refuse(f"a number of more than 64 bits as {key},", hex(value))


def _check_growth(nodes: Any) -> None:
    try:
        check_nodes(nodes)
    except TooLarge:
        _refuse("integers that can grow beyond", "640 bits")


def _is_metadata(value: Any) -> bool:
    return (
        isinstance(value, Mapping)
        and set(value) <= _METADATA
        and all(isinstance(text, str) for text in value.values())
    )


def _check_text(text: str, key: str, in_argument: bool) -> None:
    if key in ("expr_str", "guards_code"):
        check_expression(text)
    elif key in ("in_spec", "out_spec"):
        _check_tree(json.loads(text)[1], _NAME if key == "in_spec" else _LABEL)
    elif key in ("target", "as_operator"):
        found = _ATEN.fullmatch(text)
        if not (found and found[1] in OPERATORS["aten"]) and not _MATH.fullmatch(text):
            _check_name(text, _OPERATORS, "the operator")
    elif key in _FLOATS:
        if text not in _SPECIAL_FLOATS:
            _refuse(f"text in place of a number as {key},", text)
    elif key not in ("as_string", "as_strings") or not in_argument:
        _check_name(text, _LABEL if key in _LABELS else _NAME, f"the {key}")


def _check_tree(spec: Mapping[str, Any], names: re.Pattern[str]) -> None:
    """Raise UnsafeModel unless a pytree consists of tuples, lists and dicts of tensors."""
    if spec["type"] is not None and spec["type"] not in _TREES:
        _refuse("inputs or outputs of the type", spec["type"])
    context = json.loads(spec["context"] or "null")
    if not isinstance(context, list | None):
        _refuse("inputs or outputs described by", context)
    for name in context or []:
        _check_name(name, names, "an input or output named")
    for child in spec["children_spec"]:
        _check_tree(child, names)


def check_expression(text: str) -> None:
    """Raise UnsafeModel unless a symbolic size or a guard is plain arithmetic.

    Args:
        text: The expression.

    Raises:
        UnsafeModel: The expression is not plain arithmetic, or its value can become too large.
    """
    plain = text.isascii() and not re.search(r'["\\#\n\r]', text)
    if not plain or len(text) > _MAX_EXPRESSION:
        _refuse("the expression", text)
    try:
        tree = ast.parse(text, mode="eval")
        if not _is_arithmetic(tree.body):
            _refuse("the expression", text)
        measure(tree.body)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        _refuse("the expression", text)
    except TooLarge:
        _refuse("an expression whose value can become too large,", text)


def _is_arithmetic(node: ast.AST) -> bool:
    """Return whether a node consists of names, numbers, operators and known calls."""
    match node:
        case ast.Name() | ast.Constant(value=int() | float()):
            return True
        case ast.BinOp() | ast.UnaryOp() | ast.BoolOp() | ast.Compare() | ast.IfExp() | ast.Tuple():
            parts = (n for n in ast.iter_child_nodes(node) if isinstance(n, ast.expr))
            return all(map(_is_arithmetic, parts))
        case ast.Subscript(value=value, slice=ast.Constant(value=int() | str() as key)):
            return _NAME.fullmatch(str(key)) is not None and _is_arithmetic(value)
        case ast.Call(func=ast.Attribute(value=value, attr="size"), args=[], keywords=[]):
            return _is_arithmetic(value)
        case ast.Call(
            func=ast.Name(id="Symbol" | "Float"), args=[ast.Constant(value=str() as name)]
        ):
            values = [keyword.value for keyword in node.keywords]
            return _SYMBOL.fullmatch(name) is not None and all(map(_is_arithmetic, values))
        case ast.Call(
            func=ast.Attribute(value=ast.Name(id="math"), attr=name), args=args, keywords=[]
        ):
            return _MATH.fullmatch(f"math.{name}") is not None and all(map(_is_arithmetic, args))
        case ast.Call(func=ast.Name(id=name), args=args, keywords=[]):
            return _FUNCTIONS.fullmatch(name) is not None and all(map(_is_arithmetic, args))
    return False


def _check_name(text: Any, allowed: re.Pattern[str], what: str) -> None:
    if not isinstance(text, str) or not allowed.fullmatch(text):
        _refuse(what, text)


def _refuse(what: str, text: Any) -> NoReturn:
    raise UnsafeModel(
        f"the .pt2 contains {what} {str(text)[:120]!r}, which could run code or exhaust the "
        "machine when the file is read; create it with torch.export.save of the installed PyTorch, "
        "from a model that uses only PyTorch's own operators and returns tensors in plain dicts, "
        "lists or tuples"
    )
