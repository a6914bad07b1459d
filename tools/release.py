"""Checks the changelog, builds the packages of a release, and tries the wheel in a new environment.

python tools/release.py 0.1.0 --dry-run

Without --dry-run, it also sets the tag. It never pushes or uploads anything.
"""

import argparse
import datetime
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
import zipfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parent.parent
DIST = ROOT / "dist"
TOOLS = ROOT / ".release"
# Source: keepachangelog.com, 1.1.0.
KINDS = ("Added", "Changed", "Deprecated", "Removed", "Fixed", "Security")
_VERSION = re.compile(r"\d+\.\d+\.\d+((a|b|rc)\d+)?")
_HEADING = re.compile(r"## \[(?P<version>[^\]]+)\](?: - (?P<date>\S+))?")


class ReleaseError(Exception):
    """A release is not possible. The message is one line."""


def sections(text: str) -> dict[str, tuple[str | None, list[str]]]:
    """Return the sections of a changelog.

    Args:
        text: The changelog.

    Returns:
        For each version its date, None if the heading has none, and the lines of its section.

    Raises:
        ReleaseError: A heading does not have the form of Keep a Changelog.
    """
    found: dict[str, tuple[str | None, list[str]]] = {}
    version = None
    for number, line in enumerate(text.splitlines(), 1):
        if line.startswith("## "):
            heading = _HEADING.fullmatch(line)
            if heading is None:
                expected = "## [Unreleased] or ## [1.2.3] - 2026-01-31"
                raise ReleaseError(f"CHANGELOG.md:{number}: expected {expected}, got {line!r}")
            version = heading["version"]
            found[version] = (heading["date"], [])
        elif line.startswith("### ") and line.removeprefix("### ") not in KINDS:
            raise ReleaseError(
                f"CHANGELOG.md:{number}: expected one of {', '.join(KINDS)}, got {line!r}"
            )
        elif version is not None:
            found[version][1].append(line)
    return found


def check_changelog(text: str, version: str, *, dry_run: bool) -> str:
    """Check the section of a version, and return a line about it.

    Args:
        text: The changelog.
        version: The version.
        dry_run: Whether the section may still be named Unreleased.

    Raises:
        ReleaseError: The section is missing, has no date or lists no change.
    """
    known = sections(text)
    if version not in known:
        if dry_run and any(
            line.startswith("- ") for line in known.get("Unreleased", (None, []))[1]
        ):
            return f"CHANGELOG.md: [Unreleased] would become [{version}]"
        raise ReleaseError(
            f"CHANGELOG.md has no section for {version}: expected ## [{version}] - YYYY-MM-DD"
        )
    date, lines = known[version]
    try:
        datetime.date.fromisoformat(date or "")
    except ValueError as error:
        raise ReleaseError(
            f"CHANGELOG.md: expected ## [{version}] - YYYY-MM-DD, got {date or 'no date'}"
        ) from error
    if not any(line.startswith("- ") for line in lines):
        raise ReleaseError(f"CHANGELOG.md: the section of {version} lists no change")
    return f"CHANGELOG.md: {version}, dated {date}"


def check_version(version: str) -> None:
    """Raise ReleaseError unless a version is valid and the one in pyproject.toml."""
    if not _VERSION.fullmatch(version):
        raise ReleaseError(f"VERSION must look like 0.1.0 or 0.2.0rc1, got {version}")
    own = project_version()
    if own != version:
        raise ReleaseError(f"VERSION is {version}, but pyproject.toml says {own}: change one")


def project_version() -> str:
    """Return the version in pyproject.toml."""
    return str(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"])


def git(*words: str) -> str:
    """Run a git command and return what it prints. Raise ReleaseError if it fails."""
    done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ReleaseError(f"git {' '.join(words)}: {done.stderr.strip()}")
    return done.stdout.strip()


def check_tree(version: str) -> None:
    """Raise ReleaseError if the tag of a version exists or a file is not committed."""
    if git("tag", "--list", f"v{version}"):
        raise ReleaseError(f"the tag v{version} already exists: choose another VERSION")
    if changed := git("status", "--porcelain"):
        raise ReleaseError(
            f"{len(changed.splitlines())} files are not committed: commit them first"
        )


def run(*words: str | Path, cwd: Path = ROOT, env: dict[str, str] | None = None) -> None:
    """Print and run a command. Raise ReleaseError if it fails."""
    print(f"$ {' '.join(map(str, words))}", flush=True)
    done = subprocess.run(words, cwd=cwd, env=env, check=False)
    if done.returncode:
        raise ReleaseError(f"{Path(words[0]).name} ended with exit code {done.returncode}")


def build() -> tuple[Path, Path]:
    """Build the wheel and the source archive, check them with twine, and return their paths."""
    shutil.rmtree(DIST, ignore_errors=True)
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", DIST, ROOT)
    run(sys.executable, "tools/install.py", TOOLS, "--no-deps", "-r", "release.txt")
    (wheel,), (archive,) = DIST.glob("*.whl"), DIST.glob("*.tar.gz")
    run(TOOLS / "bin" / "twine", "check", "--strict", wheel, archive)
    return wheel, archive


def try_wheel(wheel: Path, version: str) -> None:
    """Run the demo of a wheel in a new environment, outside of the checkout."""
    with tempfile.TemporaryDirectory(prefix="millrace-release-") as folder:
        place = Path(folder)
        environment = place / "venv"
        run(
            *(sys.executable, "tools/install.py", "--torch", os.environ.get("TORCH") or "cpu"),
            *(environment, "-c", "constraints.txt", f"{wheel}[plots]"),
        )
        # The commands must not use anything from the checkout.
        clean = {n: v for n, v in os.environ.items() if not n.startswith("PYTHON")}
        command = environment / "bin" / "millrace"
        done = subprocess.run(
            [command, "--version"],
            cwd=place,
            env=clean,
            capture_output=True,
            text=True,
            check=False,
        )
        if version not in done.stdout:
            raise ReleaseError(f"expected millrace --version to print {version}, got {done.stdout}")
        run(command, "demo", cwd=place, env=clean)


def describe(wheel: Path, archive: Path) -> str:
    """Return lines about what the packages hold, their sizes and their checksums."""
    names = [name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name]
    folders = Counter(name.split("/")[0] for name in names)
    lines = [f"{wheel.name} holds {', '.join(f'{n} ({c} files)' for n, c in folders.items())}"]
    for path in (wheel, archive):
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        lines.append(f"sha256 {digest}  {path.name}  {path.stat().st_size:,} bytes")
    return "\n".join(lines)


def release(version: str, *, dry_run: bool) -> None:
    """Check, build and try a release, and set its tag unless `dry_run`."""
    check_version(version)
    print(check_changelog((ROOT / "CHANGELOG.md").read_text(), version, dry_run=dry_run))
    if not dry_run:
        check_tree(version)
    wheel, archive = build()
    try_wheel(wheel, version)
    print(describe(wheel, archive))
    if dry_run:
        print(f"dry run: no tag was set; run make release VERSION={version} to set v{version}")
        return
    git("tag", "--annotate", f"v{version}", "--message", f"Millrace {version}")
    print(f"the tag v{version} is set; to publish: git push origin v{version}, twine upload dist/*")


def main(argv: Sequence[str]) -> int:
    """Run the command line and return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("version", nargs="?", default=project_version())
    parser.add_argument("--dry-run", action="store_true")
    args = parser.parse_args(argv)
    try:
        release(args.version, dry_run=args.dry_run)
    except ReleaseError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
