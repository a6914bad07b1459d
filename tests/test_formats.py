"""Tests that model files of each format load, and that no file can run code."""

import hashlib
import io
import json
import math
import os
import pickle
import subprocess
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from property_tests import examples, thinned
from same_scores import assert_scores
from torch import Tensor, nn

from common.errors import ManifestError, ModelError, UnsafeModel
from examples.transactions.model import OUTPUTS, TransactionAutoencoder
from model_handlers.formats.export_archive import check_expression
from model_handlers.formats.load import load_module, sniff
from model_handlers.manifests.manifest import InputSpec, Manifest, OutputSpec
from model_handlers.trusted_code import TrustedCode

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]

AUTOENCODER = "examples.transactions.model:TransactionAutoencoder"
FORMATS = ("torchscript", "pt2", "state_dict", "safetensors")


class Scorer(nn.Module):
    """A model of two numbers per row with a parameter, a buffer and a constant."""

    mean: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 1)
        self.register_buffer("mean", torch.ones(2))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        y: Tensor = self.linear(x - self.mean).squeeze(-1)
        return {"score": y + torch.tensor([3.0])}


def script(module: nn.Module) -> bytes:
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(module.eval()), buffer)
    return buffer.getvalue()


def export(module: nn.Module, *args: Tensor, dims: Any = None) -> bytes:
    buffer = io.BytesIO()
    batch = torch.export.Dim("batch")
    shapes = tuple({0: batch} for _ in args) if dims is None else dims
    torch.export.save(torch.export.export(module.eval(), args, dynamic_shapes=shapes), buffer)
    return buffer.getvalue()


def saved(value: Any, **how: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, **how)
    return buffer.getvalue()


def safetensors(weights: Mapping[str, Tensor]) -> bytes:
    from safetensors.torch import save

    data: bytes = save(dict(weights))
    return data


def manifest(data: bytes, kind: str, **changes: Any) -> Manifest:
    values: dict[str, Any] = {
        "name": "m",
        "version": "1",
        "format": kind,
        "file": "model.bin",
        "sha256": hashlib.sha256(data).hexdigest(),
        "inputs": (InputSpec("x", ("a", "b"), shape=(2,)),),
        "outputs": (OutputSpec("score"),),
    }
    return Manifest(**values | changes)


def load(data: bytes, kind: str, **changes: Any) -> nn.Module:
    code = TrustedCode(("examples", "torch", "no_such_module", "os", "pathlib"))
    return load_module(data, manifest(data, kind, **changes), code=code)


@pytest.fixture(scope="module")
def autoencoder() -> TransactionAutoencoder:
    torch.manual_seed(3)
    return TransactionAutoencoder(torch.linspace(-3, 90, 30), torch.logspace(-1, 4, 30)).eval()


@pytest.fixture(scope="module")
def files(autoencoder: TransactionAutoencoder) -> dict[str, bytes]:
    """Return one model in every format."""
    return {
        "torchscript": script(autoencoder),
        "pt2": export(autoencoder, torch.zeros(3, 30)),
        "state_dict": saved(autoencoder.state_dict()),
        "safetensors": safetensors(autoencoder.state_dict()),
    }


@pytest.fixture(scope="module")
def scorer() -> bytes:
    torch.manual_seed(1)
    return export(Scorer(), torch.zeros(3, 2))


@pytest.fixture(scope="module")
def branches() -> bytes:
    return export(Branches(), torch.ones(3, 2))


@pytest.mark.parametrize("kind", FORMATS)
def test_a_model_is_the_same_in_every_format(
    files: dict[str, bytes], autoencoder: TransactionAutoencoder, kind: str
) -> None:
    module = load(files[kind], kind, architecture=AUTOENCODER)
    for rows in (0, 1, 2, 7):
        x = torch.randn(rows, 30, generator=torch.Generator().manual_seed(rows)) * 20
        with torch.inference_mode():
            answer, expected = module(x), autoencoder(x)
        assert list(answer) == [name for name, _ in OUTPUTS]
        for name, value in expected.items():
            assert_scores(answer[name], value, name)


@pytest.mark.parametrize("kind", FORMATS)
def test_the_format_is_detected_from_the_bytes(files: dict[str, bytes], kind: str) -> None:
    assert sniff(files[kind]) == ("torch_save" if kind == "state_dict" else kind)
    for other in set(FORMATS) - {kind}:
        with pytest.raises(
            ManifestError, match=f"says format '{other}', but the file model.bin is"
        ):
            load(files[kind], other, architecture=AUTOENCODER)


