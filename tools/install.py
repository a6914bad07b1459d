"""Creates a virtual environment for the Python that runs this script, and installs into it with uv.

python3.11 tools/install.py --torch cpu .venv -c constraints.txt -e '.[dev]'

The words after the folder are arguments of `pip install`. If uv is not on the path, pip fetches the
version that constraints.txt pins into .uv. If that fails too, pip installs everything. Set
TORCH_INDEX to install torch's CPU build from an index other than PyTorch's own.
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
    """Print a line at once, so that it appears in order with the output of uv and pip."""
    print(text, flush=True)


def pinned(package: str) -> str:
    """Return the requirement of a package in constraints.txt, for example `torch==2.13.0`."""
    lines = Path("constraints.txt").read_text().splitlines()
    return next(line for line in lines if line.startswith(f"{package}=="))


def runs(program: str | Path) -> bool:
    """Return whether a program runs. Some that pyenv puts on the path only print an error."""
    try:
        return (
            subprocess.run([program, "--version"], capture_output=True, check=False).returncode == 0
        )
    except OSError:
        return False


def pip_settings(pip: list[str]) -> dict[str, str]:
    """Return the variables that make uv use the configured index and certificates of pip.

    Args:
        pip: The command that runs pip.
    """
    done = subprocess.run([*pip, "config", "list"], capture_output=True, text=True, check=False)
    settings = {}
    for section in ("global", "install", ":env:"):
        for key, variable in FROM_PIP.items():
            found = re.search(rf"^{section}\.{key}=(.*)$", done.stdout, re.MULTILINE)
            if found:
                settings[variable] = str(ast.literal_eval(found[1]))
    return settings


def find_uv(pip: list[str]) -> str:
    """Return the path of uv, which pip fetches if it is missing, or '' if that fails.

    Args:
        pip: The command that runs pip.
    """
    found = shutil.which("uv")
    if found and runs(found):
        return found
    requirement = pinned("uv")
    folder = Path(".uv", requirement)
    uv = (folder / "bin" / "uv").absolute()
    if runs(uv):
        return str(uv)
    say(f"fetching {requirement} into .uv")
    # Building uv needs a Rust compiler, and takes longer than installing everything with pip.
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
    say(f"cannot fetch uv ({reason}); installing with pip, which may take minutes")
    return ""


def why_not(index: str) -> str:
    """Return why torch cannot be installed from an index, or '' if it can."""
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

    # A separate thread, because no timeout limits the lookup of a host name.
    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(PATIENCE_S)
    return reason


class Installer:
    """Installs packages into the environment in a folder, with uv or else with pip."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.pip = [str(folder / "bin" / "python"), "-m", "pip", "--disable-pip-version-check"]
        self.uv = find_uv(self.pip)
        self.environment = pip_settings(self.pip) | os.environ

    def install(self, *words: str, index: str = "") -> None:
        """Install packages.

        Args:
            *words: Arguments of `pip install`.
            index: The index to install from, by default the configured one.

        Raises:
            CalledProcessError: Both uv and pip failed. They print why.
        """
        if self.uv:
            command = [self.uv, "pip", "install", "--quiet", "--python", str(self.folder)]
            chosen = ["--default-index", index] if index else []
            done = subprocess.run([*command, *chosen, *words], env=self.environment, check=False)
            if not done.returncode:
                return
            say("uv failed; trying again with pip, which may take minutes")
        chosen = ["--index-url", index] if index else []
        subprocess.run([*self.pip, "install", "--quiet", *chosen, *words], check=True)

    def install_cpu_torch(self) -> None:
        """Install torch's CPU build, or only print a line if its index cannot be used."""
        torch = pinned("torch")
        # A kept environment may already have it, with or without a suffix such as +cpu.
        if any(self.folder.glob(f"lib/*/site-packages/{torch.replace('==', '-')}*.dist-info")):
            return
        index = os.environ.get("TORCH_INDEX", TORCH_INDEX).rstrip("/")
        reason = why_not(index)
        if reason:
            say(
                f"torch's CPU build is not available at {index} ({reason}); "
                "installing the ordinary build, which takes several GB on Linux"
            )
        else:
            # The index also holds old versions of other packages, so install only torch from it.
            self.install("--no-deps", torch, index=index)


def disk_use(folder: Path) -> str:
    """Return the disk space that a folder takes, for example `1.4 GB`."""
    paths = (Path(parent, name) for parent, _, names in os.walk(folder) for name in names)
    size = sum(path.lstat().st_blocks * 512 for path in paths)
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"


def main() -> int:
    """Create the environment that the command line names, print its size, return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument(
        "--torch", choices=("cpu", "cuda"), help="the build of torch to install, if any"
    )
    parser.add_argument(
        "--keep", action="store_true", help="update the folder instead of emptying it"
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("words", nargs=argparse.REMAINDER, help="arguments of `pip install`")
    options = parser.parse_args()
    say(f"{'updating' if options.keep else 'creating'} {options.folder}")
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
