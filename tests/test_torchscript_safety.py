"""Tests that a TorchScript file cannot reach other files, processes or memory."""

import io
import itertools
import re
import struct
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from property_tests import thinned
from test_formats import load, rewritten, script, zipped
from torch import Tensor, nn

from common.errors import ModelError, UnsafeModel
from model_handlers.formats.operators import OPERATORS
from model_handlers.formats.torchscript_code import check_code, check_type

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]
CODE = "code/__torch__/test_torchscript_safety.py"
FUNCTION = b"def f(x: Tensor) -> Tensor:\n  return "


class Stateful(nn.Module):
    """A module with code that runs while it is read."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self.path = path

    def forward(self, x: Tensor) -> Tensor:
        return torch.neg(x).sum(1)

    @torch.jit.export
    def __getstate__(self) -> tuple[str, bool]:
        return self.path, self.training

    @torch.jit.export
    def __setstate__(self, state: tuple[str, bool]) -> None:
        self.path = state[0]
        self.training = state[1]


def with_statement(path: Path, statement: str) -> bytes:
    """Return a model with a statement added to the end of its __setstate__."""

    def change(code: bytes) -> bytes:
        lines = code.decode().split("\n")
        at = next(i for i, line in enumerate(lines) if "self.training = (" in line)
        indent = lines[at][: len(lines[at]) - len(lines[at].lstrip())]
        lines[at + 1 : at + 1] = [indent + line for line in statement.split("\n")]
        return "\n".join(lines).encode()

    return rewritten(script(Stateful(str(path))), {CODE: change})


MAPPED = """m = getattr(ops.aten, "from" "_file")(self.path, True, 8, dtype=0)
if bool(torch.gt(torch.sum(torch.fill_(m, 65)), 0)):
  pass
