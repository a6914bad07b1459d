"""Tests of reading model packages: files are read once and checked before they are used."""

import hashlib
import io
import json
import stat
import zipfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from property_tests import examples

from common.errors import (
    DigestMismatch,
    ManifestError,
    MillraceError,
    ModelError,
    UnsafeModel,
)
from model_handlers.manifests.manifest import InputSpec, Manifest, OutputSpec
from model_handlers.manifests.model_json import write_manifest
from model_handlers.read_package import MAR_MANIFEST, read_bytes, read_package
from model_handlers.write_package import write_mar, write_package

DATA = bytes(range(256)) * 40


def manifest(**changes: Any) -> Manifest:
    values: dict[str, Any] = {
        "name": "m",
        "version": "1",
        "format": "torchscript",
        "file": "model.pt",
        "sha256": hashlib.sha256(DATA).hexdigest(),
        "inputs": (InputSpec("x", ("a",)),),
        "outputs": (OutputSpec("y"),),
    }
    return Manifest(**values | changes)


def listing(file: Any) -> bytes:
    """Return the MANIFEST.json of a TorchServe archive."""
    return json.dumps({"model": {"modelName": "m", "serializedFile": file}}).encode()


def write_zip(path: Path, entries: list[tuple[str | zipfile.ZipInfo, bytes]]) -> str:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries:
            archive.writestr(name, content)
    return str(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_package(tmp_path / "package", DATA, manifest())
    return tmp_path / "package"


def test_a_folder_its_manifest_and_its_file_are_the_same_package(folder: Path) -> None:
    packages = [
        read_package(str(path))
        for path in (folder, f"{folder}/", folder / "model.json", folder / "model.pt")
    ]
    for package in packages:
        assert (package.file, package.data, package.manifest) == ("model.pt", DATA, manifest())
        assert package.sha256 == hashlib.sha256(DATA).hexdigest()


def test_a_mar_is_the_same_package(tmp_path: Path) -> None:
    write_mar(tmp_path / "m.mar", DATA, manifest(), "raise SystemExit('the handler ran')")
    package = read_package(str(tmp_path / "m.mar"))
    assert (package.file, package.data, package.manifest) == ("model.pt", DATA, manifest())


@pytest.mark.parametrize("name", ["", "model.pt", "m.mar"])
def test_a_manifest_that_cannot_be_read_names_its_package(tmp_path: Path, name: str) -> None:
    (tmp_path / "model.pt").write_bytes(DATA)
    (tmp_path / "model.json").write_text("{")
    members = [("model.pt", DATA), (MAR_MANIFEST, listing("model.pt")), ("model.json", b"{")]
    write_zip(tmp_path / "m.mar", [*members])
    with pytest.raises(ManifestError) as caught:
        read_package(str(tmp_path / name))
    start = f"model {tmp_path / name!s}: model.json is not valid JSON: "
    assert str(caught.value).startswith(start)


def test_a_mar_of_torch_model_archiver_has_no_manifest(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "m.mar", [("model.pt", DATA), (MAR_MANIFEST, listing("model.pt"))])
    package = read_package(path)
    assert (package.file, package.data, package.manifest) == ("model.pt", DATA, None)


def test_a_bare_file_ignores_the_manifest_of_another_file(folder: Path) -> None:
    (folder / "other.pt").write_bytes(b"other")
    package = read_package(str(folder / "other.pt"))
    assert (package.file, package.data, package.manifest) == ("other.pt", b"other", None)


def test_a_file_with_the_name_of_a_compressed_one_is_not_decompressed(tmp_path: Path) -> None:
    (tmp_path / "model.pt.gz").write_bytes(DATA)
    assert read_bytes(str(tmp_path / "model.pt.gz")) == DATA


def test_each_file_is_read_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    read = Path.read_bytes

    def counted(path: Path) -> bytes:
        opened.append(path.name)
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", counted)
    write_mar(folder / "m.mar", DATA, manifest(), "")
    for path, files in (
        (folder, ["model.json", "model.pt"]),
        (folder / "model.pt", ["model.json", "model.pt"]),
        (folder / "m.mar", ["m.mar"]),
    ):
        opened.clear()
        read_package(str(path), manifest().sha256)
        assert sorted(opened) == files


@pytest.mark.parametrize("prefix", ["", "sha256:"])
@pytest.mark.parametrize("spelling", [str.lower, str.upper])
def test_the_right_digest_passes(folder: Path, prefix: str, spelling: Any) -> None:
    digest = prefix + spelling(manifest().sha256)
    assert read_package(str(folder), digest).data == DATA


def test_another_digest_than_the_requested_one_is_refused(folder: Path) -> None:
    with pytest.raises(DigestMismatch, match=r"--model_digest expects sha256 0000.*package it"):
        read_package(str(folder), "0" * 64)


@pytest.mark.parametrize("kind", ["folder", "file", "mar"])
def test_another_digest_than_the_one_in_the_manifest_is_refused(
    folder: Path, tmp_path: Path, kind: str
) -> None:
    (folder / "model.pt").write_bytes(DATA + b"!")
    write_mar(tmp_path / "m.mar", DATA + b"!", manifest(), "")
    path = {"folder": folder, "file": folder / "model.pt", "mar": tmp_path / "m.mar"}[kind]
    with pytest.raises(DigestMismatch, match=r"the manifest model.json expects sha256 .* has"):
        read_package(str(path))


def test_a_bare_file_must_have_the_requested_digest(tmp_path: Path) -> None:
    (tmp_path / "bare.pt").write_bytes(DATA)
    assert read_package(str(tmp_path / "bare.pt"), manifest().sha256).data == DATA
    with pytest.raises(DigestMismatch):
        read_package(str(tmp_path / "bare.pt"), "1" * 64)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("nowhere", "no model at .*nowhere: expected a folder with model.json, a .mar"),
        ("nowhere/", "no model at .*nowhere/"),
        ("nowhere.pt", "no model at .*nowhere.pt"),
        ("nowhere.mar", "nowhere.mar cannot be read"),
        ("empty", "no model at .*empty: expected a folder with model.json"),
        ("empty/", "no model at .*empty/"),
        ("empty/model.json", "model.json"),
        ("a\0b", "cannot be read|no model at"),
    ],
)
def test_a_path_without_a_model_is_refused(tmp_path: Path, path: str, message: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match=message) as caught:
        read_package(f"{tmp_path}/{path}")
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("path", ["nofs://bucket/model", "nofs://bucket/m.mar"])
def test_an_unknown_filesystem_is_named(path: str) -> None:
    with pytest.raises(ModelError, match=f"{path} cannot be read: .*filesystem"):
        read_package(path)


