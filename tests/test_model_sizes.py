"""Tests that wrong sizes, counts and expressions in a model file cause no hang and no crash."""

import io
import json
import re
import struct
import zipfile
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from property_tests import examples
from test_formats import Scorer, always, edited, export, load, rewritten, safetensors, saved, script
from torch import nn

from common.errors import ManifestError, ModelError, UnsafeModel
from model_handlers.formats.inert_pickle import check_view, read_inert
from model_handlers.manifests.manifest import OutputSpec

pytestmark = pytest.mark.filterwarnings("ignore")
LINEAR = {
    "architecture": "torch.nn:Linear",
    "architecture_args": {"in_features": 2, "out_features": 1},
}
HEAD = b"\x80\x02"
# The opcode of an integer, and the integer 16,777,216.
FAR = b"J\x00\x00\x00\x01"


@pytest.fixture(scope="module")
def files() -> dict[str, bytes]:
    torch.manual_seed(1)
    linear = nn.Linear(2, 1)
    return {
        "torchscript": script(Scorer()),
        "pt2": export(Scorer(), torch.zeros(3, 2)),
        "state_dict": saved(linear.state_dict()),
        "safetensors": safetensors(linear.state_dict()),
    }


def more_elements(pickle: bytes) -> bytes:
    """Make the storages claim 16 million elements."""
    changed = re.sub(rb"(?s)(cpuq.)K.", lambda found: found[1] + FAR, pickle)
    assert changed != pickle
    return changed


def further_on(pickle: bytes) -> bytes:
    """Make the tensors start at the 16 millionth element of their storage."""
    changed = re.sub(rb"(?s)(Q(?:q.)?)K\x00", lambda found: found[1] + FAR, pickle)
    assert changed != pickle
    return changed


@pytest.mark.parametrize("change", [more_elements, further_on])
@pytest.mark.parametrize("kind", ["torchscript", "state_dict"])
def test_a_tensor_that_reaches_beyond_its_bytes_is_refused(
    files: dict[str, bytes], kind: str, change: Callable[[bytes], bytes]
) -> None:
    data = rewritten(files[kind], {"data.pkl": change})
    with pytest.raises(UnsafeModel, match=r"contains a (storage of 16,777,216 elements|tensor of)"):
        load(data, kind, **LINEAR)


@pytest.mark.parametrize(
    "pickle",
    [
        HEAD + b"}r\xff\xff\xff\xff.",
        HEAD + b"]" + b"\x85" * 100_000 + b".",
        HEAD + b"]q\x00h\x00a.",
        HEAD + b"\x8b\xff\xff\xff\x7f.",
        HEAD + b"\x8a\xff" + b"\x7f" * 255 + b".",
        HEAD + b"cos\nsystem\n(X\x04\x00\x00\x00trueq\x00tR.",
        HEAD + b"(" * 1000 + b".",
        b"\x80\x04N.",
        b"",
    ],
)
def test_a_pickle_that_exhausts_memory_or_reaches_beyond_it_is_refused(
    files: dict[str, bytes], pickle: bytes
) -> None:
    for kind in ("torchscript", "state_dict"):
        with pytest.raises(ModelError) as caught:
            load(rewritten(files[kind], {"data.pkl": always(pickle)}), kind, **LINEAR)
        assert len(str(caught.value).splitlines()) == 1


@given(
    st.integers(0, 100),
    st.integers(-1, 100),
    st.lists(st.tuples(st.integers(-1, 9), st.integers(-1, 30)), max_size=4),
)
def test_a_view_is_accepted_only_if_torch_finds_it_within_its_storage(
    elements: int, offset: int, dimensions: list[tuple[int, int]]
) -> None:
    size, stride = [n for n, _ in dimensions], [n for _, n in dimensions]
    with suppress(UnsafeModel):
        check_view(elements, offset, size, stride)
        torch.zeros(elements).as_strided(size, stride, offset)


@pytest.mark.parametrize(
    ("size", "stride"),
    [([1 << 40], [0]), ([1 << 61, 1 << 61, 0], [1, 1, 1]), ([2], [1 << 63]), ([1] * 65, [1] * 65)],
)
def test_a_view_of_more_than_any_model_needs_is_refused(size: list[int], stride: list[int]) -> None:
    with pytest.raises(UnsafeModel, match="contains a tensor of size"):
        check_view(100, 0, size, stride)


def weights(edit: Callable[[Any], None]) -> Callable[[bytes], bytes]:
    """Return a change of the description of the first weight in a .pt2."""
    return edited(lambda value: edit(next(iter(value["config"].values()))["tensor_meta"]))


def test_a_pt2_tensor_without_bytes_is_refused(files: dict[str, bytes]) -> None:
    def edit(meta: Any) -> None:
        meta["sizes"] = [{"as_int": 10**12}]
        meta["strides"] = [{"as_int": 1}]

    config = "data/weights/model_weights_config.json"
    changes = {config: weights(edit), "data/weights/weight_0": always(b"")}
    with pytest.raises(UnsafeModel, match="a tensor of size 1000000000000 on 0 elements"):
        load(rewritten(files["pt2"], changes), "pt2")


