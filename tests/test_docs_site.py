"""The pages hang together: links lead somewhere, every page can be reached, README is short."""

import re
from pathlib import PurePosixPath

import pytest
import yaml
from docs_pages import PAGES, ROOT

# GitHub's and the site's way to make an anchor of a heading.
ANCHOR = re.compile(r"[^\w\- ]")


def anchors(text: str) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {ANCHOR.sub("", heading.lower()).replace(" ", "-") for heading in headings}


def links(text: str) -> list[str]:
    prose = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    return [link for link in re.findall(r"\]\(([^)\s]+)\)", prose) if "://" not in link]


def target(page: str, link: str) -> tuple[str, str]:
    """The path that a link of a page leads to, from the root, and its anchor."""
    path, _, anchor = link.partition("#")
    parts: list[str] = []
    for part in (PurePosixPath(page).parent / path).parts if path else PurePosixPath(page).parts:
        parts = parts[:-1] if part == ".." else [*parts, part]
    return "/".join(parts), anchor


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    for link in links(PAGES[page]):
        path, anchor = target(page, link)
        assert (ROOT / path).exists(), link
        if anchor:
            assert anchor in anchors(PAGES[path]), link


def test_every_page_can_be_reached_from_the_readme() -> None:
    reached, waiting = set(), ["README.md"]
    while waiting:
        page = waiting.pop()
        if page in PAGES and page not in reached:
            reached.add(page)
            waiting += [target(page, link)[0] for link in links(PAGES[page])]
    assert reached == set(PAGES)


def test_every_page_is_in_the_navigation() -> None:
    text = (ROOT / "mkdocs.yml").read_text()
    config = yaml.safe_load(re.sub(r"!!python/name:\S+", "''", text))
    named, waiting = set(), [config["nav"]]
    while waiting:
        item = waiting.pop()
        if isinstance(item, str):
            named.add(f"docs/{item}")
        else:
            waiting += item.values() if isinstance(item, dict) else item
    assert named == {page for page in PAGES if page.startswith("docs/")}


def test_the_readme_is_short() -> None:
    assert len(PAGES["README.md"].splitlines()) <= 150
    assert len(PAGES["README.md"].split()) <= 1_200
