"""The step `call`: what the user's function gets, what it must return, and where it comes from."""

import json
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import torch
from command_line import RunCommand
from hypothesis import given
from hypothesis import strategies as st
from own_code import FEATURES, MANIFEST, NETS, ROWS, SHA256, weights, write_own_package
from steps_reference import seen

from common.errors import ContractBroken, ManifestError, ModelError, UnsafeModel
from millrace import column, package
from model_handlers.preparation import Preparation, golden_tensors
from model_handlers.steps.own_function import Call
from model_handlers.steps.step import Cells, Context
from model_handlers.torch_model import TorchModelHandler
from model_handlers.trusted_code import (
    TrustedCode,
    check_trusted,
    record_sources,
    source_digest,
    steps_context,
    warn_of_changes,
)
from pipelines.batch_local import COMMAND

TRUSTED = TrustedCode(("myteam",))


def call(function: Callable[..., Any], *columns: Cells, **members: Any) -> Cells:
    """Return what the step makes of columns."""
    context = Context(load=lambda name, digest: function)
    return Call("m:f", **members).bind(context)(*columns)


@pytest.fixture
def myteam(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of the installed module myteam; its source can be changed before it is used."""
    folder = tmp_path / "site" / "myteam"
    folder.mkdir(parents=True)
    (folder / "__init__.py").touch()
    (folder / "features.py").write_text(FEATURES)
    (folder / "nets.py").write_text(NETS)
    monkeypatch.syspath_prepend(str(folder.parent))
    yield folder
    for name in [name for name in sys.modules if name.partition(".")[0] == "myteam"]:
        sys.modules.pop(name)


VALUES = Cells(pa.array([1.0, 2.0, None, 4.0]))


@pytest.mark.parametrize(
    ("answer", "members", "expected"),
    [
        (np.arange(4), {}, [0.0, 1.0, 2.0, 3.0]),
        ([1, None, 3, 4], {}, [1.0, None, 3.0, 4.0]),
        (pa.chunked_array([[1], [2, 3, 4]]), {"returns": "int64"}, [1, 2, 3, 4]),
        (pa.array(["a"] * 4).dictionary_encode(), {"returns": "string"}, ["a"] * 4),
        (np.ones((4, 2), np.float32), {"width": 2}, [[1.0, 1.0]] * 4),
        (pa.array([[1, 2], None] * 2, pa.list_(pa.int64(), 2)), {"width": 2}, [[1, 2], None] * 2),
        (pa.array([[1, 2]] * 4), {"width": 2, "returns": "int64"}, [[1, 2]] * 4),
    ],
)
def test_an_answer_becomes_the_declared_type(
    answer: Any, members: dict[str, Any], expected: list[Any]
) -> None:
    cells = call(lambda _: answer, VALUES, **members)
    assert cells.values.to_pylist() == expected
    assert cells.values.type == Call("m:f", **members).gives(pa.float64())
    assert not cells.refused


@pytest.mark.parametrize(
    ("answer", "members", "got"),
    [
        (pa.array([1.0]), {}, "expected 4 values of float64, a value for each row, got 1 values"),
        ([1.0] * 5, {}, "got 5 values"),
        ("abcd", {"returns": "string"}, "got a str that cannot become that"),
        (1.0, {}, "got a float that"),
        (None, {}, "got a NoneType that"),
        (["secret"] * 4, {}, "got a list that cannot become that (ArrowInvalid)"),
        (np.array([1.5] * 4), {"returns": "int64"}, "got an array [4] of float64"),
        (np.ones((4, 3)), {"width": 2}, "expected an array [4, 2] of float64, a value for each"),
        (np.full((4, 2), np.nan), {"width": 2, "returns": "int64"}, "array [4, 2] of float64"),
        (pa.array([[1.0]] * 4), {"width": 2}, "got a ListArray that cannot become that"),
    ],
)
def test_another_answer_is_refused_in_one_line(
    answer: Any, members: dict[str, Any], got: str
) -> None:
    with pytest.raises(ContractBroken) as raised:
        call(lambda _: answer, VALUES, **members)
    assert got in str(raised.value)
    assert "secret" not in str(raised.value)


@given(st.lists(st.sampled_from([1.0, 2.0, 3.0, None]), max_size=40), st.data())
def test_only_rows_that_raise_are_refused(values: list[float | None], data: Any) -> None:
    """1 is refused before the call and 2 makes it raise, in whatever batch they are."""
    cells = Cells(pa.array(values, pa.float64()))
    cells = cells.refuse(pc.equal(cells.values, 1.0), "wrong_type", "before").of("a")

    def double(column: pa.Array) -> pa.Array:
        assert len(column)
        if 2.0 in column.to_pylist():
            raise ValueError("2.0 is a secret")
        return pc.multiply(column, 2)

    result = call(double, cells)
    assert result.values.to_pylist() == [6.0 if value == 3.0 else None for value in values]
    found = {row: one.message for one in result.refused for row in one.rows.tolist()}
    assert found == {
        row: "before" if value == 1.0 else "m:f raised ValueError"
        for row, value in enumerate(values)
        if value in (1.0, 2.0)
    }


class _Odd:
    """An answer that raises an exception with a value of the row, whatever is done with it."""

    def _fail(self, *_: Any, **__: Any) -> Any:
        raise RuntimeError("secret")

    __len__ = __iter__ = __array__ = _fail


@pytest.mark.parametrize(
    ("answer", "members"),
    [
        ([2**70] * 4, {}),
        ([2**70] * 4, {"returns": "int64"}),
        (_Odd(), {}),
        (_Odd(), {"width": 2}),
        (torch.ones(4, 2, requires_grad=True), {"width": 2}),
        (pa.array([10**17] * 4, pa.timestamp("s")), {"returns": "datetime"}),
    ],
)
def test_an_odd_answer_is_refused_in_one_line(answer: Any, members: dict[str, Any]) -> None:
    with pytest.raises(ContractBroken, match="that cannot become that") as raised:
        call(lambda _: answer, VALUES, **members)
    assert "secret" not in str(raised.value)


def test_an_answer_of_times_out_of_range_costs_its_row() -> None:
    far = pa.array([0, 4 * 10**17, None, -(10**17)], pa.timestamp("us"))
    cells = call(lambda _: far, VALUES, returns="datetime")
    assert seen(cells)[1::2] == [("out_of_range",)] * 2
    assert cells.values[0].is_valid


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt, GeneratorExit])
def test_whatever_a_function_raises_costs_one_row(kind: type[BaseException]) -> None:
    def leave(column: pa.Array) -> pa.Array:
        if 2.0 in column.to_pylist():
            raise kind(0)
        return column

    # Ctrl-C, which must end a run, raises KeyboardInterrupt in the main thread.
    with ThreadPoolExecutor(1) as others:
        cells = others.submit(call, leave, VALUES).result()
    assert seen(cells) == [1.0, ("function_error",), None, 4.0]
    if kind is KeyboardInterrupt:
        with pytest.raises(KeyboardInterrupt):
            call(leave, VALUES)


def test_the_name_of_an_exception_reveals_nothing() -> None:
    def fail(column: pa.Array) -> None:
        raise type("Secret\n3.0", (LookupError,), {})

    (refused,) = call(fail, VALUES).refused
    assert refused.message == "m:f raised LookupError"


@pytest.mark.slow
def test_what_a_function_prints_is_not_among_the_report(
    myteam: Path, tmp_path: Path, run_command: RunCommand
) -> None:
    source = FEATURES.replace("return pc.divide", "print('hello', limit); return pc.divide")
    (myteam / "features.py").write_text(f"print('imported')\n{source}")
    write_own_package(tmp_path / "model")
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    flags: dict[str, Any] = {"input_files": tmp_path / "rows.jsonl", "model": tmp_path / "model"}
    flags |= {"output_files": tmp_path / "out", "trusted_modules": "myteam"}
    code, out, err = run_command(COMMAND, {**flags, "json_summary": "true"})
    assert code == 0, err
    assert json.loads(out)["rows_in"] == len(ROWS)
    assert "hello" in err
    assert "imported" in err


def test_a_module_that_ends_the_process_is_refused(myteam: Path, tmp_path: Path) -> None:
    (myteam / "features.py").write_text("import sys; sys.exit(0)")
    with pytest.raises(ModelError, match="the module ends the process when it is imported"):
        Preparation(write_own_package(tmp_path / "model"), steps_context({}, TRUSTED))


def test_a_function_that_raises_for_every_row_is_not_called_for_each() -> None:
    calls = []

    def fail(column: pa.Array) -> None:
        calls.append(len(column))
        raise KeyError("secret")

    result = call(fail, Cells(pa.array(np.arange(50_000.0))))
    assert sum(len(one.rows) for one in result.refused) == result.values.null_count == 50_000
    assert len(calls) < 1_000
    assert {one.reason for one in result.refused} == {"function_error"}
    assert not any("secret" in one.message for one in result.refused)


def test_lack_of_memory_is_no_fault_of_a_row() -> None:
    def fail(column: pa.Array) -> None:
        raise MemoryError

    with pytest.raises(MemoryError):
        call(fail, VALUES)


@pytest.mark.parametrize("digest", ["ab", "A" * 64, "sha256:" + "a" * 57])
def test_an_invalid_digest_is_refused(digest: str) -> None:
    with pytest.raises(ManifestError, match="source_sha256: expected 64 lowercase hex digits"):
        Call("m:f", source_sha256=digest)


def test_the_package_runs_with_its_functions(myteam: Path, tmp_path: Path) -> None:
    manifest = write_own_package(tmp_path / "model")
    handler = TorchModelHandler(str(tmp_path / "model"), manifest, trusted_modules=("myteam",))
    preparation = handler.load_model().preparation
    assert preparation is not None
    tensors, refused = preparation.tensors(ROWS)
    assert tensors[0][[0, 2]].tolist() == [[0.125, 12.0, 0.5], [0.5625, 2.0, 0.25]]
    first = {row: one.reason for one in reversed(refused) for row in one.rows.tolist()}
    assert first == {1: "function_error", 3: "wrong_type"}


def test_functions_come_only_from_trusted_modules(myteam: Path, tmp_path: Path) -> None:
    manifest = write_own_package(tmp_path / "model")
    manifest = replace(manifest, format="pt2", architecture=None, architecture_args={})
    with pytest.raises(
        UnsafeModel, match=r"its function myteam\.features:ratio imports the module"
    ):
        check_trusted(manifest, ("other",))
    with pytest.raises(UnsafeModel, match="which is not trusted"):
        Preparation(manifest, steps_context({}, TrustedCode(("other",))))
    assert "myteam" not in sys.modules


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("ratio = 5", "expected a function, got int"),
        ("def ratios(a, b): return a", "has no attribute 'ratio'"),
        ("import no_such_module", "No module named 'no_such_module': pass its wheel in"),
        ("1 / 0", "cannot be imported here: division by zero"),
    ],
)
def test_a_function_that_cannot_be_imported_is_reported(
    myteam: Path, tmp_path: Path, source: str, expected: str
) -> None:
    manifest = write_own_package(tmp_path / "model")
    (myteam / "features.py").write_text(source)
    with pytest.raises(ModelError) as raised:
        Preparation(manifest, steps_context({}, TRUSTED))
    assert expected in str(raised.value)
    assert str(raised.value).startswith("function myteam.features:ratio")


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("parts", "return np.stack([values - values.mean(), values], axis=1)"),
        ("decide", 'return pa.array(["stop"] * len(score) if len(score) > 1 else ["go"])'),
    ],
)
def test_a_function_that_looks_at_other_rows_is_found(
    myteam: Path, tmp_path: Path, name: str, source: str
) -> None:
    manifest = write_own_package(tmp_path / "model")
    text = FEATURES
    if name == "parts":
        text = text.replace("return np.stack([np.floor(values), values % 1], axis=1)", source)
    else:
        text = text.replace('return pc.if_else(pc.greater(score, 0), "stop", "go")', source)
    assert text != FEATURES
    (myteam / "features.py").write_text(text)
    if name == "parts":
        preparation = Preparation(manifest, steps_context({}, TRUSTED))
        assert manifest.golden is not None
        with pytest.raises(ContractBroken, match="input x of known-good row 0 has other values"):
            golden_tensors(manifest, manifest.golden, preparation)
    else:
        handler = TorchModelHandler(str(tmp_path / "model"), manifest, trusted_modules=("myteam",))
        with pytest.raises(ContractBroken, match="does not reproduce the field decision"):
            handler.load_model()


def test_a_packaged_model_has_the_digest_of_its_functions(myteam: Path, tmp_path: Path) -> None:
    torch.save(weights(), tmp_path / "model.pt")
    amounts = {"amount": [1.0, 2.5, 40.25], "limit": [10.0, 20.0, 30.0]}
    manifest = package(
        tmp_path / "model.pt",
        tmp_path / "package",
        sample=pa.table(amounts),
        inputs={
            "x": [
                column("amount").call("myteam.features:ratio", ["limit"]),
                column("amount").call("myteam.features:parts", width=2),
            ]
        },
        architecture="myteam.nets:Net",
        trusted_modules=["myteam"],
    )
    names = ("ratio", "parts")
    assert manifest.sources == {f"myteam.features:{name}": SHA256 for name in names}


def test_packaging_records_the_digest_of_the_source(myteam: Path, tmp_path: Path) -> None:
    manifest = write_own_package(tmp_path / "model")
    recorded = record_sources(manifest, TRUSTED)
    names = ("ratio", "parts", "decide")
    assert recorded.sources == {f"myteam.features:{name}": SHA256 for name in names}
    assert manifest.sources == {"myteam.features:ratio": SHA256}
    (myteam / "features.py").unlink()
    (myteam / "features").mkdir()
    # A folder without __init__.py has no source.
    assert source_digest("myteam.features:ratio", TRUSTED) is None
    with pytest.raises(ModelError, match="No module named"):
        source_digest("myteam.gone:ratio", TRUSTED)
    with pytest.raises(UnsafeModel):
        source_digest("json:loads", TRUSTED)


def test_a_change_is_reported_once_and_not_again_by_workers(
    myteam: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    manifest = write_own_package(tmp_path / "model")
    lines: list[str] = []
    warn_of_changes(manifest, TRUSTED, lines.append)
    assert not lines
    (myteam / "features.py").write_text(f"{FEATURES}# {tmp_path}")
    for _ in range(2):
        warn_of_changes(manifest, TRUSTED, lines.append)
        steps_context({}, TrustedCode(("myteam",))).load("myteam.features:ratio", SHA256)
    (line,) = lines
    assert line.startswith("function myteam.features:ratio: the source of its module has sha256")
    assert not caplog.records
    # On a worker with yet another source.
    (myteam / "features.py").write_text(f"{FEATURES}## {tmp_path}")
    for _ in range(2):
        steps_context({}, TRUSTED).load("myteam.features:ratio", SHA256)
    (record,) = caplog.records
    assert "sha256" in record.getMessage()


def test_a_manifest_keeps_the_members_of_the_step(tmp_path: Path) -> None:
    from model_handlers.manifests.model_json import parse_manifest, write_manifest

    manifest = write_own_package(tmp_path / "model")
    assert parse_manifest(write_manifest(manifest)) == manifest
    assert MANIFEST["inputs"][0]["from"][0][1]["source_sha256"] in write_manifest(manifest)
