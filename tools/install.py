"""Makes a virtual environment of the Python that runs this, and installs into it with uv.

python3.11 tools/install.py --torch cpu .venv -c constraints.txt -e '.[dev]'

The last words are those of `pip install`. Where uv is not on the path, pip fetches the version that
constraints.txt pins into .uv. Where that fails, pip installs everything.
TORCH_INDEX is the index of torch's CPU build.
"""

import argparse
import ast
import os
import re
import shutil
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from http.client import HTTPException
from pathlib import Path

TORCH_INDEX = "https://download.pytorch.org/whl/cpu"
PATIENCE_S = 5
# uv does not read pip's configuration.
FROM_PIP = {"index-url": "UV_DEFAULT_INDEX", "cert": "SSL_CERT_FILE"}


def say(text: str) -> None:
    """Prints a line at once, in its place among those of uv and pip."""
    print(text, flush=True)


def pinned(package: str) -> str:
    """A package -> its requirement in constraints.txt, as in `torch==2.13.0`."""
    lines = Path("constraints.txt").read_text().splitlines()
    return next(line for line in lines if line.startswith(f"{package}=="))


def runs(program: str | Path) -> bool:
    """Whether a program can be run; pyenv puts names on the path that cannot."""
    try:
        return (
            subprocess.run([program, "--version"], capture_output=True, check=False).returncode == 0
        )
    except OSError:
        return False


def pip_settings(pip: list[str]) -> dict[str, str]:
    """How pip runs -> the variables that say to uv what pip is configured to use."""
    done = subprocess.run([*pip, "config", "list"], capture_output=True, text=True, check=False)
    settings = {}
    for section in ("global", "install", ":env:"):
        for key, variable in FROM_PIP.items():
            found = re.search(rf"^{section}\.{key}=(.*)$", done.stdout, re.MULTILINE)
            if found:
                settings[variable] = str(ast.literal_eval(found[1]))
    return settings


def find_uv(pip: list[str]) -> str:
    """How pip runs -> the path of uv, which pip fetches where it is missing; '' if that fails."""
    found = shutil.which("uv")
    if found and runs(found):
        return found
    requirement = pinned("uv")
    folder = Path(".uv", requirement)
    uv = (folder / "bin" / "uv").absolute()
    if runs(uv):
        return str(uv)
    say(f"fetching {requirement} into .uv")
    # A wheel or nothing: its source takes a compiler of Rust, and longer than pip would.
    options = ["--only-binary", ":all:", "--no-deps", "--upgrade", "--target", str(folder)]
    done = subprocess.run(
        [*pip, "install", "--quiet", *options, requirement],
        capture_output=True,
        text=True,
        check=False,
    )
    if runs(uv):
        return str(uv)
    reason = (done.stderr.strip() or "it does not run here").splitlines()[-1]
    say(f"uv cannot be fetched ({reason}); pip installs instead, which takes minutes")
    return ""


def why_not(index: str) -> str:
    """The address of an index -> why torch cannot be installed from it, '' if it can."""
    reason = f"no answer within {PATIENCE_S} s"

    def ask() -> None:
        nonlocal reason
        try:
            with urllib.request.urlopen(f"{index}/torch/", timeout=PATIENCE_S):
                reason = ""
        except TimeoutError:
            pass
        except urllib.error.HTTPError as error:
            reason = str(error)
        except (OSError, ValueError, HTTPException) as error:
            reason = str(getattr(error, "reason", error))

    # Beside this thread, as no timeout ends a search for the address of a name.
    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(PATIENCE_S)
    return reason


class Installer:
    """Installs into the environment of a folder, with uv if there is one."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.pip = [str(folder / "bin" / "python"), "-m", "pip", "--disable-pip-version-check"]
        self.uv = find_uv(self.pip)
        self.environment = pip_settings(self.pip) | os.environ

    def install(self, *words: str, index: str = "") -> None:
        """Words of `pip install` -> what they name is installed, of an index or the configured one.

        Raises CalledProcessError when pip cannot do it either; the reason is on stderr.
        """
        if self.uv:
            command = [self.uv, "pip", "install", "--quiet", "--python", str(self.folder)]
            chosen = ["--default-index", index] if index else []
            done = subprocess.run([*command, *chosen, *words], env=self.environment, check=False)
            if not done.returncode:
                return
            say("uv cannot install this; pip tries it, which takes minutes")
        chosen = ["--index-url", index] if index else []
        subprocess.run([*self.pip, "install", "--quiet", *chosen, *words], check=True)

    def install_cpu_torch(self) -> None:
        """Torch's CPU build is installed, unless its index cannot be used: then a line says so."""
        torch = pinned("torch")
        # In an environment that is kept; a local version follows that of the pin.
        if any(self.folder.glob(f"lib/*/site-packages/{torch.replace('==', '-')}*.dist-info")):
            return
        index = os.environ.get("TORCH_INDEX", TORCH_INDEX).rstrip("/")
        reason = why_not(index)
        if reason:
            say(
                f"torch's CPU build is not available at {index} ({reason}); "
                "installing the ordinary build, several GB on Linux"
            )
        else:
            # The index has old versions of other packages as well: of it, torch alone.
            self.install("--no-deps", torch, index=index)


def disk_use(folder: Path) -> str:
    """A folder -> what it takes of the disk, as in `1.4 GB`."""
    paths = (Path(parent, name) for parent, _, names in os.walk(folder) for name in names)
    size = sum(path.lstat().st_blocks * 512 for path in paths)
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"


def main() -> int:
    """Makes the environment that the command line names, and prints its size."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--torch", choices=("cpu", "cuda"), help="its build, if it is installed")
    parser.add_argument("--keep", action="store_true", help="update what is in the folder")
    parser.add_argument("folder", type=Path)
    parser.add_argument("words", nargs=argparse.REMAINDER, help="of `pip install`")
    options = parser.parse_args()
    say(f"{'updating' if options.keep else 'making'} {options.folder}")
    try:
        clear = [] if options.keep else ["--clear"]
        subprocess.run([sys.executable, "-m", "venv", *clear, str(options.folder)], check=True)
        installer = Installer(options.folder)
        if options.torch == "cpu":
            installer.install_cpu_torch()
        installer.install(*options.words)
    except subprocess.CalledProcessError as error:
        return error.returncode
    except KeyboardInterrupt:
        return 130
    say(f"{options.folder}: {disk_use(options.folder)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
