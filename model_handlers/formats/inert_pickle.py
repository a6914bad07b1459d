"""The pickles in a model file, read without making what they name: only their form is looked at.

Earlier versions of torch believe the sizes in a pickle: a tensor may claim more elements than
its bytes hold, and then reads and writes the memory behind them. Here every storage is held
against its record, every tensor against its storage, and every name against a short list.
"""

from __future__ import annotations

import io
import pickle
import pickletools
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn

from common.errors import UnsafeModel

# What torch's reader of TorchScript knows, and torch.save writes beside that.
_OPCODES = {
    "PROTO", "MARK", "STOP", "EMPTY_LIST", "EMPTY_TUPLE", "EMPTY_DICT", "TUPLE", "TUPLE1",
    "TUPLE2", "TUPLE3", "APPEND", "APPENDS", "SETITEM", "SETITEMS", "NONE", "NEWTRUE",
    "NEWFALSE", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE",
    "BINPUT", "LONG_BINPUT", "BINGET", "LONG_BINGET", "GLOBAL", "NEWOBJ", "REDUCE",
    "BUILD", "BINPERSID",
}  # fmt: skip
_ITEM_BYTES = {
    "Bool": 1, "Byte": 1, "Char": 1, "Short": 2, "Int": 4, "Long": 8, "Half": 2, "BFloat16": 2,
    "Float": 4, "Double": 8, "ComplexFloat": 8, "ComplexDouble": 16, "QInt8": 1, "QUInt8": 1,
    "QInt32": 4,
}  # fmt: skip
_MAX_DEPTH = 200
_MAX_DIMENSIONS = 64
# A view may repeat elements, as an expanded mask does: so often, or up to that many in all.
_MAX_REPEATS = 100
_FREE_ELEMENTS = 1 << 24


class Tensor:
    """A tensor that was not made. size: of each dimension."""

    def __init__(self, size: Sequence[int]) -> None:
        self.size = tuple(size)


class Instance:
    """An object that was not made. state: what it would be made of."""

    state: Any = None

    def __init__(self, *args: Any) -> None:
        self.state = args

    def __setstate__(self, state: Any) -> None:
        self.state = (self.state, state)


class _Storage:
    def __init__(self, item_bytes: int, elements: int = 0) -> None:
        self.item_bytes = item_bytes
        self.elements = elements


def read_inert(
    data: bytes,
    record_size: Callable[[str], int],
    find: Callable[[str, str], Any],
) -> Any:
    """A pickle -> what it holds, with Tensor and Instance in the places of tensors and objects.

    record_size: a storage's key -> bytes of its record. find: module and name -> what stands
    for it, or an error; tensors, storages and plain containers are known here.
    Raises UnsafeModel, and what unpickling a damaged file raises.
    """
    _check_opcodes(data)
    found = _Reader(data, record_size, find).load()
    _check_depth(found)
    return found


class _Reader(pickle.Unpickler):
    def __init__(self, data: bytes, record_size: Any, find: Any) -> None:
        super().__init__(io.BytesIO(data))
        self._record_size = record_size
        self._find = find

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and name.removesuffix("Storage") in _ITEM_BYTES:
            return _Storage(_ITEM_BYTES[name.removesuffix("Storage")])
        known = _KNOWN.get((module, name))
        return self._find(module, name) if known is None else known

    def persistent_load(self, pid: Any) -> _Storage:
        match pid:
            case ("storage", _Storage(item_bytes=size), str() as key, str(), int() as elements):
                found = self._record_size(key) if elements else 0
                if not 0 <= elements * size <= found:
                    _refuse(f"a storage of {elements:,} elements in {found:,} bytes")
                return _Storage(size, elements)
        _refuse("a storage that torch does not write")


def check_view(elements: int, offset: int, size: Sequence[int], stride: Sequence[int]) -> None:
    """Elements that are there and a view of them -> nothing, or UnsafeModel: it reaches beyond."""
    numbers = (offset, *size, *stride)
    if any(type(n) is not int or not 0 <= n < 1 << 62 for n in numbers) or (
        len(size) != len(stride) or len(size) > _MAX_DIMENSIONS
    ):
        _refuse(f"a tensor of size {_shown(size)}, strides {_shown(stride)}, offset {offset!r}")
    count = 1
    for n in size:
        count *= max(n, 1)
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if 0 in size:
        last = offset - 1
        count = count if count >= 1 << 62 else 0
    if last >= elements or count > max(_FREE_ELEMENTS, _MAX_REPEATS * elements):
        _refuse(f"a tensor of size {_shown(size)} on {elements:,} elements")


