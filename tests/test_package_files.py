"""Packages whose steps read files: whatever copies or reads a package has all of its files."""

import json
import math
import shutil
import sys
import zipfile
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from raw_model import KINDS, ROWS, write_raw_package

from common.errors import (
    DigestMismatch,
    ManifestError,
    ModelError,
    UnsafeModel,
    UsageError,
)
from model_handlers.manifests.manifest import MANIFEST_NAME, Manifest
from model_handlers.manifests.model_json import parse_manifest, write_manifest
from model_handlers.manifests.thresholds import with_thresholds
from model_handlers.packaged_steps import PackagedSteps
from model_handlers.read_package import read_files, read_package
from model_handlers.torch_model import TorchModelHandler
from model_handlers.write_package import write_mar, write_package
from resources.package import open_package
from transforms.provenance import Provenance

VOCABULARY = "kinds.txt"
NAMES = {"model.json", "model.pt2", VOCABULARY}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Manifest]:
    """A package with a vocabulary, and next to it the same as a .mar."""
    folder = tmp_path_factory.mktemp("made") / "raw"
    manifest = write_raw_package(folder)
    data, kinds = (folder / "model.pt2").read_bytes(), (folder / VOCABULARY).read_bytes()
    write_mar(folder.with_suffix(".mar"), data, manifest, "# a handler", {VOCABULARY: kinds})
    return folder, manifest


@pytest.fixture
def package(made: tuple[Path, Manifest], tmp_path: Path) -> Path:
    """A copy of the package, which the test may change."""
    return Path(shutil.copytree(made[0], tmp_path / "raw"))


def kind_numbers(steps: PackagedSteps) -> list[int]:
    """Return what the steps make of the categories of the first rows."""
    tensors, refused = steps.load().tensors(ROWS[:3])
    assert not refused
    return [int(number) for number in tensors[1]]


def damage_missing(folder: Path) -> None:
    (folder / VOCABULARY).unlink()


def damage_renamed(folder: Path) -> None:
    (folder / VOCABULARY).rename(folder / "Kind.txt")


def damage_changed(folder: Path) -> None:
    (folder / VOCABULARY).write_text("\n".join(reversed(KINDS)) + "\n")


DAMAGES = {
    "missing": (damage_missing, f"names the file '{VOCABULARY}', which is not in the"),
    "renamed": (damage_renamed, f"names the file '{VOCABULARY}', which is not in the"),
    "changed": (damage_changed, f"the file {VOCABULARY} has"),
}


# Write and read.


@pytest.mark.parametrize("path", ["raw", "raw/model.json", "raw/model.pt2", "raw.mar"])
def test_a_package_is_read_with_its_files(made: tuple[Path, Manifest], path: str) -> None:
    folder, manifest = made
    package = read_package(str(folder.parent / path), manifest.digest)
    assert package.digest == manifest.digest
    assert package.contents == {name: (folder / name).read_bytes() for name in manifest.file_names}
    assert read_files(str(folder.parent / path), manifest) == package.files
    assert kind_numbers(PackagedSteps(manifest, str(folder.parent / path))) == [0, 1, 2]


def test_a_folder_and_an_archive_are_written_with_the_files(
    made: tuple[Path, Manifest], tmp_path: Path
) -> None:
    folder, manifest = made
    package = read_package(str(folder))
    write_package(tmp_path / "copy", package.data, manifest, package.files)
    assert {p.name: p.read_bytes() for p in (tmp_path / "copy").iterdir()} == package.contents


def test_only_the_files_that_the_manifest_names_are_written(
    made: tuple[Path, Manifest], tmp_path: Path
) -> None:
    package = read_package(str(made[0]))
    for files, message in (
        ({}, r"expected the files that model.json names \(kinds.txt\), got none"),
        ({VOCABULARY: b"", "more.txt": b""}, r"got kinds.txt, more.txt"),
        ({VOCABULARY: b"changed"}, r"expects sha256 \w+ of the file kinds.txt, got a file with"),
    ):
        with pytest.raises(UsageError, match=message) as caught:
            write_package(tmp_path / "package", package.data, made[1], files)
        assert "\n" not in str(caught.value)
        with pytest.raises(UsageError, match=message):
            write_mar(tmp_path / "package.mar", package.data, made[1], "", files)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["handler.py", "Handler.py", "mar-inf"])