else:
  ops.prim.RaiseException("not written")"""


def test_a_file_is_not_overwritten_through_a_shared_mapping(tmp_path: Path) -> None:
    victim = tmp_path / "victim.py"
    victim.write_text("x = 1234")
    data = with_statement(victim, MAPPED)
    with pytest.raises(
        UnsafeModel, match=r"contains the operator 'ops\.aten\.from_file'"
    ) as caught:
        load(data, "torchscript")
    assert victim.read_text() == "x = 1234"
    assert len(str(caught.value).splitlines()) == 1
    # The attack is real: torch itself runs it.
    torch.jit.load(io.BytesIO(data))
    assert victim.read_text() == "AAAAAAAA"


def test_a_file_is_not_read_while_the_model_runs(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(struct.pack("<2f", 7.0, 8.0))
    reading = f'torch.from_file("{secret}", False, 2, dtype=6)'.encode()
    data = rewritten(
        script(Stateful("")), {CODE: lambda code: code.replace(b"torch.neg(x)", reading)}
    )
    with pytest.raises(UnsafeModel, match=r"the operator 'torch\.from_file'"):
        load(data, "torchscript")


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("torch.save(x, 'p')", "text that torch.jit.save does not write"),
        ('torch.save(x, "p")', "operator 'torch.save'"),
        ('getattr(torch, "save")(x, "p")', "operator 'torch.save'"),
        ('getattr(ops.aten, "sa" "ve")(x, "p")', "operator 'ops.aten.save'"),
        ('getattr(getattr(ops, "aten"), "save")(x, "p")', "operator 'ops.aten.save'"),
        ('getattr(getattr(ops, "at" "en"), "save")(x, "p")', "operator 'ops.aten.save'"),
        ('getattr(ops, "aten").save(x, "p")', "operator 'ops.aten.save'"),
        ('getattr(torch, "\\141bs")(x)', "'abs', spelled with escapes"),
        ('getattr(torch, x)(x, "p")', "a call of a value of the kind Call"),
        ('getattr(torch, "abs", torch.save(x, "p"))', "getattr with something other"),
        ('getattr(getattr(x, "a", torch.save(x, "p")), "b")', "getattr with something other"),
        ('x.save("p")', "operator or method 'save'"),
        ('(x + x).save("p")', "operator or method 'save'"),
        ('getattr(x, "save")("p")', "operator or method 'save'"),
        ('torch.autograd.save(x, "p")', "operator 'torch.autograd.save'"),
        ("torch.save", "operator 'torch.save'"),
        ("torch", "operator 'torch'"),
        ("ops.aten", "operator 'ops.aten'"),
        ('fork(torch.save, x, "p")', "a fork of something other"),
        ('fork(x.save, "p")', "a fork of something other"),
        ('awaitable(x.save, "p")', "the function 'awaitable'"),
        ("ops.image.read_file(x)", "operator 'ops.image.read_file'"),
        ("ops.prim.PythonOp(x)", "operator 'ops.prim.PythonOp'"),
        ("ops.prim.rpc_sync(x)", "operator 'ops.prim.rpc_sync'"),
        ("ops.c10d.send(x)", "operator 'ops.c10d.send'"),
        ("torch._unsafe_view(x, [1])", "operator 'torch._unsafe_view'"),
        ("torch.set_data(x, x)", "operator 'torch.set_data'"),
        ("x.resize_([10])", "operator or method 'resize_'"),
        ("print(x)", "the function 'print'"),
        ("open(x)", "the function 'open'"),
        ("x[0](x)", "a call of a value of the kind Subscript"),
        ("(x if x else x)(x)", "a call of a value of the kind IfExp"),
        ("[torch.save(y, x) for y in x]", "ListComp"),
        ("(lambda: x)()", "a call of a value of the kind Lambda"),
        ("(y := x)", "NamedExpr"),
        ("torch.abs(**x)", r"\*\* in a call"),
        ("__torch__.torch.classes.c10d.TCPStore(x)", "class '__torch__.torch.classes.c10d.TCPS"),
        ('getattr(__torch__.torch, "classes").dist.S(x)', "class '__torch__.torch.classes.dist.S"),
        ("torch.abs(x) # torch.save", "text that torch.jit.save does not write"),
        ("torch.abs(x, \\\n)", "text that torch.jit.save does not write"),
        ('torch.abs("""x""")', "text that torch.jit.save does not write"),
        ('torch.abs(r"x")', "text that torch.jit.save does not write"),
        ("torch.abs(x)\r", "text that torch.jit.save does not write"),
        ("torch.abs(x)\t", "text that torch.jit.save does not write"),
        ("torch.abs(0x1)", "text that torch.jit.save does not write"),
        ("torch.abs(x); x", "text that torch.jit.save does not write"),
        ("torch.\uff53ave(x)", "not plain TorchScript"),
        ("x" + "[0]" * 400, "nested more than 150 deep"),
        ("(" * 300 + "x" + ")" * 300, "not plain TorchScript"),
        ("-" * 100_000 + "x", "not plain TorchScript"),
        ("(", "not plain TorchScript"),
    ],
)
def test_code_that_reaches_beyond_tensors_is_refused_by_name(text: str, named: str) -> None:
    with pytest.raises(UnsafeModel, match=f"the TorchScript file contains .*{named}") as caught:
        check_code({"code/__torch__.py": FUNCTION + text.encode() + b"\n"})
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ('f = torch.save\n  f(x, "p")', "operator 'torch.save'"),
        ('f = x.save\n  f("p")', "the function 'f'"),
        ('int = x.save\n  int("p")', "a variable named 'int'"),
        ('getattr = x.save\n  getattr("p", "q")', "a variable named 'getattr'"),
        ("torch = x", "operator 'torch'"),
        ("torch : Tensor = x", "a variable named 'torch'"),
        ('for fork in x:\n    fork("p")', "the function 'fork'"),
        ("f = __torch__.a.b\n  f = x.save\n  f(x)", "the function 'f'"),
        ("def f():\n    return x\n  f = x.save\n  y = fork(f)", "a fork of something other"),
        ('def f():\n    return torch.save(x, "p")\n  y = fork(f)', "operator 'torch.save'"),
        ("import os", "Import in its code"),
        ("raise x.save", "Raise in its code"),
        ("with x.save(y):\n    pass", "method 'save'"),
        ("del torch.save", "operator 'torch.save'"),
        ("x.a = torch.save", "operator 'torch.save'"),
        ("assert x.save(y)", "method 'save'"),
        ("return {x: [(x.save(y), )]}", "method 'save'"),
        ("x[x.save(y):] = 1", "method 'save'"),
    ],
)
def test_statements_that_hide_an_operator_are_refused(body: str, named: str) -> None:
    code = f"def g(x: Tensor, y: str) -> Tensor:\n  {body}\n".encode()
    with pytest.raises(UnsafeModel, match=named):
        check_code({"a.py": code})


@pytest.mark.parametrize(
    "code",
    [
        b"class A(Module):\n  def save(self, p: str) -> None:\n    pass\n"
        b"  def forward(self, x: Tensor) -> None:\n    (x).save('p', )\n".replace(b"'", b'"'),
        b"class A(Interface):\n  def f(self, x: Tensor=torch.save()) -> Tensor:\n    pass\n",
        b"class A(NamedTuple):\n  x : Tensor = torch.save()\n",
        b"class A(os.Thing):\n  pass\n",
        b"@torch.save\ndef f():\n  pass\n",
    ],
)
def test_a_class_cannot_hide_an_operator(code: bytes) -> None:
    with pytest.raises(
        UnsafeModel, match=r"'(torch\.)?save'|a base or decorator|decorated function"
    ):
        check_code({"a.py": code})


def test_every_operator_that_is_not_listed_is_refused() -> None:
    names = {schema.name for schema in torch._C._jit_get_all_schemas()}
    assert len(names) > 2000
    for space, name in (full.split("::") for full in thinned(sorted(names))):
        forms = [f"ops.{space}.{name}(x)", f'getattr(ops.{space}, "{name}")']
        if space == "aten":
            forms += [f"torch.{name}(x)", f"(x).{name}()"]
        for form in forms:
            if name in OPERATORS.get(space, ()):
                check_code({"a.py": FUNCTION + form.encode() + b"\n"})
            else:
                with pytest.raises(UnsafeModel, match=rf"contains the operator.*\b{name}'"):
                    check_code({"a.py": FUNCTION + form.encode() + b"\n"})


def test_the_list_has_only_existing_operators_and_no_unsafe_ones() -> None:
    names = {schema.name for schema in torch._C._jit_get_all_schemas()}
    # torch defines these two in TorchScript itself.
    own = {"aten::T", "aten::H"}
    listed = {f"{space}::{name}" for space, found in OPERATORS.items() for name in found}
    assert listed - names <= own | {"aten::ndim", "aten::shape"}
    for word in ("save", "from_file", "_unsafe", "set_", "set_data", "resize_", "load", "backward"):
        assert not [name for name in listed if word == name.split("::")[1] or "_unsafe" in name]


@pytest.mark.parametrize(
    "call",
    [
        "torch.native_batch_norm(x, w, w, w, w, True, 0.1, 0.001)",
        "torch._native_batch_norm_legit(x, w, w, w, w, True, 0.1, 0.001)",
        "torch._weight_norm_interface(x, w, 0)",
    ],
)
def test_an_operator_that_writes_or_reads_beyond_its_tensors_is_refused(call: str) -> None:
    # Each crashes the process if w has one element and x has millions of channels.
    with pytest.raises(UnsafeModel, match=r"contains the operator 'torch\."):
        check_code({"a.py": FUNCTION + call.encode() + b"\n"})


@pytest.mark.parametrize("loop", ["while True:\n  pass", "for i in range(9):\n  pass"])
def test_a_loop_that_runs_while_the_file_is_read_is_refused(tmp_path: Path, loop: str) -> None:
    with pytest.raises(UnsafeModel, match="a loop that runs while the file is read"):
        load(with_statement(tmp_path, loop), "torchscript")


def chained(functions: int, line: str) -> bytes:
    """Return code in which functions, starting with __setstate__, call the next one in a line."""
    names = ["__setstate__", *(f"f{i}" for i in range(functions)), "last"]
    code = [
        f"  def {name}(self, x: Tensor) -> Tensor:\n    return {line.replace('NEXT', after)}\n"
        for name, after in itertools.pairwise(names)
    ]
    end = "  def last(self, x: Tensor) -> Tensor:\n    return x\n"
    return ("class A(Module):\n" + "".join(code) + end).encode()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("functions", "line"),
    [
        (30, "torch.add((self).NEXT(x, ), (self).NEXT(x, ))"),
        (30, 'torch.add(getattr(self, "NEXT")(x, ), (self).NEXT(x, ))'),
        (5_000, "(self).NEXT(x, )"),
        (1, "(self).f0(x, )"),
    ],
)
@pytest.mark.exhaustive
def test_calls_that_never_end_while_the_file_is_read_are_refused(functions: int, line: str) -> None:
    with pytest.raises(UnsafeModel, match=r"more than 1,000 calls that run while the file"):
        check_code({"a.py": chained(functions, line)})
    check_code({"a.py": chained(3, line.replace("f0", "NEXT"))})
    # Code that runs when rows are scored has no such limit.
    check_code({"a.py": chained(functions, line).replace(b"__setstate__", b"forward")})


@given(st.text("torch.save(x\"), \n\\#'r_[]=:", max_size=40) | st.text(max_size=40))
def test_any_text_is_accepted_or_refused(text: str) -> None:
    with suppress(UnsafeModel):
        check_code({"a.py": FUNCTION + text.encode() + b"\n"})
        assert not re.search(r"\bsave *\(", re.sub(r'"[^"]*"', "", text))


@pytest.mark.parametrize(
    "text", ["List[Dict[str, Tensor]]", "Tuple[int, __torch__.a.B]", "Dict[str, List[Any]]"]
)
def test_plain_types_are_accepted(text: str) -> None:
    check_type(text, "data.pkl")


@pytest.mark.parametrize(
    "text",
    ["List[" * 300 + "int" + "]" * 300, "f(x)", "", "a; b", "__torch__.torch.classes.c10d.Store"],
)
def test_other_types_are_refused(text: str) -> None:
    with pytest.raises(UnsafeModel):
        check_type(text, "data.pkl")


# Records.


def test_records_that_torch_jit_does_not_write_are_refused() -> None:
    data = script(nn.Linear(2, 2))
    for record in ("model.json", "bytecode.pkl", "code/../x", "data/x", "CONSTANTS.pkl", "x"):
        with pytest.raises(
            ModelError, match=r"does not write|points outside|names torch and zip read differently"
        ):
            load(rewritten(data, {}, added={record: b"{}"}), "torchscript")
    load(rewritten(data, {}, added={"extra/notes.py.txt": b"import os"}), "torchscript")


def twice(data: bytes) -> bytes:
    """Return the archive with another record under the name of its first one."""
    buffer = io.BytesIO(data)
    with zipfile.ZipFile(buffer, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr(archive.namelist()[0], b"other")
    return buffer.getvalue()


def with_comment(data: bytes) -> bytes:
    buffer = io.BytesIO(data)
    with zipfile.ZipFile(buffer, "a") as archive:
        archive.comment = b"PK\x05\x06" + bytes(18)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "change",
    [
        twice,
        with_comment,
        lambda data: zipped({"archive/version": b"3"}) + data,
        lambda data: data + zipped({"archive/version": b"3"}),
        lambda data: data + b"\n",
    ],
)
@pytest.mark.parametrize("kind", ["torchscript", "state_dict"])
def test_an_archive_that_can_be_read_in_two_ways_is_refused(
    change: Callable[[bytes], bytes], kind: str
) -> None:
    buffer = io.BytesIO()
    torch.save(nn.Linear(2, 2).state_dict(), buffer)
    data = script(nn.Linear(2, 2)) if kind == "torchscript" else buffer.getvalue()
    with pytest.raises(
        ModelError, match=r"have the same name|with a comment, or with extra bytes|damaged"
    ):
        load(change(data), kind, architecture="torch.nn:Linear")