def test_a_size_whose_evaluation_would_never_end_is_refused(files: dict[str, bytes]) -> None:
    def edit(program: Any) -> None:
        size = program["graph_module"]["graph"]["tensor_values"]["x"]["sizes"][0]
        size["as_expr"]["expr_str"] = "10**10**10"

    with pytest.raises(UnsafeModel, match=r"an expression whose value can become too large"):
        load(rewritten(files["pt2"], {"models/model.json": edited(edit)}), "pt2")


def node(target: str, left: Any, right: Any, name: str) -> Any:
    arguments = [{"name": "a", "arg": left, "kind": 1}, {"name": "b", "arg": right, "kind": 1}]
    output = {"as_sym_int": {"as_name": name}}
    return {"target": target, "inputs": arguments, "outputs": [output], "metadata": {}}


@pytest.mark.parametrize("kind", ["pow", "mul", "lshift", "number", "factorial"])
def test_sizes_that_grow_in_the_graph_are_refused(files: dict[str, bytes], kind: str) -> None:
    def edit(program: Any) -> None:
        graph = program["graph_module"]["graph"]
        if kind == "mul":
            names = [{"as_sym_int": {"as_name": f"n{i}"}} for i in range(9)]
            added = [node("_operator.mul", names[i], names[i], f"n{i + 1}") for i in range(8)]
        elif kind == "number":
            added = [node("_operator.add", {"as_int": 1 << 70}, {"as_int": 1}, "n")]
        elif kind == "factorial":
            added = [node("math.factorial", {"as_int": 10**9}, {"as_int": 1}, "n")]
        else:
            added = [node(f"_operator.{kind}", {"as_int": 10}, {"as_int": 10**10}, "n")]
        graph["nodes"][:0] = added

    with pytest.raises(
        UnsafeModel,
        match=r"the .pt2 contains (integers that can grow|a number of .* as as_int|the operator)",
    ):
        load(rewritten(files["pt2"], {"models/model.json": edited(edit)}), "pt2")


@pytest.mark.parametrize(
    "header",
    [
        {"weight": {"dtype": "F32", "shape": [10**12], "data_offsets": [0, 4]}},
        {"weight": {"dtype": "F32", "shape": [1 << 63, 2], "data_offsets": [0, 4]}},
        {"weight": {"dtype": "F32", "shape": [1], "data_offsets": [0, 10**15]}},
        {"weight": {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}},
    ],
)
def test_a_safetensors_header_with_wrong_sizes_is_refused(header: Any) -> None:
    text = json.dumps(header).encode()
    data = struct.pack("<Q", len(text)) + text + bytes(4)
    with pytest.raises(ModelError):
        load(data, "safetensors", **LINEAR)


@pytest.mark.parametrize("shape", [(10**12,), (1 << 13, 1 << 14), (2, *[1] * 1000), (10**400,)])
def test_a_manifest_with_outputs_too_large_for_any_machine_is_refused(
    files: dict[str, bytes], shape: tuple[int, ...]
) -> None:
    with pytest.raises(ManifestError, match=r"outputs.score.shape: expected .*at most"):
        load(files["torchscript"], "torchscript", outputs=(OutputSpec("score", shape=shape),))


@pytest.mark.parametrize("kind", ["torchscript", "pt2", "state_dict"])
@settings(deadline=None, max_examples=examples(60))
@given(data=st.data())
def test_a_mutated_record_loads_or_raises_a_model_error(
    files: dict[str, bytes], kind: str, data: st.DataObject
) -> None:
    with zipfile.ZipFile(io.BytesIO(files[kind])) as archive:
        names = sorted(name.split("/", 1)[1] for name in archive.namelist())

    def change(content: bytes) -> bytes:
        mutated = bytearray(content)
        for _ in range(data.draw(st.integers(1, 3))):
            at = data.draw(st.integers(0, max(len(mutated) - 1, 0)))
            cut = data.draw(st.integers(0, 2))
            mutated[at : at + cut] = data.draw(st.binary(max_size=6))
        return bytes(mutated)

    name = data.draw(st.sampled_from(names))
    with suppress(ModelError):
        load(rewritten(files[kind], {name: change}), kind, **LINEAR)


@settings(deadline=None)
@given(st.binary(max_size=60))
def test_any_pickle_is_read_without_creating_objects_or_refused(text: bytes) -> None:
    def find(module: str, name: str) -> Any:
        raise UnsafeModel(module + name)

    with suppress(Exception):
        found = read_inert(HEAD + text + b".", lambda key: 0, find)
        own = "model_handlers.formats.inert_pickle"
        assert type(found).__module__ in ("builtins", "collections", own)
