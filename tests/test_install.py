"""What `make setup` installs from a local index: which build of torch, and with uv or pip."""

import os
import shutil
import socket
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
from source_tree import ROOT

UV = Path(sys.executable).parent / "uv"
SETUP = ("--torch", "cpu", "env", "-c", "constraints.txt", "torch")


def wheel(folder: Path, name: str, version: str, needs: str = "", program: str = "") -> None:
    """Write a wheel without modules, with an optional requirement and an optional program."""
    files = {"METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"}
    if needs:
        files["METADATA"] += f"Requires-Dist: {needs}\n"
    files["WHEEL"] = "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    paths = {f"{name}-{version}.dist-info/{file}": text for file, text in files.items()}
    if program:
        paths[f"{name}-{version}.data/scripts/{name}"] = program
    record = f"{name}-{version}.dist-info/RECORD"
    paths[record] = "".join(f"{path},,\n" for path in (*paths, record))
    folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as archive:
        for path, text in paths.items():
            entry = zipfile.ZipInfo(path)
            entry.external_attr = 0o100755 << 16
            archive.writestr(entry, text)


class Index:
    """A local package index that serves folders of wheels and records the requested paths."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.requested: list[str] = []
        index = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                index.requested.append(self.path)
                self.answer(index.folder / self.path.strip("/").replace("%2B", "+"))

            def do_HEAD(self) -> None:
                self.send_error(405)

            def answer(self, path: Path) -> None:
                if not path.exists():
                    self.send_error(404)
                    return
                page = "".join(f'<a href="{file.name}">{file.name}</a>' for file in path.glob("*"))
                body = path.read_bytes() if path.is_file() else page.encode()
                self.send_response(200)
                self.send_header("Content-Type", "text/html" if path.is_dir() else "binary/x-zip")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_port}"
        Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def index(tmp_path: Path) -> Iterator[Index]:
    """An index like torch's own under /cpu, and one with all packages except uv under /all."""
    wheel(tmp_path / "index/cpu/torch", "torch", "2.13.0+cpu")
    wheel(tmp_path / "index/cpu/torch", "torch", "2.14.0+cpu")
    wheel(tmp_path / "index/all/torch", "torch", "2.13.0", needs="cudart")
    wheel(tmp_path / "index/all/cudart", "cudart", "13.0.0")
    index = Index(tmp_path / "index")
    yield index
    index.server.shutdown()
    index.server.server_close()


class Machine:
    """A checkout on a machine whose pip is configured to use an index."""

    def __init__(self, folder: Path, index: Index) -> None:
        self.folder = folder
        (folder / "bin").mkdir()
        (folder / "constraints.txt").write_text("torch==2.13.0\nuv==0.13.9\n")
        self.environment = {
            "HOME": str(folder),
            "PATH": str(folder / "bin"),
            "PIP_CONFIG_FILE": os.devnull,
            "PIP_INDEX_URL": f"{index.address}/all/",
            "TORCH_INDEX": f"{index.address}/cpu",
        }

    def install(self, *words: str) -> list[str]:
        """Run the command line, check that it succeeds, and return the printed lines."""
        done = self.run(*words)
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""
        return done.stdout.splitlines()

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, str(ROOT / "tools" / "install.py"), *words],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
        )

    def installed(self) -> set[str]:
        """Return the packages in the environment, as name-version, without pip and setuptools."""
        found = self.folder.glob("env/lib/python*/site-packages/*.dist-info")
        names = {path.name.removesuffix(".dist-info") for path in found}
        return {name for name in names if not name.startswith(("pip-", "setuptools-"))}

    def installers(self) -> set[str]:
        """Return the programs that installed torch."""
        found = self.folder.glob("env/lib/python*/site-packages/torch-*.dist-info/INSTALLER")
        return {path.read_text().strip() for path in found}


@pytest.fixture
def machine(tmp_path: Path, index: Index) -> Machine:
    """A machine without uv."""
    return Machine(tmp_path, index)


@pytest.fixture
def machine_with_uv(machine: Machine) -> Machine:
    (machine.folder / "bin" / "uv").symlink_to(UV)
    return machine