def test_a_folder_whose_model_file_is_missing_is_refused(folder: Path) -> None:
    (folder / "model.pt").unlink()
    with pytest.raises(ModelError, match=r"model.pt cannot be read: .*No such file"):
        read_package(str(folder))


def test_a_malformed_manifest_raises_a_manifest_error(folder: Path) -> None:
    (folder / "model.json").write_text("{}")
    with pytest.raises(ManifestError, match="name: expected a value"):
        read_package(str(folder))


def test_an_empty_model_file_has_another_digest(folder: Path) -> None:
    (folder / "model.pt").write_bytes(b"")
    with pytest.raises(DigestMismatch):
        read_package(str(folder))


UNSAFE = {
    "up": ([("../model.pt", DATA)], "points outside the archive"),
    "up within": ([("a/../../model.pt", DATA)], "points outside the archive"),
    "up for windows": ([("..\\model.pt", DATA)], "points outside the archive"),
    "absolute": ([("/etc/model.pt", DATA)], "points outside the archive"),
    "absolute for windows": ([("C:/model.pt", DATA)], "points outside the archive"),
    "bomb": ([("zeros", bytes(30 << 20))], "would expand to 31,4.*the limits are 100 times"),
}


@pytest.mark.parametrize("kind", UNSAFE)
def test_a_mar_that_could_do_harm_is_refused(tmp_path: Path, kind: str) -> None:
    entries, message = UNSAFE[kind]
    path = write_zip(
        tmp_path / "m.mar",
        [("model.pt", DATA), (MAR_MANIFEST, listing("model.pt")), *entries],  # type: ignore[list-item]
    )
    before = sorted(tmp_path.iterdir())
    with pytest.raises(UnsafeModel, match=message):
        read_package(path)
    assert sorted(tmp_path.iterdir()) == before


def test_a_link_in_a_mar_is_refused(tmp_path: Path) -> None:
    link = zipfile.ZipInfo("model.pt")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    path = write_zip(
        tmp_path / "m.mar", [(link, b"/etc/passwd"), (MAR_MANIFEST, listing("model.pt"))]
    )
    with pytest.raises(UnsafeModel, match=r"'model.pt' is a link"):
        read_package(path)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_two_entries_with_the_same_name_are_refused(tmp_path: Path) -> None:
    path = write_zip(
        tmp_path / "m.mar",
        [("model.pt", DATA), ("model.pt", b"other"), (MAR_MANIFEST, listing("model.pt"))],
    )
    with pytest.raises(UnsafeModel, match="two entries have the same name"):
        read_package(path)


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_compressions_that_model_archivers_do_not_use_are_refused(
    tmp_path: Path, method: int
) -> None:
    with zipfile.ZipFile(tmp_path / "m.mar", "w", method) as archive:
        archive.writestr("model.pt", DATA)
    with pytest.raises(UnsafeModel, match="is compressed, but not with deflate"):
        read_package(str(tmp_path / "m.mar"))


