"""Tests that a package is loaded and checked in a process of its own before it is used."""

import hashlib
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from tiny_model import write_tiny

from common.errors import ContractBroken, ManifestError, ModelError
from model_handlers.manifests.manifest import GoldenRows
from model_handlers.manifests.model_json import write_manifest
from model_handlers.trials.try_package import try_package

Make = Callable[..., Any]


def test_a_package_that_works_is_accepted(tmp_path: Path, make_manifest: Make) -> None:
    write_tiny(tmp_path, make_manifest)
    try_package(str(tmp_path))
    (tmp_path / "model.json").unlink()
    try_package(str(tmp_path / "model.pt"))


def test_a_package_whose_known_good_rows_fail_is_refused(
    tmp_path: Path, make_manifest: Make
) -> None:
    manifest = write_tiny(tmp_path, make_manifest)
    golden = GoldenRows({"x": [[1.0, 2.0, 3.0]]}, {"total": [7.0]})
    (tmp_path / "model.json").write_text(write_manifest(replace(manifest, golden=golden)))
    with pytest.raises(ContractBroken, match=r"output total is 6.0, expected 7.0"):
        try_package(str(tmp_path))


def test_a_file_that_is_not_a_usable_model_is_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"a": [1.0]}), tmp_path / "rows.parquet")
    with pytest.raises(ModelError, match="is a Parquet file, which holds rows"):
        try_package(str(tmp_path / "rows.parquet"))
    torch.save({"weight": torch.ones(3)}, tmp_path / "weights.pt")
    with pytest.raises(ManifestError, match="contains only weights"):
        try_package(str(tmp_path / "weights.pt"))


def test_a_package_whose_model_kills_its_process_is_refused(
    tmp_path: Path, make_manifest: Make
) -> None:
    (tmp_path / "fatal.py").write_text("import os\nos._exit(9)\n")
    package = tmp_path / "package"
    package.mkdir()
    torch.save({"weight": torch.ones(3)}, package / "w.pt")
    manifest = make_manifest(
        format="state_dict",
        file="w.pt",
        architecture="fatal:Net",
        sha256=hashlib.sha256((package / "w.pt").read_bytes()).hexdigest(),
    )
    (package / "model.json").write_text(write_manifest(manifest))
    code = (
        "import sys, model_handlers.trials.try_package as t; t.try_package(sys.argv[1], ['fatal'])"
    )
    done = run_code(code, str(package), path=[*sys.path, str(tmp_path)])
    assert "ModelError: model " in done.stderr
    assert "the process that loaded it died" in done.stderr


def test_trying_a_package_imports_neither_torch_nor_beam_here() -> None:
    code = "import sys, model_handlers.trials.try_package; print(*sys.modules)"
    loaded = run_code(code, path=sys.path).stdout.split()
    assert "model_handlers.trials.try_package" in loaded
    assert not {"torch", "apache_beam"} & set(loaded)


def run_code(code: str, *arguments: str, path: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Run Python code in another process that imports from these folders."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path)}
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
