"""The wheel and the sdist hold the packages and their files, and nothing else."""

import re
import tarfile
import zipfile
from pathlib import Path

from source_tree import ROOT, modules, shipped_packages


def shipped() -> set[str]:
    packages = shipped_packages()
    paths = [path for package in packages for path in modules(package)]
    paths += [ROOT / package / "py.typed" for package in packages]
    paths.append(ROOT / "examples" / "transactions" / "config.properties")
    paths += [ROOT / "common" / "html_pages" / name for name in ("embed.js", "style.css")]
    return {str(path.relative_to(ROOT)) for path in paths}


def operate_pages() -> set[str]:
    return {path.name for path in (ROOT / "docs" / "operate").glob("*.md")}


def test_the_wheel_holds_all_modules_and_types_and_no_tests(distribution: Path) -> None:
    (wheel,) = distribution.glob("*.whl")
    names = {n for n in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in n}
    assert names == shipped() | {f"millrace/operate/{name}" for name in operate_pages()}


def test_the_wheel_installs_the_command(distribution: Path) -> None:
    (wheel,) = distribution.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        (path,) = (name for name in archive.namelist() if name.endswith("entry_points.txt"))
        scripts = archive.read(path).decode()
    assert scripts.split("\n")[:2] == ["[console_scripts]", "millrace = millrace.__main__:main"]


def test_the_sdist_holds_everything_for_another_build(distribution: Path) -> None:
    (sdist,) = distribution.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.split("/", 1)[-1] for name in archive.getnames()}
    assert {"setup.py", "pyproject.toml", "LICENSE", "README.md"} | shipped() <= names
    assert {f"docs/operate/{name}" for name in operate_pages()} <= names


def test_every_direct_dependency_is_pinned() -> None:
    pinned = {
        line.split("==")[0].lower().replace("_", "-")
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if "==" in line
    }
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    wanted = {
        re.split(r"[<>=\[]", requirement)[0].lower() for group in groups for requirement in group
    }
    assert wanted <= pinned
    assert "torch==2.13.0" in (ROOT / "constraints.txt").read_text()