def test_a_bomb_with_a_wrong_size_is_read_only_up_to_that_size(tmp_path: Path) -> None:
    path = Path(
        write_zip(
            tmp_path / "m.mar",
            [(MAR_MANIFEST, listing("model.pt")), ("model.pt", bytes(30 << 20))],
        )
    )
    size = (30 << 20).to_bytes(4, "little")
    assert path.read_bytes().count(size) == 2
    path.write_bytes(path.read_bytes().replace(size, (1000).to_bytes(4, "little")))
    with pytest.raises(ModelError, match=r"not a readable .mar"):
        read_package(str(path))


@pytest.mark.parametrize("file", ["../x", "/etc/passwd", "missing.pt", "", 5, None, [], {}, ["a"]])
def test_a_mar_that_names_a_missing_file_is_refused(tmp_path: Path, file: Any) -> None:
    path = write_zip(tmp_path / "m.mar", [("model.pt", DATA), (MAR_MANIFEST, listing(file))])
    with pytest.raises(ModelError, match=r"names the model file .*, which is not in the archive"):
        read_package(path)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b'{"model": []}', b"\xff", b"5"])
def test_a_mar_without_a_usable_listing_is_refused(tmp_path: Path, content: bytes) -> None:
    path = write_zip(tmp_path / "m.mar", [("model.pt", DATA), (MAR_MANIFEST, content)])
    with pytest.raises(ModelError, match=r"expected MAR-INF/MANIFEST.json with model"):
        read_package(path)


def test_a_mar_without_a_listing_is_refused(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "m.mar", [("model.pt", DATA)])
    with pytest.raises(ModelError, match=r"expected MAR-INF/MANIFEST.json with model"):
        read_package(path)


def test_a_mar_whose_manifest_describes_another_file_is_refused(tmp_path: Path) -> None:
    path = write_zip(
        tmp_path / "m.mar",
        [
            ("model.pt", DATA),
            (MAR_MANIFEST, listing("model.pt")),
            ("model.json", write_manifest(manifest(file="other.pt")).encode()),
        ],
    )
    with pytest.raises(
        ManifestError,
        match=r"describes 'other.pt', but MAR-INF/MANIFEST.json names the model file 'model.pt'",
    ):
        read_package(path)


def mar_bytes() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(MAR_MANIFEST, listing("model.pt"))
        archive.writestr("model.json", write_manifest(manifest()))
        archive.writestr("model.pt", DATA)
    return buffer.getvalue()


MAR = mar_bytes()


def read_or_refuse(path: Path) -> bytes | str:
    """Return the package's bytes, or the message of a ModelError."""
    try:
        return read_package(str(path)).data
    except ModelError as error:
        return str(error)


@pytest.mark.slow
def test_a_mar_cut_short_anywhere_is_refused(tmp_path: Path) -> None:
    for size in range(0, len(MAR), 7):
        (tmp_path / "m.mar").write_bytes(MAR[:size])
        found = read_or_refuse(tmp_path / "m.mar")
        assert isinstance(found, str), f"{size} of {len(MAR)} bytes were enough"
        assert len(found.splitlines()) == 1


@settings(deadline=None, max_examples=examples(300))
@given(st.lists(st.tuples(st.integers(0, len(MAR) - 1), st.integers(0, 255)), min_size=1))
def test_a_damaged_mar_is_read_correctly_or_raises_a_model_error(
    tmp_path_factory: pytest.TempPathFactory, damage: list[tuple[int, int]]
) -> None:
    data = bytearray(MAR)
    for position, value in damage:
        data[position] = value
    path = tmp_path_factory.getbasetemp() / "damaged.mar"
    path.write_bytes(data)
    found = read_or_refuse(path)
    assert found == DATA or isinstance(found, str)


def test_a_file_that_is_not_a_zip_is_refused(tmp_path: Path) -> None:
    for content in (b"", b"PK", b"text", DATA):
        (tmp_path / "m.mar").write_bytes(content)
        with pytest.raises(ModelError, match=r"not a readable .mar \(a zip archive\)"):
            read_package(str(tmp_path / "m.mar"))


def test_running_out_of_memory_is_not_blamed_on_the_model(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def exhausted(path: Path) -> bytes:
        raise MemoryError

    monkeypatch.setattr(Path, "read_bytes", exhausted)
    with pytest.raises(MemoryError):
        read_package(str(folder))
    assert not issubclass(MemoryError, MillraceError)
