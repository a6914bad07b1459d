"""Read the pickles in a model file without creating the objects that they name.

Earlier versions of torch trust the sizes in a pickle. A tensor can then claim more elements than it
has bytes, and read and write the memory behind them. Here the size of every storage is compared
with its record, the size of every tensor with its storage, and every name with a short list.
"""

from __future__ import annotations

import io
import pickle
import pickletools
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn

from common.errors import UnsafeModel

# The opcodes that torch's reader of TorchScript supports, and that torch.save writes.
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
# A view may repeat elements, as an expanded mask does: each element up to _MAX_REPEATS times on
# average, or up to _FREE_ELEMENTS elements in total.
_MAX_REPEATS = 100
_FREE_ELEMENTS = 1 << 24


class Tensor:
    """A placeholder for a tensor that was not created; `size` is its shape."""

    def __init__(self, size: Sequence[int]) -> None:
        self.size = tuple(size)


class Instance:
    """A placeholder for an object that was not created; `state` holds what would create it."""

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
    """Read a pickle, with Tensor and Instance in place of tensors and objects.

    Args:
        data: The pickle.
        record_size: A function that returns the size of the record of a storage in bytes, for the
            key of the storage.
        find: A function that returns the placeholder for a module and a name in it, or raises. It
            is not called for tensors, storages and plain containers.

    Returns:
        The value of the pickle.

    Raises:
        UnsafeModel: The pickle could read memory outside the model, or exhaust the machine.
        Exception: Any exception that unpickling a damaged file raises.
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
    """Raise UnsafeModel if a tensor reaches beyond its storage, or repeats elements too many times.

    Args:
        elements: The number of elements in the storage.
        offset: The index of the tensor's first element.
        size: The shape of the tensor.
        stride: The strides of the tensor, in elements.

    Raises:
        UnsafeModel: The tensor does not fit its storage.
    """
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
    _refuse("a quantized tensor whose scales do not match its channels")


def _rebuild_parameter(tensor: Any, *_: Any) -> Tensor:
    if not isinstance(tensor, Tensor):
        _refuse("a parameter that is not a tensor")
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
    """Accept only known opcodes, numbers of 64 bits, and a memo that grows one by one."""
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
    """Yield the values directly within a value."""
    if isinstance(value, dict):
        yield from value.keys()
        yield from value.values()
        yield getattr(value, "__dict__", None)
    elif isinstance(value, list | tuple):
        yield from value
    elif isinstance(value, Instance):
        yield value.state


def _check_depth(root: Any) -> None:
    """Raise UnsafeModel if the value of a pickle is nested too deeply or contains itself."""
    heights: dict[int, int] = {}
    kept = [root]  # Python reuses the ids of objects that are no longer referenced.
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
        f"the model file contains {what}, which could read memory outside the model or exhaust the "
        "machine: the file is damaged or malicious; save the model again"
    )
