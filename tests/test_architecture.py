"""Code that a package names is imported only if the user named it, and never from the package."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from common.errors import ManifestError, ModelError, UnsafeModel, UsageError
from model_handlers.formats.load import load_module
from model_handlers.manifests.manifest import InputSpec, Manifest, OutputSpec
from model_handlers.read_package import ModelPackage
from model_handlers.torch_model import TorchModelHandler
from model_handlers.trusted_code import TrustedCode, check_trusted
from model_handlers.write_package import write_package
from pipelines.launch.request import parameters_of
from pipelines.options import ModelOptions
from pipelines.options.flag import parse_flags as read_flags
from resources.config import Config, read_config
from resources.package import open_package
from serving.settings import parse_settings

ROOT = Path(__file__).parents[1]
PIPELINES = ("batch_local", "batch_vertex", "stream_local", "stream_vertex", "replay")
# The module creates a file as soon as it runs.
SOURCE = """
import pathlib, torch
pathlib.Path({mark!r}).touch()
class Net(torch.nn.Linear):
    def __init__(self):
        super().__init__(2, 1)
    def forward(self, x):
        return super().forward(x)[:, 0] + {value}
"""


def weights() -> bytes:
    buffer = io.BytesIO()
    torch.manual_seed(1)
    torch.save(nn.Linear(2, 1).state_dict(), buffer)
    return buffer.getvalue()


def manifest(architecture: str) -> Manifest:
    return Manifest(
        name="m",
        version="1",
        format="state_dict",
        file="model.pt",
        sha256=ModelPackage("model.pt", weights(), None).sha256,
        inputs=(InputSpec("x", ("a", "b"), shape=(2,)),),
        outputs=(OutputSpec("score"),),
        score_output="score",
        architecture=architecture,
    )


def write_module(path: Path, value: int = 0) -> Path:
    """Write a module, and return the path of the file that it creates when it runs."""
    path.parent.mkdir(parents=True, exist_ok=True)
    mark = path.with_suffix(".ran")
    path.write_text(SOURCE.format(mark=str(mark), value=value))
    return mark


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The working directory, which is first in the path of modules, as with `python -m`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", ["", *sys.path])
    loaded = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - loaded:
        sys.modules.pop(name)


def build(folder: Path, architecture: str, *trusted: str) -> Any:
    package = folder / "models" / "v1"
    write_package(package, weights(), manifest(architecture))
    handler = TorchModelHandler(str(package), manifest(architecture), trusted_modules=trusted)
    return handler.load_model()


Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def run(folder: Path) -> Run:
    def run(*argv: str) -> subprocess.CompletedProcess[str]:
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-m", *argv]
        return subprocess.run(
            command, check=False, capture_output=True, text=True, env=environment, cwd=folder
        )

    return run


FLAGS = {
    "batch_local": ["--input_files", "rows.csv", "--output_files", "out"],
    "batch_vertex": ["--input_files", "rows.csv", "--output_files", "out"],
    "stream_local": ["--input_subscription", "projects/p/subscriptions/s", "--output_files", "out"],
    "stream_vertex": ["--input_subscription", "projects/p/subscriptions/s"],
    "replay": ["--input_files", "letters.jsonl", "--output_files", "out"],
}
LETTER = {
    **{"failed_at": "2026-01-01T00:00:00Z", "run_id": "r", "pipeline": "stream_local"},
    **{"stage": "validate", "reason": "null", "row_id": "1", "payload": "{}"},
    **{"attributes": "{}", "attempts": 1},
}
FLAGS["stream_local"] += ["--dead_letter_files", "out"]
FLAGS["stream_vertex"] += ["--output_files", "out", "--dead_letter_files", "out"]


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_a_run_refuses_code_that_only_the_package_names(
    run: Run, folder: Path, pipeline: str
) -> None:
    mark = write_module(folder / "models" / "v1" / "evil.py")
    write_package(folder / "models" / "v1", weights(), manifest("models.v1.evil:Net"))
    (folder / "rows.csv").write_text("a,b\n1,2\n")
    (folder / "letters.jsonl").write_text(json.dumps(LETTER) + "\n")
    flags = [*FLAGS[pipeline], "--model", "models/v1", "--project", "p"]
    flags += ["--endpoint_url", "http://localhost:1"] * pipeline.endswith("vertex")
    done = run(f"pipelines.{pipeline}", *flags)
    assert done.returncode == 1, done.stderr
    assert "--trusted_modules models" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not mark.exists()


def test_a_run_imports_a_module_that_the_user_named(run: Run, folder: Path) -> None:
    mark = write_module(folder / "nets.py", value=5)
    write_package(folder / "model", weights(), manifest("nets:Net"))
    (folder / "rows.csv").write_text("a,b\n1,2\n")
    flags = [*FLAGS["batch_local"], "--model", "model", "--run_id", "r", "--output_format", "jsonl"]
    done = run("pipelines.batch_local", *flags, "--trusted_modules", "other,nets")
    assert done.returncode == 0, done.stderr
    assert mark.exists()
    (row,) = [
        json.loads(line)
        for file in folder.glob("out/r/scores/*.jsonl")
        for line in file.read_text().splitlines()
    ]
    torch.manual_seed(1)
    assert row["score"] == pytest.approx(nn.Linear(2, 1)(torch.tensor([1.0, 2.0])).item() + 5)


def test_a_server_refuses_code_that_only_the_package_names(run: Run, folder: Path) -> None:
    mark = write_module(folder / "models" / "v1" / "evil.py")
    write_package(folder / "models" / "v1", weights(), manifest("models.v1.evil:Net"))
    done = run("serving", "--model_path", "models/v1", "--port", "0")
    assert done.returncode == 1, done.stderr
    assert "add --trusted_modules models" in done.stderr
    assert not mark.exists()


def test_nothing_is_imported_before_the_decision(folder: Path) -> None:
    mark = write_module(folder / "nets.py")
    with pytest.raises(UnsafeModel, match=r"add --trusted_modules torch,nets$"):
        build(folder, "nets:Net", "torch")
    with pytest.raises(UnsafeModel, match=r"add --trusted_modules nets$"):
        load_module(weights(), manifest("nets:Net"))
    assert not mark.exists()
    assert build(folder, "nets:Net", "nets") is not None
    assert mark.exists()


@pytest.mark.parametrize("name", ["models.v1.evil", "evil"])
def test_code_never_comes_from_the_packages_folder(
    folder: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    package = folder / "models" / "v1"
    mark = write_module(package / "evil.py")
    if name == "evil":
        monkeypatch.chdir(package)
    with pytest.raises(UnsafeModel, match=r"evil is inside the folder of the model package"):
        build(folder, f"{name}:Net", name.partition(".")[0])
    assert not mark.exists()


def test_code_never_comes_from_a_link_or_a_parent_in_the_package(folder: Path) -> None:
    mark = write_module(folder / "models" / "v1" / "evil.py")
    (folder / "linked.py").symlink_to("models/v1/evil.py")
    with pytest.raises(
        UnsafeModel, match="module linked is inside the folder of the model package"
    ):
        build(folder, "linked:Net", "linked")
    parent = write_module(folder / "models" / "v1" / "__init__.py")
    with pytest.raises(UnsafeModel, match=r"module models\.v1 is inside"):
        build(folder, "models.v1.evil:Net", "models")
    assert not mark.exists()
    assert not parent.exists()


def test_an_archive_is_a_package_like_a_folder(folder: Path) -> None:
    code = TrustedCode.of_package(("evil",), str(folder / "model.mar"))
    mark = write_module(folder / "evil.py")
    with pytest.raises(UnsafeModel, match="inside the folder of the model package"):
        load_module(weights(), manifest("evil:Net"), code=code)
    assert not mark.exists()
    assert TrustedCode.of_package(("evil",), "gs://bucket/model").package is None


@pytest.mark.parametrize("shadow", ["nets.py", "nets/__init__.py", "nets/v1.py"])
def test_the_working_directory_does_not_hide_an_installed_module(
    folder: Path, monkeypatch: pytest.MonkeyPatch, shadow: str
) -> None:
    site = folder / "site"
    installed = write_module(site / "nets" / "v1.py", value=7)
    (site / "nets" / "__init__.py").touch()
    mark = write_module(folder / shadow)
    monkeypatch.setattr(sys, "path", [*sys.path, str(site)])
    before = list(sys.path)
    model = build(folder, "nets.v1:Net", "nets")
    assert installed.exists()
    assert not mark.exists()
    assert sys.path == before
    assert model is not None


def test_a_namespace_is_not_continued_in_the_working_directory(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_module(folder / "site" / "space" / "sound.py")
    mark = write_module(folder / "space" / "evil.py")
    monkeypatch.setattr(sys, "path", [*sys.path, str(folder / "site")])
    with pytest.raises(UnsafeModel, match=r"space\.evil in the working directory hides"):
        build(folder, "space.evil:Net", "space")
    assert not mark.exists()
    assert build(folder, "space.sound:Net", "space") is not None


def test_a_module_that_was_hidden_already_is_not_used(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_module(folder / "site" / "nets.py")
    write_module(folder / "nets.py")
    monkeypatch.setattr(sys, "path", [*sys.path, str(folder / "site")])
    __import__("nets")
    with pytest.raises(UnsafeModel, match="nets in the working directory hides the installed one"):
        build(folder, "nets:Net", "nets")


@pytest.mark.parametrize(
    "architecture",
    ["os:system", "subprocess:Popen", "torch:load", "builtins:eval", "torch.hub:load"],
)
def test_only_a_class_of_a_module_is_called(folder: Path, architecture: str) -> None:
    with pytest.raises(ManifestError, match=r"is not a torch\.nn\.Module class"):
        build(folder, architecture, architecture.partition(":")[0].partition(".")[0])


@pytest.mark.parametrize(
    "architecture", ["torch:nn.Linear", "torch:hub.load", "a b:C", "a/b:C", ".a:C", "a:", "a.b:C()"]
)
def test_an_architecture_is_a_module_and_a_class(folder: Path, architecture: str) -> None:
    with pytest.raises(ManifestError, match="expected architecture 'module:Class'"):
        build(folder, architecture, "torch", "a")


def test_a_package_whose_file_holds_its_code_needs_no_trust() -> None:
    check_trusted(replace(manifest("nets:Net"), format="torchscript"), ())


@pytest.mark.parametrize("name", ["a.b", "a b", "", "./a"])
def test_trusted_modules_are_top_level_names(name: str) -> None:
    with pytest.raises(UsageError, match="--trusted_modules: expected top-level module names"):
        TrustedCode((name,))
    with pytest.raises(UsageError, match="--trusted_modules"):
        Config(project="some-project", trusted_modules=(name,))


def test_packaging_refuses_the_same_code_as_runs(run: Run, folder: Path) -> None:
    mark = write_module(folder / "nets.py")
    (folder / "w.pt").write_bytes(weights())
    flags = ["w.pt", "--feature_columns", "a,b", "--output", "o", "--architecture", "nets:Net"]
    done = run("model_handlers.package", *flags)
    assert (done.returncode, mark.exists()) == (1, False)
    assert "--trusted_modules nets" in done.stderr
    # There is no package yet, so the module may be next to the weights.
    assert run("model_handlers.package", *flags, "--trusted_modules", "nets").returncode == 0


def test_resources_upload_only_what_is_trusted(folder: Path) -> None:
    write_package(folder / "model", weights(), manifest("nets:Net"))
    with pytest.raises(ModelError, match=r"add --trusted_modules nets$"):
        open_package(str(folder / "model"))
    assert open_package(str(folder / "model"), ("nets",)).name == "m"
    config = folder / "millrace.toml"
    config.write_text('project = "some-project"\ntrusted_modules = ["nets"]\n')
    assert read_config(config, {}).trusted_modules == ("nets",)
    assert read_config(config, {"trusted_modules": ("other",)}).trusted_modules == ("other",)


def test_a_server_takes_trusted_modules_from_its_flag_or_its_environment() -> None:
    argv = ["--model_path", "m"]
    assert parse_settings(argv, {}).trusted_modules == ()
    assert parse_settings([*argv, "--trusted_modules", "a,b"], {}).trusted_modules == ("a", "b")
    assert parse_settings(argv, {"MILLRACE_TRUSTED_MODULES": "a,b"}).trusted_modules == ("a", "b")


def test_a_template_receives_the_names_in_one_parameter() -> None:
    flags = ["--trusted_modules", "nets,layers"]
    parsed = read_flags("batch_local", "about", (ModelOptions,), flags)
    assert parameters_of(parsed.groups) == {"trusted_modules": "nets,layers"}
