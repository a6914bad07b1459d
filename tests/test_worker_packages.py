"""What Dataflow's workers install without an image: the wheel, the requirements, the refusals."""

import json
import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from apache_beam.options.pipeline_options import SetupOptions
from apache_beam.portability.api import beam_runner_api_pb2
from command_line import RunCommand
from packaging.utils import canonicalize_name
from source_tree import ROOT, module_names, modules, shipped_packages

from common.errors import UsageError
from examples.google_api.server import GoogleApi, google_api
from examples.google_api.staged_pipeline import ExecutingDataflow
from pipelines import batch_local
from pipelines.beam_args import beam_options
from pipelines.dataflow.own_wheel import wheel_name, write_wheel
from pipelines.dataflow.worker_packages import TORCH_INDEX, installs, own_requirements, staging
from pipelines.launch.command import command

UV = Path(sys.executable).parent / "uv"
# The same code again, from another process.
WRITE = "import sys; from pathlib import Path; from pipelines.dataflow.own_wheel import *; "
WRITE += "print(write_wheel(Path(sys.argv[1])))"


def pins() -> dict[str, str]:
    """Return the version of each package of the requirements."""
    lines = [line for line in own_requirements() if not line.startswith("--")]
    return dict(line.split("==") for line in lines)


def contents(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def test_the_wheel_holds_what_the_build_puts_into_a_wheel(tmp_path: Path) -> None:
    found = contents(write_wheel(tmp_path))
    paths = [path for package in shipped_packages() for path in modules(package)]
    paths += [ROOT / package / "py.typed" for package in shipped_packages()]
    paths.append(ROOT / "examples/transactions/config.properties")
    paths += [ROOT / "common/html_pages" / name for name in ("embed.js", "style.css")]
    own = {name: data for name, data in found.items() if ".dist-info/" not in name}
    assert own == {str(path.relative_to(ROOT)): path.read_bytes() for path in paths}
    (described,) = (data for name, data in found.items() if name.endswith("/METADATA"))
    assert b"\nName: millrace\n" in described


def test_the_same_code_gives_the_same_wheel(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    first, second = write_wheel(tmp_path), write_wheel(tmp_path / "other")
    assert first.name == wheel_name() == second.name
    assert first.read_bytes() == second.read_bytes()


def test_an_installed_wheel_gives_the_wheel_that_was_installed(tmp_path: Path) -> None:
    """There is no checkout, and another package has files in a folder with the same name."""
    wheel, site = write_wheel(tmp_path), tmp_path / "site-packages"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    (site / "examples" / "of_another.py").write_text("")
    place = tmp_path / "again"
    place.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", WRITE, str(place)],
        env={**os.environ, "PYTHONPATH": str(site)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert Path(done.stdout.strip()).read_bytes() == wheel.read_bytes()


@pytest.mark.slow
def test_the_requirements_pin_what_a_worker_needs_and_nothing_else() -> None:
    lines = own_requirements()
    assert lines[0] == f"--extra-index-url {TORCH_INDEX}"
    found = pins()
    assert found.pop("torch") == f"{metadata.version('torch').partition('+')[0]}+cpu"
    assert {name: metadata.version(name) for name in found} == found
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = {canonicalize_name(re.split(r"[<>=\[]", line)[0]) for line in project["dependencies"]}
    assert needed - found.keys() == {"apache-beam", "torch"}
    unneeded = re.compile(r"millrace|nvidia|cuda|triton|uvicorn|starlette|pytest|matplotlib|mypy")
    assert [name for name in found if unneeded.match(name)] == []


def test_an_image_needs_no_packages() -> None:
    options = beam_options(["--runner=DataflowRunner", "--sdk_container_image=an/image"])
    assert installs(options) == []
    with staging(options):
        assert options.view_as(SetupOptions).extra_packages is None
        assert options.view_as(SetupOptions).requirements_file is None


@pytest.mark.slow
def test_packages_of_the_user_are_installed_too(tmp_path: Path) -> None:
    own = tmp_path / "own.txt"
    own.write_text("# ours\n\nlightgbm==4\n")
    flags = ["--runner=DataflowRunner", "--extra_package=a/b-1-py3-none-any.whl"]
    options = beam_options([*flags, f"--requirements_file={own}"])
    shown = installs(options)
    assert shown[-3:] == ["lightgbm==4", wheel_name(), "b-1-py3-none-any.whl"]
    setup = options.view_as(SetupOptions)
    with staging(options):
        staged = Path(setup.requirements_file).read_text().splitlines()
        assert [*staged, *(os.path.basename(path) for path in setup.extra_packages)] == shown
        assert setup.requirements_cache == "skip"
        wheel = Path(setup.extra_packages[0])
        assert wheel.exists()
    assert not wheel.exists()


def test_a_wheel_of_millrace_that_the_user_passes_takes_the_place_of_the_own_one() -> None:
    options = beam_options(["--runner=DataflowRunner", "--extra_package=dist/millrace-9-x.whl"])
    assert [line for line in installs(options) if line.endswith(".whl")] == ["millrace-9-x.whl"]
    with staging(options):
        assert options.view_as(SetupOptions).extra_packages == ["dist/millrace-9-x.whl"]


def test_a_requirements_file_that_does_not_exist_is_reported() -> None:
    options = beam_options(["--runner=DataflowRunner", "--requirements_file=gone.txt"])
    with pytest.raises(UsageError, match=r"^--requirements_file gone\.txt cannot be read: "):
        installs(options)


def test_source_that_is_not_installed_needs_an_image(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [])
    options = beam_options(["--runner=DataflowRunner"])
    with pytest.raises(UsageError, match=r"or add --sdk_container_image IMAGE$"):
        installs(options)


JOB = {"project": "my-project", "region": "us-central1"}


@pytest.fixture
def job(example: Path, tmp_path: Path) -> dict[str, Any]:
    """The flags of a batch job whose files are on this machine."""
    return {
        **JOB,
        "temp_location": tmp_path / "tmp",
        "dataflow_endpoint": "http://localhost:1",
        "input_files": example / "transactions.parquet",
        "model": example / "model",
        "output_files": tmp_path / "out",
        "run_id": "r",
    }


def shown_installs(printed: str) -> list[str]:
    """Return what a dry run says that workers install."""
    return re.findall(r"^install +(.*)$", printed, re.MULTILINE)


@pytest.fixture
def google() -> Iterator[GoogleApi]:
    with google_api(ExecutingDataflow()) as server:
        yield server


@pytest.mark.parametrize("launched", [False, True], ids=["itself", "launch"])
@pytest.mark.exhaustive
@pytest.mark.slow
def test_a_dry_run_shows_what_a_worker_installs(
    job: dict[str, Any], google: GoogleApi, launched: bool, run_command: RunCommand
) -> None:
    flags = job | {"dataflow_endpoint": google.url.replace("127.0.0.1", "localhost")}
    started = command("batch_local") if launched else batch_local.COMMAND
    runner = {} if launched else {"runner": "DataflowRunner"}
    code, printed, error = run_command(started, {**flags, **runner, "dry_run": True})
    assert code == 0
    assert re.fullmatch(r"(memory: .*\n)?", error)
    assert shown_installs(printed) == [*own_requirements(), wheel_name()]
    image = {"sdk_container_image": "an/image"}
    code, printed, _ = run_command(started, {**flags, **runner, **image, "dry_run": True})
    assert (code, shown_installs(printed)) == (0, [])
    assert google.calls == []


def staged_files(job: Path) -> dict[str, Path]:
    """Return the files that a written job has staged, by the name that a worker sees."""
    options = json.loads(job.read_text())["environment"]["sdkPipelineOptions"]["options"]
    proto = beam_runner_api_pb2.Pipeline.FromString(Path(options["pipelineUrl"]).read_bytes())
    (environment,) = proto.components.environments.values()
    found = {}
    for artifact in environment.dependencies:
        role = beam_runner_api_pb2.ArtifactStagingToRolePayload.FromString(artifact.role_payload)
        place = beam_runner_api_pb2.ArtifactUrlPayload.FromString(artifact.type_payload).url
        found[role.staged_name] = Path(place)
    return found


@pytest.fixture
def staged(
    job: dict[str, Any], tmp_path: Path, run_command: RunCommand, beam_processes: None
) -> dict[str, Path]:
    """The files that a job stages which names no image."""
    flags = job | {"runner": "DataflowRunner", "template_location": tmp_path / "job.json"}
    code, _, error = run_command(batch_local.COMMAND, flags)
    assert code == 0, error
    return staged_files(tmp_path / "job.json")


def test_a_job_stages_what_its_dry_run_shows(
    staged: dict[str, Path], job: dict[str, Any], run_command: RunCommand
) -> None:
    flags = {**job, "runner": "DataflowRunner", "dry_run": True}
    shown = shown_installs(run_command(batch_local.COMMAND, flags)[1])
    wheels = staged["extra_packages.txt"].read_text().split()
    assert staged["requirements.txt"].read_text().splitlines() + wheels == shown
    assert wheels == [wheel_name()]
    assert set(staged) - {"submission_environment_dependencies.txt"} == {
        "requirements.txt",
        "extra_packages.txt",
        wheel_name(),
    }


def link(name: str, site: Path) -> None:
    """Show the files of a package that is installed here in another environment."""
    distribution = metadata.distribution(name)
    for file in distribution.files or ():
        if ".." not in file.parts and file.suffix != ".pyc":
            (site / file.parent).mkdir(parents=True, exist_ok=True)
            (site / file).symlink_to(str(distribution.locate_file(file)))


def in_the_container(installed: set[str]) -> set[str]:
    """Return what a worker has before it installs: Beam with what only Beam needs, and torch.

    PyTorch's own index cannot be reached from everywhere, so that the torch of this machine is used
    in place of its CPU build.
    """
    from pipelines.dataflow.worker_packages import versions

    everything = {canonicalize_name(found.name) for found in metadata.distributions()}
    of_torch = {name for name in everything if name.startswith(("nvidia", "cuda", "triton"))}
    return (versions("apache-beam[gcp]").keys() | {"torch"} | of_torch) - (installed - {"torch"})


@pytest.fixture
def worker(staged: dict[str, Path], tmp_path: Path) -> Path:
    """The Python of an environment in which the staged files were installed as on a worker."""
    place = tmp_path / "worker"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(place)], check=True)
    (site,) = place.glob("lib/*/site-packages")
    for name in in_the_container(set(pins())):
        link(name, site)
    lines = staged["requirements.txt"].read_text().splitlines()
    kept = [line for line in lines if not line.startswith(("--extra-index-url", "torch=="))]
    assert len(lines) - len(kept) == 2
    requirements = tmp_path / "without_torch.txt"
    requirements.write_text("\n".join([*kept, f"torch=={metadata.version('torch')}"]))
    wheel = tmp_path / wheel_name()
    wheel.write_bytes(staged[wheel_name()].read_bytes())
    python = place / "bin" / "python"
    install = [str(UV), "pip", "install", "--quiet", "--python", str(python)]
    subprocess.run([*install, "-r", str(requirements)], check=True)
    subprocess.run([*install, str(wheel)], check=True)
    return python


# Imports modules, and runs a batch in this process.
SCORE = """
import importlib
import sys
from pipelines import batch_local, command
print(command.__file__, flush=True)
for name in sys.argv[1].split():
    importlib.import_module(name)
command.run_and_exit(batch_local.COMMAND, sys.argv[2:])
"""
WORKS = ("cloud", "common", "model_handlers", "pipelines", "transforms")


def test_a_worker_that_installed_the_staged_files_runs_the_pipelines(
    worker: Path, tmp_path: Path, example: Path
) -> None:
    """torch and Beam are those of this machine; all else comes from the package index."""
    rows = ["--input_files", str(example / "transactions.parquet"), "--output_files", "scored"]
    model = ["--model", str(example / "model"), "--id_column", "transaction_id"]
    names = [name for package in WORKS for name in module_names(package)]
    done = subprocess.run(
        [str(worker), "-c", SCORE, " ".join(names), *rows, *model, "--json_summary"],
        cwd=tmp_path,
        env={key: value for key, value in os.environ.items() if key != "PYTHONPATH"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    place, report = done.stdout.split("\n", 1)
    assert Path(place).is_relative_to(worker.parent.parent)
    found = json.loads(report)
    assert found["rows_in"] == found["rows_scored"] + found["rows_dead_lettered"] > 0