def test_a_file_with_the_name_of_a_part_of_an_archive_is_refused(
    made: tuple[Path, Manifest], tmp_path: Path, name: str
) -> None:
    package = read_package(str(made[0]))
    files = {**package.files, name: b"x"}
    manifest = replace(made[1], files={n: sha256(d).hexdigest() for n, d in files.items()})
    with pytest.raises(UsageError, match=f"the file '{name}' has the name of a part of every .mar"):
        write_mar(tmp_path / "package.mar", package.data, manifest, "", files)
    write_package(tmp_path / "package", package.data, manifest, files)
    assert read_package(str(tmp_path / "package")).files == files


@pytest.mark.parametrize("kind", DAMAGES)
@pytest.mark.parametrize("path", ["", MANIFEST_NAME, "model.pt2"])
def test_a_package_with_a_missing_or_changed_file_is_refused(
    package: Path, made: tuple[Path, Manifest], kind: str, path: str
) -> None:
    damage, message = DAMAGES[kind]
    damage(package)
    given, manifest = str(package / path), made[1]
    for read in (
        lambda: read_package(given),
        lambda: read_files(given, manifest),
        lambda: open_package(given),
        lambda: PackagedSteps(manifest, given).load(),
        lambda: TorchModelHandler(given, manifest).load_model(),
    ):
        with pytest.raises(ModelError, match=message) as caught:
            read()
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", DAMAGES)
def test_an_archive_with_a_missing_or_changed_file_is_refused(
    package: Path, made: tuple[Path, Manifest], kind: str
) -> None:
    damage, message = DAMAGES[kind]
    damage(package)
    path = package / "damaged.mar"
    with zipfile.ZipFile(made[0].with_suffix(".mar")) as whole, zipfile.ZipFile(path, "w") as copy:
        for name in whole.namelist():
            if name != VOCABULARY:
                copy.writestr(name, whole.read(name))
        for file in package.glob("*.txt"):
            copy.write(file, file.name)
    for read in (read_package, open_package, lambda path: read_files(path, made[1])):
        with pytest.raises(ModelError, match=message) as caught:
            read(str(path))
        assert "\n" not in str(caught.value)


def test_a_link_counts_as_the_file_to_which_it_points(package: Path, tmp_path: Path) -> None:
    (package / VOCABULARY).rename(tmp_path / "elsewhere.txt")
    (package / VOCABULARY).symlink_to(tmp_path / "elsewhere.txt")
    kinds = "".join(f"{kind}\n" for kind in KINDS).encode()
    assert open_package(str(package)).files[VOCABULARY] == kinds
    (tmp_path / "elsewhere.txt").write_bytes(b"changed")
    with pytest.raises(DigestMismatch, match=r"the file kinds.txt has"):
        read_package(str(package))
    (tmp_path / "elsewhere.txt").unlink()
    with pytest.raises(ModelError, match="which is not in the folder"):
        read_package(str(package))


def test_a_link_to_a_device_is_not_read(package: Path) -> None:
    (package / VOCABULARY).unlink()
    (package / VOCABULARY).symlink_to("/dev/zero")
    with pytest.raises(ModelError, match=r"kinds.txt: expected a file, got a folder or a device"):
        read_package(str(package))


@pytest.mark.parametrize(
    "name",
    [
        *("", ".", "..", "a/b", "../a", "/a", "a\\b", "C:a", "a\0", "a\nb", "a?", "a*", "a|b"),
        *("a.", "a ", "nul", "NUL.txt", "com1", "Lpt9.tar.gz", "con .txt", "x" * 256, "é" * 128),
        *("model.json", "Model.json", "MODEL.PT2", "KINDS.txt", "ﬁle", "FILE"),
    ],
)
def test_names_that_are_not_a_file_on_every_system_are_refused(
    made: tuple[Path, Manifest], name: str
) -> None:
    value = json.loads(write_manifest(made[1]))
    value["files"] |= {"file": "0" * 64, name: "0" * 64}
    with pytest.raises(ManifestError, match=r"^model.json: files: expected names ") as caught:
        parse_manifest(json.dumps(value))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["labels", ".labels", "a b.txt", "naïve.txt", "null", "x" * 255])
