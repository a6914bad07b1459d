"""The image of launchers and workers, and the spec file that makes it a Flex Template."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from google.cloud.dataflow_v1beta3.types import ContainerSpec, SDKInfo
from own_code import write_wheel
from source_tree import shipped_packages

from common.errors import OutputError, UsageError
from examples.local_cloud import LocalCloud
from pipelines.command import Command
from pipelines.metadata import TEMPLATES, template
from pipelines.template_spec import main, template_container, write_spec

ROOT = Path(__file__).parent.parent
DOCKERFILE = (ROOT / "templates" / "Dockerfile").read_text()
LOCKS = {name: ROOT / "templates" / f"requirements-{name}.txt" for name in ("cpu", "cuda")}
IMAGE = f"us-docker.pkg.dev/p/r/millrace@sha256:{'0a' * 32}"


def pins(path: Path) -> dict[str, str]:
    """Return the versions that a requirements file pins, by normalized package name.

    Of several versions of a package, the last one is that of the image's Python.
    """
    found = re.findall(r"^([\w.-]+)==([^\s;]+)", path.read_text(), re.MULTILINE)
    return {re.sub(r"[-_.]+", "-", name.lower()): version for name, version in found}


@pytest.mark.parametrize("path", ["templates/Dockerfile", "serving/Dockerfile"])
def test_hadolint_finds_nothing(path: str) -> None:
    hadolint = Path(sys.executable).parent / "hadolint"
    done = subprocess.run([hadolint, ROOT / path], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_every_package_is_copied_and_not_ignored() -> None:
    packages = set(shipped_packages())
    assert set(re.findall(r"^COPY (\w+)/ \1/$", DOCKERFILE, re.MULTILINE)) == packages
    files = re.findall(r"^COPY ([\w. /${}-]+) (?:\./|/t\S+)$", DOCKERFILE, re.MULTILINE)
    wanted = {name.replace("${TORCH}", "*") for line in files for name in line.split()}
    allowed = {
        line[1:]
        for line in (ROOT / ".dockerignore").read_text().split()
        if line.startswith("!") and line != "!constraints.txt"
    }
    assert allowed == packages | wanted
    assert all(any(ROOT.glob(name)) for name in wanted)


def test_beam_in_the_image_is_the_version_whose_boot_is_copied() -> None:
    (version,) = re.findall(r"^ARG BEAM_IMAGE=apache/beam_python3.11_sdk:(.*)$", DOCKERFILE, re.M)
    assert {pins(path)["apache-beam"] for path in LOCKS.values()} == {version}


def test_the_image_does_not_run_as_root_and_installs_nothing_at_start() -> None:
    assert re.findall(r"^USER (.*)$", DOCKERFILE, re.MULTILINE) == ["1000"]
    assert "RUN_PYTHON_SDK_IN_DEFAULT_ENVIRONMENT=1" in DOCKERFILE
    assert not re.search(r"FLEX_TEMPLATE_PYTHON_(REQUIREMENTS|SETUP)_FILE=", DOCKERFILE)


def test_code_is_copied_after_the_dependencies_are_installed() -> None:
    first, *later = re.split(r"^FROM dependencies", DOCKERFILE, flags=re.MULTILINE)
    assert "--require-hashes" in first
    assert re.findall(r"^COPY (\S+) ", first, re.MULTILINE) == [
        "templates/requirements-${TORCH}.txt"
    ]
    assert all("--require-hashes" not in stage for stage in later)


def test_the_locks_pin_the_tested_versions_with_hashes() -> None:
    tested = pins(ROOT / "constraints.txt")
    for name, path in LOCKS.items():
        text, found = path.read_text(), pins(path)
        assert len(re.findall(r"==\S+ \\\n    --hash=sha256:[0-9a-f]{64}", text)) == len(found)
        assert "--find-links" not in text
        torch = found.pop("torch")
        assert torch.partition("+")[0] == tested["torch"]
        assert (torch.partition("+")[2] == "cpu") == (name == "cpu")
        # Only torch for a GPU needs additional packages.
        others = {n for n in found if n not in tested}
        assert all(re.match(r"nvidia-|cuda-|triton", n) for n in others)
        assert bool(others) == (name == "cuda")
        assert {n: v for n, v in found.items() if n in tested} == {
            n: v for n, v in tested.items() if n in found
        }


def test_the_locks_hold_all_dependencies_of_the_package() -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = {
        re.split(r"[<>=\[]", requirement)[0].lower()
        for requirement in (
            *project["dependencies"],
            *project["optional-dependencies"]["safetensors"],
        )
    }
    assert all(wanted <= set(pins(path)) for path in LOCKS.values())


@pytest.mark.parametrize("command", TEMPLATES, ids=lambda command: command.name)
def test_the_spec_file_is_a_container_spec_of_dataflow(command: Command) -> None:
    metadata = template(command)
    spec = ContainerSpec.from_json(json.dumps(template_container(metadata, IMAGE)))
    assert spec.image == IMAGE
    assert spec.default_environment.sdk_container_image == IMAGE
    assert spec.sdk_info.language == SDKInfo.Language.PYTHON
    assert spec.metadata.name == command.title
    assert [p.name for p in spec.metadata.parameters] == [p["name"] for p in metadata["parameters"]]
    assert spec.metadata.streaming == command.name.startswith("stream")


@pytest.mark.parametrize("image", ["", "millrace", "r/millrace:1", "r/millrace@sha256:12", "a b/c"])
def test_an_image_without_a_digest_is_rejected(image: str) -> None:
    with pytest.raises(UsageError, match="must be REPOSITORY@sha256:DIGEST"):
        template_container({}, image)


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["batch_locl", "--bucket", "bucket", "--image", IMAGE], "did you mean 'batch_local"),
        (["batch_local", "--bucket", "gs://b/c", "--image", IMAGE], "must be the name of a bucket"),
        (["batch_local", "--bucket", "bucket", "--image", "a:1"], "must be REPOSITORY@sha256"),
        (["batch_local", "--image", IMAGE], "missing --bucket"),
        (["batch_local", "--bucket", "bucket", "--imag", IMAGE], "missing --image"),
    ],
)
def test_a_wrong_flag_is_reported_in_one_line(
    args: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(args) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert expected in line


def test_the_spec_is_written_to_the_bucket(emulators: LocalCloud) -> None:
    spec = template_container({"name": "one"}, IMAGE)
    assert write_spec(emulators.cloud, "bucket", "one", spec) == "gs://bucket/templates/one.json"
    assert write_spec(emulators.cloud, "bucket", "one", spec | {"image": "other"})
    blob = emulators.cloud.storage().bucket("bucket").blob("templates/one.json")
    assert json.loads(blob.download_as_bytes()) == spec | {"image": "other"}


def test_a_missing_bucket_is_reported(emulators: LocalCloud) -> None:
    with pytest.raises(
        OutputError, match=r"^bucket no-such does not exist: create it, or choose another$"
    ):
        write_spec(emulators.cloud, "no-such", "one", {})


MAKE = pytest.mark.skipif(shutil.which("make") is None, reason="no make")


@MAKE
@pytest.mark.parametrize(
    ("args", "expected"),
    [
        ("template", "PIPELINE='': expected one of batch_local"),
        ("template PIPELINE=batch BUCKET=b IMAGE=r/i", "PIPELINE='batch': expected one of"),
        ("template PIPELINE=batch_local IMAGE=r/i", "BUCKET is missing"),
        (
            "template PIPELINE=batch_local BUCKET=b",
            "IMAGE='millrace': expected a path in a repository",
        ),
        (
            "template PIPELINE=batch_local BUCKET=gs://b/c IMAGE=r/i",
            "BUCKET='gs://b/c': expected only the name of a bucket",
        ),
        ("image TORCH=gpu", "TORCH='gpu': expected one of cpu cuda"),
        ("image BUILDER=podman", "BUILDER='podman': expected one of docker cloud"),
        ("image EXTRA=gone-1-py3-none-any.whl", "expected wheels (.whl) that exist"),
        ("image EXTRA=README.md", "EXTRA='README.md': expected wheels (.whl) that exist"),
    ],
)
def test_make_rejects_wrong_values_before_it_builds(args: str, expected: str) -> None:
    command = ["make", "-C", str(ROOT), "--no-print-directory", "STAMP=", *args.split()]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert expected in done.stderr
    assert done.stdout == ""


@MAKE
def test_make_template_builds_and_pushes_the_image_and_writes_its_spec(
    emulators: LocalCloud, tmp_path: Path
) -> None:
    docker = tmp_path / "docker"
    docker.write_text(
        f'#!/bin/sh\nprintf "%s\\n" "$*" >> {tmp_path}/calls\n'
        f'[ "$1" = inspect ] && printf "elsewhere/i@sha256:%064d\\n{IMAGE}\\n"\nexit 0\n'
    )
    docker.chmod(0o755)
    command = "make template STAMP= PIPELINE=stream_local BUCKET=bucket TORCH=cuda"
    done = subprocess.run(
        [
            *command.split(),
            f"IMAGE={IMAGE.partition('@')[0]}",
            f"BIN={Path(sys.executable).parent}",
        ],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env={
            "PATH": f"{tmp_path}:/usr/bin:/bin",
            "STORAGE_EMULATOR_HOST": str(emulators.cloud.endpoints.storage),
        },
    )
    assert done.returncode == 0, done.stderr
    build, push, _ = (tmp_path / "calls").read_text().splitlines()
    tag = "us-docker.pkg.dev/p/r/millrace:stream_local-cuda"
    assert f"-t {tag} --build-arg TORCH=cuda --build-arg TORCH_INDEX= " in build
    assert push == f"push {tag}"
    blob = emulators.cloud.storage().bucket("bucket").blob("templates/stream_local.json")
    assert json.loads(blob.download_as_bytes())["image"] == IMAGE


@MAKE
@pytest.mark.parametrize("status", [0, 1])
def test_make_image_gives_the_build_the_wheels_of_the_user(tmp_path: Path, status: int) -> None:
    wheels = [write_wheel(tmp_path, name=name) for name in ("first", "second")]
    docker = tmp_path / "docker"
    docker.write_text(f"#!/bin/sh\nls templates/extra > {tmp_path}/seen\nexit {status}\n")
    docker.chmod(0o755)
    command = ["make", "image", "STAMP=", f"EXTRA={','.join(map(str, wheels))}"]
    path = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    done = subprocess.run(command, capture_output=True, check=False, cwd=ROOT, env=path)
    assert done.returncode == (2 if status else 0), done.stderr
    seen = (tmp_path / "seen").read_text().split()
    assert seen == ["README.md", *(wheel.name for wheel in wheels)]
    assert [path.name for path in (ROOT / "templates" / "extra").iterdir()] == ["README.md"]


def test_both_images_install_the_wheels_of_the_user() -> None:
    """Without access to an index, the image of jobs has only what pip check finds complete."""
    install = re.search(r"^COPY templates/extra /tmp/wheels/\nRUN (.*\n.*\n.*)", DOCKERFILE, re.M)
    assert install is not None
    assert "--no-index --no-deps /tmp/wheels/*.whl" in install[1]
    assert "pip check" in install[1]
    server = (ROOT / "serving" / "Dockerfile").read_text()
    assert "COPY templates/extra /tmp/extra/" in server
    assert "-r /tmp/extra.txt" in server
    ignored = (ROOT / "serving" / "Dockerfile.dockerignore").read_text()
    assert "!templates/extra\n" in ignored
