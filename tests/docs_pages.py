"""The pages of the documentation, and the blocks of code in them."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
TOP = ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md")
PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text()
    for path in [*(ROOT / name for name in TOP), *sorted((ROOT / "docs").rglob("*.md"))]
}
VALUES = {
    "PROJECT": "my-project",
    "REGION": "us-central1",
    "BUCKET": "my-bucket",
    "MODEL": "gs://my-bucket/model/",
    "WORKER": "millrace-worker@my-project.iam.gserviceaccount.com",
    "REPOSITORY": "us-central1-docker.pkg.dev/my-project/millrace",
}


def filled(text: str) -> str:
    """Return the text with a value for each variable that the docs export."""
    return re.sub(r"\$(\w+)", lambda m: VALUES.get(m[1], m[0]), text)


def blocks(language: str) -> list[tuple[str, str]]:
    """Return the page and text of each fenced block of code in a language."""
    pattern = re.compile(rf"^```{language}\n(.*?)^```", re.DOTALL | re.MULTILINE)
    return [(page, block) for page, text in PAGES.items() for block in pattern.findall(text)]


def commands(program: str) -> Iterator[tuple[str, list[str]]]:
    """Yield the page and the arguments of each command in a block of shell code."""
    for page, block in blocks("(?:ba)?sh"):
        # What a here-document passes to a program is no command.
        script = re.sub(r"<<END\n.*?\nEND\n", "\n", block, flags=re.DOTALL)
        for line in filled(script.replace("\\\n", " ")).splitlines():
            words = line.strip().removeprefix(".venv/bin/")
            if words.startswith(f"{program} "):
                yield page, shlex.split(words.removeprefix(program), comments=True)


def section(page: str, heading: str) -> str:
    """Return the text of a page from a heading of the second level to the next one."""
    found = re.search(
        rf"^## {re.escape(heading)}\n(.*?)(?=^## |\Z)", PAGES[page], re.DOTALL | re.MULTILINE
    )
    assert found is not None, f"{page} has no section {heading}"
    return found[1]


def tables(text: str) -> list[str]:
    """Return the tables of a text, without surrounding white space."""
    return [table.strip() for table in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)]


def marked(page: str, name: str) -> str:
    """Return the table that follows a mark such as `<!-- table: roles -->`."""
    found = re.search(rf"<!-- table: {name} -->\n+((?:\|.*\n)+)", PAGES[page])
    assert found is not None, f"no table follows {name} in {page}"
    return found[1].strip()


def in_code(text: str) -> set[str]:
    """Return the texts between backticks."""
    return set(re.findall(r"`([^`\n]+)`", text))