def test_other_names_are_accepted(made: tuple[Path, Manifest], name: str) -> None:
    value = json.loads(write_manifest(made[1]))
    value["files"] |= {name: "0" * 64}
    assert parse_manifest(json.dumps(value)).file_names == (
        "model.json",
        "model.pt2",
        VOCABULARY,
        name,
    )


# The digest of a package.


def changed(manifest: Manifest, **members: Any) -> Manifest:
    return parse_manifest(json.dumps(json.loads(write_manifest(manifest)) | members))


def test_the_digest_is_the_same_after_it_is_written_and_on_a_worker(
    made: tuple[Path, Manifest],
) -> None:
    manifest = made[1]
    assert manifest.digest != manifest.sha256
    assert len(manifest.digest) == 64
    assert parse_manifest(write_manifest(manifest)).digest == manifest.digest
    value = json.loads(write_manifest(manifest))
    backwards = {name: value[name] for name in reversed(value)}
    assert parse_manifest(json.dumps(backwards)).digest == manifest.digest
    assert manifest.without_rows().digest == manifest.digest
    assert manifest.choose("probability").digest == manifest.digest
    assert Provenance.of(manifest).model_digest == manifest.digest


def small(*steps: dict[str, Any]) -> Manifest:
    """Return a manifest in which one column goes through some steps."""
    cut = {"step": "cut", "at": [1.5], "names": ["low", "high"]}
    value = {
        "schema_version": 2,
        "name": "small",
        "version": "1",
        "format": "pt2",
        "file": "model.pt2",
        "sha256": "0" * 64,
        "columns": {"a": "float64"},
        "inputs": [{"name": "x", "from": [[{"column": "a"}, *steps]]}],
        "outputs": [{"name": "y"}],
        "fields": [{"name": "level", "from": [{"output": "y"}, cut]}],
    }
    return parse_manifest(json.dumps(value))


def test_a_digest_does_not_change_with_the_version_of_millrace() -> None:
    # Rows that were written long ago name this digest.
    digest = "f4c90b88da118a2465c89e57350849ec3ae976cf4d975c7cdfdc97afc1fa080f"
    assert small({"step": "fill", "value": 0.5}, {"step": "log1p"}).digest == digest


@given(st.floats(allow_nan=False, allow_infinity=False), st.floats(0.001, 1e9))
def test_the_digest_of_any_parameters_survives_writing_and_is_only_theirs(
    mean: float, std: float
) -> None:
    manifest = small({"step": "scale", "mean": mean, "std": std})
    assert parse_manifest(write_manifest(manifest)).digest == manifest.digest
    beside = math.nextafter(mean, 0.0 if mean else 1.0)
    assert small({"step": "scale", "mean": beside, "std": std}).digest != manifest.digest


DETERMINANTS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "model file": lambda m: m.update(sha256="1" * 64),
    "vocabulary": lambda m: m["files"].update({VOCABULARY: "1" * 64}),
    "raw type": lambda m: m["columns"].update(amount="int64"),
    "parameter": lambda m: m["inputs"][0]["from"][0][3].update(mean=1.5),
    "step": lambda m: m["inputs"][0]["from"][0].pop(2),
    "order of inputs": lambda m: m["inputs"].reverse(),
    "threshold": lambda m: m["fields"][4]["from"][1].update(at=[0.4, 0.7]),
    "label": lambda m: m["fields"][4]["from"][1].update(names=["a", "b", "c"]),
    "name of a field": lambda m: m["fields"][4].update(name="other"),
    "name of an output": lambda m: (
        m["outputs"][0].update(name="other"),
        m["fields"][0]["from"][0].update(output="other"),
    ),
}


@pytest.mark.parametrize("what", DETERMINANTS)
def test_the_digest_changes_with_what_determines_predictions(
    made: tuple[Path, Manifest], what: str
) -> None:
    value = json.loads(write_manifest(made[1])) | {"output_fields": []}
    DETERMINANTS[what](value)
    assert parse_manifest(json.dumps(value)).digest != made[1].digest