def _shown(numbers: Sequence[int]) -> str:
    return "x".join(str(n)[:20] for n in numbers[:8]) or "()"


def _rebuild(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> Tensor:
    if not isinstance(storage, _Storage) or not all(type(t) is tuple for t in (size, stride)):
        _refuse("a tensor that torch does not write")
    check_view(storage.elements, offset, size, stride)
    return Tensor(size)


def _rebuild_quantized(
    storage: Any, offset: Any, size: Any, stride: Any, scheme: Any, *_: Any
) -> Tensor:
    tensor = _rebuild(storage, offset, size, stride)
    match scheme:
        case ("per_tensor_affine", float(), int()):
            return tensor
        case (
            "per_channel_affine" | "per_channel_affine_float_qparams",
            Tensor(size=scales),
            Tensor(size=zeros),
            int() as axis,
        ) if 0 <= axis < len(tensor.size) and scales == zeros == (tensor.size[axis],):
            return tensor
    _refuse("a quantized tensor with other scales than it has channels")


def _rebuild_parameter(tensor: Any, *_: Any) -> Tensor:
    if not isinstance(tensor, Tensor):
        _refuse("a parameter that is no tensor")
    return tensor


_KNOWN: dict[tuple[str, str], Any] = {
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild,
    ("torch._utils", "_rebuild_qtensor"): _rebuild_quantized,
    ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
    ("torch", "Size"): tuple,
    ("torch", "device"): Instance,
    ("builtins", "complex"): Instance,
    ("collections", "OrderedDict"): OrderedDict,
} | {
    ("torch", scheme): scheme
    for scheme in ("per_tensor_affine", "per_channel_affine", "per_channel_affine_float_qparams")
}


def _check_opcodes(data: bytes) -> None:
    """Only known opcodes, numbers of 64 bits, and a memo that grows one by one."""
    memo = 0
    for opcode, found, _ in pickletools.genops(data):
        argument: Any = found
        if opcode.name not in _OPCODES or (opcode.name == "PROTO" and argument != 2):
            _refuse(f"the opcode {opcode.name}")
        if opcode.name in ("BINPUT", "LONG_BINPUT"):
            if argument > memo:
                _refuse(f"the memo {argument:,} after {memo:,}")
            memo = max(memo, argument + 1)
        elif opcode.name == "LONG1" and not -(1 << 63) <= argument < 1 << 63:
            _refuse("a number of more than 64 bits")


def _parts(value: Any) -> Iterator[Any]:
    """What is directly within a value."""
    if isinstance(value, dict):
        yield from value.keys()
        yield from value.values()
        yield getattr(value, "__dict__", None)
    elif isinstance(value, list | tuple):
        yield from value
    elif isinstance(value, Instance):
        yield value.state


def _check_depth(root: Any) -> None:
    """What a pickle holds -> nothing, or UnsafeModel if it is nested deeply or holds itself."""
    heights: dict[int, int] = {}
    kept = [root]  # ids of what is thrown away are given again
    way: list[tuple[int, Iterator[Any], list[int]]] = [(id(root), _parts(root), [0])]
    open_ids = {id(root)}
    while way:
        key, parts, height = way[-1]
        part = next(parts, way)
        if part is way:
            way.pop()
            open_ids.discard(key)
            heights[key] = height[0] + 1
            if way:
                way[-1][2][0] = max(way[-1][2][0], heights[key])
        elif id(part) in open_ids or len(way) + heights.get(id(part), 0) > _MAX_DEPTH:
            _refuse(f"values nested more than {_MAX_DEPTH} deep")
        elif id(part) in heights:
            height[0] = max(height[0], heights[id(part)])
        elif isinstance(part, dict | list | tuple | Instance):
            kept.append(part)
            open_ids.add(id(part))
            way.append((id(part), _parts(part), [0]))


def _refuse(what: str) -> NoReturn:
    raise UnsafeModel(
        f"the model file holds {what}, which could read memory that is not the model's or exhaust "
        "the machine: the file is damaged or made to harm; save the model again"
    )