@pytest.fixture
def refusing() -> Iterator[str]:
    """The address of an index that takes no connections."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{bound.getsockname()[1]}"


@pytest.fixture
def silent() -> Iterator[str]:
    """The address of an index that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def test_the_cpu_build_comes_from_its_own_index(
    machine_with_uv: Machine, index: Index, refusing: str
) -> None:
    first, last = machine_with_uv.install(*SETUP)
    assert first == "creating env"
    assert last.startswith("env: ")
    assert last.endswith(" MB")
    # 2.13.0+cpu satisfies `torch==2.13.0`, and the ordinary 2.13.0 does not replace it.
    assert machine_with_uv.installed() == {"torch-2.13.0+cpu"}
    assert machine_with_uv.installers() == {"uv"}
    # An update keeps torch, and does not contact its index.
    wheel(index.folder / "all/more", "more", "1.0")
    machine_with_uv.environment["TORCH_INDEX"] = refusing
    assert machine_with_uv.install("--keep", *SETUP, "more")[0] == "updating env"
    assert machine_with_uv.installed() == {"torch-2.13.0+cpu", "more-1.0"}
    # Without --keep the environment is emptied. The CUDA build does not come from torch's index.
    index.requested.clear()
    machine_with_uv.environment["TORCH_INDEX"] = f"{index.address}/cpu"
    assert len(machine_with_uv.install("--torch", "cuda", *SETUP[2:])) == 2
    assert machine_with_uv.installed() == {"torch-2.13.0", "cudart-13.0.0"}
    assert index.requested
    assert not [path for path in index.requested if path.startswith("/cpu")]


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("silent", "no answer within 5 s"),
        ("refusing", "Connection refused"),
        ("missing", "HTTP Error 404: Not Found"),
    ],
)
def test_without_that_index_the_ordinary_build_is_installed_and_one_line_says_so(
    machine_with_uv: Machine,
    index: Index,
    request: pytest.FixtureRequest,
    address: str,
    reason: str,
) -> None:
    where = f"{index.address}/nothing" if address == "missing" else request.getfixturevalue(address)
    machine_with_uv.environment["TORCH_INDEX"] = where
    _, line, _ = machine_with_uv.install(*SETUP)
    assert line.startswith(f"torch's CPU build is not available at {where} (")
    assert reason in line
    assert line.endswith("; installing the ordinary build, which takes several GB on Linux")
    assert machine_with_uv.installed() == {"torch-2.13.0", "cudart-13.0.0"}


def test_pip_fetches_the_pinned_uv_once_if_uv_is_missing(machine: Machine, index: Index) -> None:
    # pyenv puts such programs on the path.
    shim = machine.folder / "bin" / "uv"
    shim.write_text("#!/bin/sh\nexit 127\n")
    shim.chmod(0o755)
    for version in ("0.13.9", "0.13.10"):
        wheel(index.folder / "all/uv", "uv", version, program=f'#!/bin/sh\nexec {UV} "$@"\n')
    assert machine.install(*SETUP)[1:-1] == ["fetching uv==0.13.9 into .uv"]
    assert machine.installed() == {"torch-2.13.0+cpu"}
    assert machine.installers() == {"uv"}
    assert machine.install("env", "-c", "constraints.txt", "torch")[1:-1] == []
    assert machine.installed() == {"torch-2.13.0", "cudart-13.0.0"}


def test_pip_installs_if_it_cannot_fetch_uv(machine: Machine) -> None:
    assert machine.install(*SETUP)[1:-1] == [
        "fetching uv==0.13.9 into .uv",
        "cannot fetch uv (ERROR: No matching distribution found for uv==0.13.9); "
        "installing with pip, which may take minutes",
    ]
    assert machine.installed() == {"torch-2.13.0+cpu"}
    assert machine.installers() == {"pip"}


def test_a_package_that_neither_can_install_is_an_error(machine_with_uv: Machine) -> None:
    done = machine_with_uv.run("env", "unheard-of")
    assert done.returncode != 0
    assert done.stdout.splitlines() == [
        "creating env",
        "uv failed; trying again with pip, which may take minutes",
    ]
    assert "No matching distribution found for unheard-of" in done.stderr


def make(folder: Path, *words: str) -> str:
    """Return what make would do for a command line, or its error."""
    environment = {name: value for name, value in os.environ.items() if name != "TORCH"}
    done = subprocess.run(
        ["make", "--dry-run", *words],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout + done.stderr


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder with the files that make checks, all of them older than the environment."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt", "setup.py"):
        shutil.copy(ROOT / name, tmp_path)
        os.utime(tmp_path / name, (1, 1))
    (tmp_path / ".venv").mkdir()
    return tmp_path


@pytest.mark.parametrize(
    ("built", "words", "does"),
    [
        ("", (), "--torch cpu  .venv"),
        ("", ("TORCH=cuda",), "--torch cuda  .venv"),
        ("cpu", (), "Nothing to be done"),
        ("cuda", (), "Nothing to be done"),
        ("cuda", ("TORCH=cuda",), "Nothing to be done"),
        ("cuda", ("TORCH=cpu",), "--torch cpu  .venv"),
        ("cuda", ("--assume-new=constraints.txt",), "--torch cuda --keep .venv"),
        ("cpu", ("--assume-new=constraints.txt", "TORCH=cuda"), "--torch cuda  .venv"),
        ("cpu", ("TORCH=gpu",), "*** TORCH='gpu': expected one of cpu cuda.  Stop.\n"),
    ],
)
def test_the_build_of_torch_stays_until_another_is_chosen(
    checkout: Path, built: str, words: tuple[str, ...], does: str
) -> None:
    if built:
        (checkout / ".venv" / ".installed").write_text(f"{built}\n")
    printed = make(checkout, "setup", *words)
    assert does in printed
    assert ("Nothing" in printed) == ("Nothing" in does)
    assert ("tools/install.py" in printed) == ("--torch" in does)


def test_the_torch_of_an_image_does_not_change_the_environment(checkout: Path) -> None:
    (checkout / ".venv" / ".installed").write_text("cpu\n")
    printed = make(checkout, "image", "TORCH=cuda")
    assert "TORCH=cuda" in printed
    assert "tools/install.py" not in printed
    (checkout / ".venv" / ".installed").unlink()
    words = ("PIPELINE=batch_local", "BUCKET=b", "IMAGE=r/p/m", "TORCH=cuda")
    assert "--torch cpu  .venv" in make(checkout, "template", *words)