def test_the_digest_does_not_change_with_anything_else(made: tuple[Path, Manifest]) -> None:
    manifest = made[1]
    statistics = {"amount": {"count": 1, "mean": 0.0, "std": 0.0, "min": 0.0, "max": 0.0}}
    files = dict(manifest.files) | {"notes.md": "1" * 64}
    changes: list[dict[str, Any]] = [
        {"name": "other", "version": "9"},
        {"file": "renamed.pt2"},
        {"score_output": None, "output_fields": []},
        {"golden": {"rows": [ROWS[0]], "outputs": {"logits": [[0.0, 0.0, 0.0]]}}},
        {"statistics": statistics, "batch_dependence": 0.5},
        {"files": files},
    ]
    for members in changes:
        assert changed(manifest, **members).digest == manifest.digest


def test_the_mean_that_replaces_missing_values_is_part_of_the_digest(
    make_manifest: Callable[..., Manifest],
) -> None:
    def imputing(mean: float, version: int) -> Manifest:
        value = json.loads(write_manifest(make_manifest(schema_version=version)))
        value["inputs"][0]["impute"] = {"a": "mean"}
        one = {"count": 1, "mean": mean, "std": 0.0, "min": 0.0, "max": 0.0}
        return parse_manifest(json.dumps(value | {"statistics": {"a": one}}))

    assert imputing(1.0, 2).digest != imputing(2.0, 2).digest
    assert imputing(1.0, 1).digest == imputing(2.0, 1).digest == imputing(1.0, 1).sha256


@pytest.mark.parametrize("prefix", ["", "sha256:"])
def test_a_run_may_name_the_digest_of_the_package_or_of_the_model_file(
    made: tuple[Path, Manifest], prefix: str
) -> None:
    folder, manifest = made
    for digest in (manifest.digest, manifest.sha256, manifest.digest.upper()):
        assert read_package(str(folder), prefix + digest).manifest == manifest
    with pytest.raises(DigestMismatch) as caught:
        read_package(str(folder), "0" * 64)
    message = str(caught.value)
    assert "\n" not in message
    assert f"--model_digest expects sha256 {'0' * 64}, but the file model.pt2 has" in message
    assert f"and the package, with its steps and their files, has {manifest.digest}" in message


def test_a_worker_refuses_a_package_that_was_changed_after_the_start(
    package: Path, made: tuple[Path, Manifest]
) -> None:
    handler = TorchModelHandler(str(package), made[1].without_rows())
    handler.load_model()
    value = json.loads((package / MANIFEST_NAME).read_text())
    # The model file stays the same, so only the digest of the package shows the change.
    value["inputs"][0]["from"][0][3]["mean"] = 1.5
    (package / MANIFEST_NAME).write_text(json.dumps(value))
    with pytest.raises(DigestMismatch, match=r"the package was changed; start again") as caught:
        handler.load_model()
    assert "\n" not in str(caught.value)


# Trust.


def test_a_function_of_a_step_is_trusted_by_every_command_or_by_none(
    package: Path,
) -> None:
    value = json.loads((package / MANIFEST_NAME).read_text())
    value["inputs"][0]["from"][0][2:2] = [{"step": "call", "function": "myteam.features:double"}]
    (package / MANIFEST_NAME).write_text(json.dumps(value))
    manifest = parse_manifest(json.dumps(value))
    for read in (
        lambda: open_package(str(package)),
        lambda: TorchModelHandler(str(package), manifest),
        lambda: PackagedSteps(manifest, str(package)).load(),
    ):
        with pytest.raises(UnsafeModel, match=r"function myteam.features:double") as caught:
            read()
        assert "\n" not in str(caught.value)
    assert set(open_package(str(package), ["myteam"]).files) == NAMES
    assert TorchModelHandler(str(package), manifest, trusted_modules=["myteam"])
    assert "myteam" not in sys.modules


def test_other_thresholds_have_another_digest(made: tuple[Path, Manifest]) -> None:
    manifest = made[1]
    other = with_thresholds(manifest, {"decision": (0.3, 0.6)})
    assert other.digest != manifest.digest
    assert with_thresholds(other, {"decision": (0.4, 0.6)}).digest == manifest.digest