def test_a_pt2_is_moved_to_its_device_with_the_tensors_that_it_creates() -> None:
    class Positions(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.sum(1) + torch.arange(x.shape[0])

    data = export(Positions(), torch.zeros(3, 2))
    module = load_module(data, manifest(data, "pt2"), torch.device("meta"))
    assert module(torch.zeros(3, 2, device="meta")).device.type == "meta"


# Models that use many features of torch.export. None of them may be mistaken for an attack.


class Embeddings(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tables = nn.ModuleDict(
            {"merchant-category": nn.Embedding(10, 3), "user id": nn.Embedding(5, 2)}
        )

    def forward(self, category: Tensor, user: Tensor) -> dict[str, Tensor]:
        rows = [self.tables["merchant-category"](category), self.tables["user id"](user)]
        return {"the score (raw)": torch.cat(rows, 1).sum(1) + torch.arange(user.shape[0])}


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.LSTM(3, 4, batch_first=True)
        self.attention = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)

    def forward(self, x: Tensor) -> list[Tensor]:
        y, _ = self.layer(x)
        return [y[:, -1], self.attention(y).mean(1)]


class Branches(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            y = torch.cond(x.sum() > 0, lambda t: t + 1.0, lambda t: t - 1.0, (x,))
        count: Any = (x > 0).sum().item()
        torch._check(count >= 0)
        torch._check(count < 100)
        gelu = torch.nn.functional.gelu(y, approximate="tanh")
        return torch.einsum("ij,ij->i", y, gelu), gelu.double().sum(1) + torch.zeros(count).sum()


class Even(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        pairs = x if x.shape[0] % 2 == 0 else x * 2
        return pairs.reshape(x.shape[0] * 2, 1).view(-1, 2).sum(1)


class Ordered(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(2)
        self.scale = torch.ones(2) * 3

    def forward(self, x: Tensor, *, shift: float = 2.0) -> OrderedDict[str, Tensor]:
        x = x.clone()
        x[:, 0] = 0
        return OrderedDict(a=self.norm(x) * self.scale + shift)


class SpecialFloats(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        causal = torch.full((2, 2), float("-inf")).triu(1)
        y = x.masked_fill(x < 0, float("-inf")).clamp(min=-math.inf, max=math.inf)
        z = torch.nan_to_num(x / 0, nan=math.nan, neginf=-math.inf)
        return y @ causal.exp(), z, (x * complex(-math.inf, 0)).real


class Padded(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        attended: Tensor = self.layer(x, src_key_padding_mask=x[:, :, 0] < 0)
        return attended.mean((1, 2))


HARMLESS: dict[str, Callable[[], tuple[nn.Module, tuple[Tensor, ...], Any]]] = {
    "embeddings": lambda: (Embeddings(), (torch.ones(3).long(), torch.ones(3).long()), None),
    "recurrent": lambda: (Recurrent(), (torch.ones(3, 5, 3),), None),
    "branches": lambda: (Branches(), (torch.ones(3, 2),), None),
    "guards": lambda: (Even(), (torch.ones(4, 2),), ({0: torch.export.Dim.DYNAMIC},)),
    "ranges": lambda: (Even(), (torch.ones(4, 2),), ({0: 2 * torch.export.Dim("half", max=50)},)),
    "ordered": lambda: (Ordered(), (torch.ones(3, 2),), None),
    "special floats": lambda: (SpecialFloats(), (torch.tensor([[1.0, -1], [0, 2], [3, 4]]),), None),
    "padding mask": lambda: (
        Padded(),
        (torch.ones(3, 5, 4).index_fill(1, torch.tensor([4]), -1),),
        None,
    ),
}


@pytest.mark.filterwarnings("ignore:The tensor attributes")
@pytest.mark.parametrize("kind", HARMLESS)
@pytest.mark.exhaustive
@pytest.mark.slow
def test_models_of_torch_export_are_not_mistaken_for_attacks(kind: str) -> None:
    torch.manual_seed(0)
    module, args, dims = HARMLESS[kind]()
    loaded = load(export(module, *args, dims=dims), "pt2")
    with torch.inference_mode():
        torch.testing.assert_close(loaded(*args), module(*args), equal_nan=True)


QUANTIZED = """
import io, sys, torch
from pathlib import Path

if sys.argv[1] == "export":
    import torch.ao.quantization.fx._decomposed

    class Quantized(torch.nn.Module):
        def forward(self, x):
            how = 0.5, 0, -128, 127, torch.int8
            whole = torch.ops.quantized_decomposed.quantize_per_tensor.default(x, *how)
            return torch.ops.quantized_decomposed.dequantize_per_tensor.default(whole, *how).sum(1)

    rows = torch.export.Dim("rows")
    program = torch.export.export(Quantized(), (torch.ones(3, 2),), dynamic_shapes=({0: rows},))
    torch.export.save(program, sys.argv[2])
else:
    from test_formats import load

    print(load(Path(sys.argv[2]).read_bytes(), "pt2")(torch.tensor([[0.6, 1.0]])).tolist())
"""


def test_a_quantized_pt2_loads_in_a_process_that_has_quantized_nothing(tmp_path: Path) -> None:
    def run(step: str) -> str:
        command = [sys.executable, "-W", "ignore", "-c", QUANTIZED, step, str(tmp_path / "q.pt2")]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
        how: Any = {"env": environment, "timeout": 240}
        return subprocess.check_output(command, text=True, **how)

    run("export")
    assert run("load") == "[1.5]\n"


# Files that would run code. A file that does creates a marker folder.


class Payload:
    """An object that creates a folder when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


def expression(marker: Path) -> str:
    """Return a true Python expression that creates a folder."""
    return f"__import__('os').mkdir('{marker}') is None"


def rewritten(
    data: bytes,
    changes: Mapping[str, Callable[[bytes], bytes]],
    *,
    rename: Callable[[str], str] = str,
    added: Mapping[str, bytes] | None = None,
) -> bytes:
    """Change, rename or add records of a zip; their names are without `archive/`."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(buffer, "w") as new:
        for name in old.namelist():
            short = name.split("/", 1)[1]
            content = old.read(name)
            if short in changes:
                content = changes[short](content)
            new.writestr("archive/" + rename(short), content)
        for short, content in (added or {}).items():
            new.writestr("archive/" + short, content)
    return buffer.getvalue()


def always(content: bytes) -> Callable[[bytes], bytes]:
    return lambda _: content


def edited(edit: Callable[[Any], Any]) -> Callable[[bytes], bytes]:
    """Turn a change of decoded JSON into a change of its bytes."""

    def change(content: bytes) -> bytes:
        value = json.loads(content)
        edit(value)
        return json.dumps(value).encode()

    return change


def with_size(data: bytes, marker: Path) -> bytes:
    def edit(program: Any) -> None:
        size = program["graph_module"]["graph"]["tensor_values"]["x"]["sizes"][0]
        size["as_expr"]["expr_str"] = expression(marker)

    return rewritten(data, {"models/model.json": edited(edit)})


def with_text_in_sympy(data: bytes, marker: Path) -> bytes:
    def edit(program: Any) -> None:
        size = program["graph_module"]["graph"]["tensor_values"]["x"]["sizes"][0]
        size["as_expr"]["expr_str"] = f'Max("{expression(marker)}", 1)'

    return rewritten(data, {"models/model.json": edited(edit)})


def with_guard(data: bytes, marker: Path) -> bytes:
    guards = [expression(marker)]
    return rewritten(
        data, {"models/model.json": edited(lambda program: program.update(guards_code=guards))}
    )


def with_name(data: bytes, marker: Path) -> bytes:
    name = json.dumps(f"x={expression(marker)}").encode()
    return rewritten(data, {"models/model.json": lambda text: text.replace(b'"x"', name)})


def pickled_payload(marker: Path) -> bytes:
    return pickle.dumps(Payload(marker))


def with_sample_inputs(data: bytes, marker: Path) -> bytes:
    return rewritten(data, {"data/sample_inputs/model.pt": lambda _: saved(Payload(marker))})


def with_sample_inputs_in_capitals(data: bytes, marker: Path) -> bytes:
    return rewritten(
        data,
        {"data/sample_inputs/model.pt": lambda _: saved(Payload(marker))},
        rename=lambda name: name.replace("sample_inputs", "SAMPLE_INPUTS"),
    )


def with_payload(folder: str, entry: str, path_name: str, file: Callable[[Path], bytes]) -> Any:
    """Return an attack that adds an object to the weights or the constants."""

    def attack(data: bytes, marker: Path) -> bytes:
        config = f"data/{folder}/model_{folder}_config.json"
        meta = {"path_name": path_name, "is_param": False, "use_pickle": True, "tensor_meta": None}
        return rewritten(
            data,
            {config: edited(lambda value: value["config"].update({entry: meta}))},
            added={f"data/{folder}/{path_name}": file(marker)},
        )

    return attack


def with_legacy(folder: str) -> Any:
    def attack(data: bytes, marker: Path) -> bytes:
        return rewritten(data, {}, added={f"data/{folder}/model.pt": saved(Payload(marker))})

    return attack


ATTACKS: dict[str, Callable[[bytes, Path], bytes]] = {
    "size": with_size,
    "text in sympy": with_text_in_sympy,
    "guard": with_guard,
    "name": with_name,
    "sample inputs": with_sample_inputs,
    "sample inputs in capitals": with_sample_inputs_in_capitals,
    "weight": with_payload("weights", "mean", "weight_9", lambda m: saved(Payload(m))),
    "tensor constant": with_payload("constants", "lifted", "tensor_9", lambda m: saved(Payload(m))),
    "opaque constant": with_payload("constants", "lifted", "opaque_obj_0", pickled_payload),
    "legacy weights": with_legacy("weights"),
    "legacy constants": with_legacy("constants"),
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_pt2_that_would_run_code_is_refused(scorer: bytes, tmp_path: Path, attack: str) -> None:
    marker = tmp_path / "marker"
    data = ATTACKS[attack](scorer, marker)
    with pytest.raises(UnsafeModel, match=r"contains|is a pickle") as caught:
        load(data, "pt2")
    assert not marker.exists()
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("attack", ATTACKS)
def test_the_attacks_are_real(scorer: bytes, tmp_path: Path, attack: str) -> None:
    # This import takes two seconds, and only this test needs it.
    from torch.export.pt2_archive._package import load_pt2

    marker = tmp_path / "marker"
    data = ATTACKS[attack](scorer, marker)
    # Most attacks also break the model after their code has run.
    with suppress(Exception):
        program = load_pt2(io.BytesIO(data)).exported_programs["model"]
        program.module()(torch.ones(3, 2))
    assert marker.exists()


def texts(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the places of all strings in decoded JSON, including keys."""
    if isinstance(value, dict):
        inner = [place for name, item in value.items() for place in texts(item, (*path, name))]
        return inner + [(*path, name, "name of") for name in value]
    if isinstance(value, list):
        return [place for i, item in enumerate(value) for place in texts(item, (*path, i))]
    return [path] if isinstance(value, str) else []


def with_text(program: Any, path: tuple[Any, ...], text: str) -> bytes:
    """Return the JSON of a decoded value in which one string was replaced."""
    whole = json.loads(json.dumps(program))
    *way, last = path[:-1] if path[-1] == "name of" else path
    place = whole
    for key in way:
        place = place[key]
    if path[-1] == "name of":
        place[text] = place.pop(last)
    else:
        place[last] = text
    return json.dumps(whole).encode()


@pytest.mark.parametrize(
    ("model", "form"),
    [
        ("scorer", "{}"),
        ("scorer", "x'+str({})+'"),
        ("scorer", 'x"+str({})+"'),
        ("scorer", "x=({})"),
        ("scorer", "x\n{}\n#"),
        ("branches", "{}"),
    ],
)
@pytest.mark.exhaustive
def test_no_string_in_a_graph_is_run_as_code(
    request: pytest.FixtureRequest, tmp_path: Path, model: str, form: str
) -> None:
    marker = tmp_path / "marker"
    original = request.getfixturevalue(model)
    with zipfile.ZipFile(io.BytesIO(original)) as archive:
        program = json.loads(archive.read("archive/models/model.json"))
    places = texts(program)[:: 1 if model == "scorer" else 4]
    assert len(places) > 200
    for path in thinned(places):
        content = with_text(program, path, form.format(expression(marker)))
        data = rewritten(original, {"models/model.json": always(content)})
        # A file that is not refused may be broken.
        with suppress(Exception):
            load(data, "pt2")(torch.ones(3, 2))
        assert not marker.exists(), f"the text at {path} was run"


def first_node(program: Any) -> Any:
    return program["graph_module"]["graph"]["nodes"][0]


def signature(program: Any) -> Any:
    return program["graph_module"]["module_call_graph"][0]["signature"]


def tree(kind: str, context: str) -> str:
    return json.dumps([1, {"type": kind, "context": context, "children_spec": []}])


@pytest.mark.parametrize(
    "change",
    [
        lambda p: first_node(p).update(target="torch.os.system"),
        lambda p: first_node(p).update(target="torch.ops.load_library"),
        lambda p: first_node(p).update(target="torch.ops.aten.save.default"),
        lambda p: first_node(p).update(target="torch.ops.aten.from_file.default"),
        lambda p: first_node(p).update(target="torch.ops.aten.from_file.out"),
        lambda p: first_node(p).update(target="torch.ops.higher_order.print"),
        lambda p: first_node(p).update(target="_operator.methodcaller"),
        lambda p: first_node(p).update(target="math.__loader__"),
        lambda p: first_node(p)["inputs"].append({"arg": {"as_operator": "torch.hub.load"}}),
        lambda p: first_node(p)["inputs"].append(
            {"arg": {"as_string_to_argument": {"metadata": {"as_operator": "torch.hub.load"}}}}
        ),
        lambda p: first_node(p)["inputs"].append({"arg": {"as_float": "-Infinity if x else x"}}),
        lambda p: first_node(p)["inputs"].append({"arg": {"as_floats": ["os"]}}),
        lambda p: signature(p).update(forward_arg_names=["-Infinity"]),
        lambda p: signature(p).update(in_spec=tree("collections.defaultdict", "{}")),
        lambda p: signature(p).update(out_spec=tree("builtins.dict", '{"__enum__": "os"}')),
        lambda p: signature(p).update(in_spec=tree("builtins.dict", '["a\'"]')),
        lambda p: signature(p).update(forward_arg_names=["x: print()"]),
        lambda p: p["graph_module"]["graph"]["inputs"].append({"as_string": "' or print() or '"}),
        lambda p: p["graph_module"]["signature"]["input_specs"].append(
            {"user_input": {"arg": {"as_string": "' or print() or '"}}}
        ),
    ],
)
def test_operators_and_types_that_reach_beyond_tensors_are_refused(
    scorer: bytes, change: Callable[[Any], Any]
) -> None:
    with pytest.raises(UnsafeModel, match=r"the .pt2 contains .*, which could run code"):
        load(rewritten(scorer, {"models/model.json": edited(change)}), "pt2")


@pytest.mark.parametrize(
    "record", ["models/other.json", "data/aotinductor/model/x.so", "data/weights/x.pt", "x"]
)
def test_records_that_torch_export_does_not_write_are_refused(scorer: bytes, record: str) -> None:
    with pytest.raises(UnsafeModel, match=f"does not write '{record}'"):
        load(rewritten(scorer, {}, added={record: b"{}"}), "pt2")


def test_notes_in_a_pt2_are_ignored(scorer: bytes) -> None:
    load(rewritten(scorer, {}, added={"extra/notes.txt": b"import os"}), "pt2")


@pytest.mark.parametrize(
    "text",
    [
        "Symbol('s77', positive=True, integer=True)",
        "Mul(Integer(-2), Symbol('u0', integer=True))",
        "Piecewise(ExprCondPair(Integer(1), Equality(Symbol('s0'), Integer(3))))",
        "Float('0.5', precision=53)",
        "(L['x'].size()[0] % 2) == 0",
        "L['a'].size()[1] == L['flat_args'][0].size()[0] and not L['b'].size()[0] < 3",
        "math.floor(L['x'].size()[0] / 2) >= -1",
        "s0 if s0 > 1 else s1**2",
        "Pow(Add(Symbol('s0'), Integer(1)), Rational(1, 2))",
        "math.pow(2, 0.5)",
    ],
)
def test_arithmetic_is_accepted(text: str) -> None:
    check_expression(text)


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').system('true')",
        "exec('1')",
        "().__class__.__base__.__subclasses__()",
        "(lambda: 1)()",
        "[x for x in (1,)]",
        "f'{1}'",
        "(x := 1)",
        "Max('1', 2)",
        "Symbol(exec)('1')",
        "Symbol('a b')",
        "Symbol('s0', cls=exec('1'))",
        "L['x'].size(exec('1'))",
        "L['x'].resize_()[0]",
        "L[exec('1')]",
        "math.floor(exec('1'))",
        "os.system(1)",
        "1 # comment",
        "1\n+1",
        'Symbol("s0")',
        "'text'",
        "s\u03c0",
        "1 +",
        "",
        "-" * 5000 + "1",
        "(" * 300 + "1" + ")" * 300,
        "10**10**10",
        "2**s1",
        "s0**17",
        "9" * 30,
        "1 << 10**10",
        "Pow(Integer(10), Pow(Integer(10), Integer(10)))",
        "PowByNatural(10, 10000000000)",
        "LShift(1, 10000000000)",
        "((((s0**16)**16)**16)**16)",
        "*".join(["(s0 + s1)"] * 40),
        "*".join(["s0"] * 400),
        "Pow(Add(Symbol('a'), Symbol('b'), Symbol('c')), Integer(16))",
        "math.factorial(1000000)",
        "math.comb(s0, s1)",
    ],
)
def test_expressions_other_than_arithmetic_are_refused(text: str) -> None:
    with pytest.raises(
        UnsafeModel,
        match=r"contains (the expression|an expression whose value can become too large,) ",
    ):
        check_expression(text)


@given(st.text("Lx0.9s'()[]+-*/%,=<> \n\"#\\", max_size=30) | st.text(max_size=30))
def test_any_text_is_arithmetic_or_refused(text: str) -> None:
    with suppress(UnsafeModel):
        check_expression(text)


# The other formats.


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("kind", FORMATS)
def test_a_pickle_posing_as_a_model_is_refused(tmp_path: Path, kind: str, protocol: int) -> None:
    marker = tmp_path / "marker"
    for data in (
        pickle.dumps(Payload(marker), protocol),
        saved(Payload(marker)),
        saved({"weight": Payload(marker)}),
        saved(Payload(marker), _use_new_zipfile_serialization=False),
    ):
        with pytest.raises(ModelError) as caught:
            load(data, kind, architecture=AUTOENCODER)
        assert len(str(caught.value).splitlines()) == 1
        assert not marker.exists()


def test_a_module_saved_as_a_whole_is_reported_as_a_pickle() -> None:
    with pytest.raises(
        UnsafeModel, match=r"pickle that contains more than tensors .*Scorer.*: unpickling"
    ):
        load(saved(Scorer()), "state_dict", architecture=AUTOENCODER)
    with pytest.raises(UnsafeModel, match="the model file is a Python pickle: unpickling it could"):
        load(pickle.dumps({"a": 1}), "state_dict", architecture=AUTOENCODER)


def test_a_pickle_within_torchscript_is_not_run(files: dict[str, bytes], tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    for record in ("constants.pkl", "data.pkl"):
        data = rewritten(files["torchscript"], {record: lambda _: pickled_payload(marker)})
        with pytest.raises(UnsafeModel, match="the model file contains the opcode PROTO"):
            load(data, "torchscript")
        assert not marker.exists()


class Writes(nn.Module):
    """A module that writes a file when it is loaded."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self.path = path

    def forward(self, x: Tensor) -> Tensor:
        return x

    @torch.jit.export
    def __getstate__(self) -> tuple[str, bool]:
        return self.path, self.training

    @torch.jit.export
    def __setstate__(self, state: tuple[str, bool]) -> None:
        self.path = state[0]
        self.training = state[1]
        torch.save(torch.ones(1), state[0])


SPELLINGS = {
    "plain": b"torch.save(",
    "spaced": b"torch . save (",
    "by name": b'getattr(torch, "save")(',
    "in escapes": b'getattr(torch, "s\\x61ve")(',
    "in octal": b'getattr(torch, "s\\141ve")(',
    "in two literals": b'getattr(ops.aten, "sa" "ve")(',
    "as operator": b"ops.aten.save(",
}


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("rename", [str, str.swapcase], ids=["", "in capitals"])
def test_torchscript_that_writes_files_is_refused(
    tmp_path: Path, spelling: str, rename: Callable[[str], str]
) -> None:
    marker = tmp_path / "marker"
    code = "code/__torch__/test_formats.py"
    data = rewritten(
        script(Writes(str(marker))),
        {code: lambda text: text.replace(b"torch.save(", SPELLINGS[spelling])},
        rename=lambda name: rename(name) if name == code else name,
    )
    with pytest.raises(UnsafeModel, match=r"contains the operator '(torch|ops\.aten)\.save'"):
        load(data, "torchscript")
    assert not marker.exists()


@pytest.mark.parametrize("spelling", ["plain", "spaced", "in octal", "in two literals"])
def test_torch_runs_code_in_these_spellings(tmp_path: Path, spelling: str) -> None:
    marker = tmp_path / "marker"
    code = "code/__torch__/test_formats.py"
    data = rewritten(
        script(Writes(str(marker))),
        {code: lambda text: text.replace(b"torch.save(", SPELLINGS[spelling])},
    )
    torch.jit.load(io.BytesIO(data))
    assert marker.exists()


class Words(nn.Module):
    """A module with words that resemble those of attacks, and with other alphabets."""

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[1] > 5:
            raise ValueError("zu viele M\u00e4rkte:\n\tsaved from_files \u20ac")
        return x.sum(1)


def test_torchscript_may_contain_words_that_resemble_attacks() -> None:
    assert load(script(Words()), "torchscript")(torch.ones(2, 2)).tolist() == [2.0, 2.0]


@pytest.mark.parametrize(
    ("architecture", "message"),
    [
        (None, r"expected architecture .module:Class. in model.json .*--architecture.*got None"),
        ("", "expected architecture 'module:Class'"),
        ("examples.transactions.model", "expected architecture 'module:Class'"),
        ("no_such_module:Model", "cannot be imported here: No module named 'no_such_module'"),
        ("examples.transactions.model:Mode", "cannot be imported here: module .* has no attribute"),
        ("..model:Model", "expected architecture 'module:Class'"),
        ("os:system", "os:system is not a torch.nn.Module class"),
        ("pathlib:Path", "pathlib:Path is not a torch.nn.Module class"),
        ("torch.nn:Linear", "torch.nn:Linear cannot be created with architecture_args: .*missing"),
        ("torch:hub.load", "expected architecture 'module:Class'"),
        ("torch.nn:Identity", "do not match torch.nn:Identity: .*Unexpected key"),
    ],
)
@pytest.mark.parametrize("kind", ["state_dict", "safetensors"])
def test_weights_need_their_class(
    files: dict[str, bytes], kind: str, architecture: str | None, message: str
) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        load(files[kind], kind, architecture=architecture)
    assert len(str(caught.value).splitlines()) == 1


def test_architecture_args_are_passed_to_the_class() -> None:
    data = saved(nn.Linear(3, 2).state_dict())
    args = {"in_features": 3, "out_features": 2}
    module = load(data, "state_dict", architecture="torch.nn:Linear", architecture_args=args)
    assert module(torch.ones(4, 3)).shape == (4, 2)
    assert not module.training
    args = {"in_features": 4, "out_features": 2}
    with pytest.raises(ModelError, match=r"do not match torch.nn:Linear: .*size mismatch"):
        load(data, "state_dict", architecture="torch.nn:Linear", architecture_args=args)
    with pytest.raises(ModelError, match=r"cannot be created with architecture_args: .*unexpected"):
        load(data, "state_dict", architecture="torch.nn:Linear", architecture_args={"x": 1})


@pytest.mark.parametrize("value", [[1, 2], 5, torch.ones(3), {"a": {"weight": torch.ones(1)}}])
def test_a_value_that_is_not_a_state_dict_is_refused(value: Any) -> None:
    with pytest.raises(ModelError, match="the weights do not match"):
        load(saved(value), "state_dict", architecture=AUTOENCODER)


@pytest.mark.parametrize("key", ["state_dict", "model_state_dict"])
def test_a_checkpoint_is_refused_with_the_key_of_its_weights(key: str) -> None:
    module = nn.Linear(3, 2)
    steps = torch.optim.Adam(module.parameters())
    module(torch.ones(1, 3)).sum().backward()
    steps.step()
    value = {"epoch": 3, key: module.state_dict(), "optimizer": steps.state_dict()}
    message = rf"checkpoint with epoch, {key}, optimizer: .*torch.save\(checkpoint\['{key}'\]"
    for architecture in (AUTOENCODER, None):
        with pytest.raises(ModelError, match=message):
            load(saved(value), "state_dict", architecture=architecture)


@pytest.mark.parametrize(
    ("wrap", "message"),
    [
        (nn.DataParallel, r"start with 'module.', because DataParallel .*model.module.state_dict"),
        (torch.compile, r"start with '_orig_mod.', because torch.compile .*_orig_mod.state_dict"),
    ],
)
@pytest.mark.parametrize("save", [saved, safetensors])
@pytest.mark.exhaustive
def test_weights_of_a_wrapper_are_refused_with_the_way_to_the_model(
    wrap: Callable[[nn.Module], nn.Module], message: str, save: Any
) -> None:
    kind = "state_dict" if save is saved else "safetensors"
    with pytest.raises(ModelError, match=message):
        load(save(wrap(nn.Linear(3, 2)).state_dict()), kind, architecture="torch.nn:Linear")


@pytest.fixture(scope="module")
def without_checksums() -> Iterator[bytes]:
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    yield saved(nn.Linear(3, 2).state_dict())
    torch.serialization.set_crc32_options(before)


LINEAR: dict[str, Any] = {
    "architecture": "torch.nn:Linear",
    "architecture_args": {"in_features": 3, "out_features": 2},
}


def test_a_file_without_checksums_loads(without_checksums: bytes) -> None:
    with zipfile.ZipFile(io.BytesIO(without_checksums)) as archive:
        assert {entry.CRC for entry in archive.infolist()} == {0}
    assert load(without_checksums, "state_dict", **LINEAR)(torch.ones(4, 3)).shape == (4, 2)
    size = len(without_checksums)
    for cut in range(0, size, size // 40):
        with pytest.raises(ModelError):
            load(without_checksums[:cut], "state_dict", **LINEAR)


@settings(deadline=None, max_examples=examples(40))
@given(data=st.data())
def test_a_damaged_file_without_checksums_loads_or_raises_a_model_error(
    without_checksums: bytes, data: st.DataObject
) -> None:
    content = bytearray(without_checksums)
    for _ in range(data.draw(st.integers(1, 5))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    with suppress(ModelError):
        load(bytes(content), "state_dict", **LINEAR)


@pytest.mark.parametrize("kind", FORMATS)
def test_a_file_cut_short_anywhere_is_refused(files: dict[str, bytes], kind: str) -> None:
    data = files[kind]
    for size in [*range(0, 64, 5), *range(64, len(data), len(data) // 40), len(data) - 1]:
        with pytest.raises(ModelError) as caught:
            load(data[:size], kind, architecture=AUTOENCODER)
        assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("kind", ["torchscript", "pt2", "state_dict"])
def test_one_wrong_bit_in_the_weights_is_noticed(
    files: dict[str, bytes], autoencoder: TransactionAutoencoder, kind: str
) -> None:
    weight = autoencoder.state_dict()["encoder.0.weight"].numpy().tobytes()
    data = bytearray(files[kind])
    data[data.index(weight) + 100] ^= 4
    with pytest.raises(
        ModelError, match=r"the model file is damaged \(wrong checksum of 'archive/data"
    ):
        load(bytes(data), kind, architecture=AUTOENCODER)


@pytest.mark.parametrize("kind", FORMATS)
@settings(deadline=None, max_examples=examples(40))
@given(data=st.data())
def test_a_damaged_file_loads_or_raises_a_model_error(
    files: dict[str, bytes], kind: str, data: st.DataObject
) -> None:
    content = bytearray(files[kind])
    for _ in range(data.draw(st.integers(1, 5))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    with suppress(ModelError):
        load(bytes(content), kind, architecture=AUTOENCODER)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is not a torch.export .* has 0 bytes"),
        (b"model", "is not a torch.export .*starts with b'model'"),
        (b"PK\x03\x04", "truncated or damaged and must be copied again"),
        (b"\x7fELF" + bytes(100), "is not a torch.export"),
        (b"\x08\x08\x12\x07pytorch\x1a\x062.13.0:", "is an ONNX model: convert it .*onnx2torch"),
        (b"\x08\x0a:\xff\x01\n\x10", "is an ONNX model: convert it"),
        (b"\x89HDF\r\n\x1a\n" + bytes(100), "is an HDF5 file, as Keras writes it"),
        (b"GGUF\x03" + bytes(100), "is a GGUF file"),
        (b"PAR1" + bytes(100), "is a Parquet file, which holds rows"),
    ],
)
def test_a_file_that_is_not_a_model_is_refused(data: bytes, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        load(data, "torchscript")


def zipped(entries: Mapping[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def test_a_zip_that_is_not_a_model_is_refused() -> None:
    with pytest.raises(
        ModelError,
        match=r"not a PyTorch model; if it is a TorchServe archive, its name must end in \.mar",
    ):
        load(zipped({"MAR-INF/MANIFEST.json": b"{}"}), "torchscript")


def test_a_model_that_is_a_zip_bomb_is_refused() -> None:
    bomb = zipped({"archive/data.pkl": b"", "archive/data/0": bytes(30 << 20)})
    with pytest.raises(UnsafeModel, match="would expand to"):
        load(bomb, "state_dict")
