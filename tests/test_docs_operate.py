"""The messages that the pages for operators quote are those that the code writes."""

import ast
import re
from collections.abc import Iterator

from docs_pages import PAGES, ROOT

PRODUCT = (
    *("cloud", "common", "dags", "millrace", "model_handlers"),
    *("pipelines", "resources", "scale_tests", "serving", "transforms"),
)
# Messages of Google's services.
GOOGLES = ("already an active job named", "failed to install required packages")
# Quotes that start with these words are commands, flags or names.
OTHER = re.compile(r"(python|make|gcloud|bq|millrace|pip|export|curl|torch|SELECT|DELETE)\b|--")


def strings() -> Iterator[str]:
    """Yield every string of the product, with a zero character for each value in it."""
    for package in PRODUCT:
        for path in sorted((ROOT / package).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.JoinedStr):
                    parts = (p.value if isinstance(p, ast.Constant) else "\0" for p in node.values)
                    yield "".join(map(str, parts))
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    yield node.value


def quotes(page: str) -> list[str]:
    """Return the messages that a page quotes: code of several words in its prose."""
    prose = re.sub(r"^```.*?^```", "", PAGES[page], flags=re.DOTALL | re.MULTILINE)
    found = (" ".join(quote.split()) for quote in re.findall(r"`([^`]+)`", prose))
    return [quote for quote in found if quote.count(" ") > 1 and not OTHER.match(quote)]


def test_quoted_messages_exist() -> None:
    text = "\n".join(strings())
    found = [
        (page, quote)
        for page in PAGES
        if page.startswith("docs/operate/")
        for quote in quotes(page)
    ]
    assert len(found) > 30
    # Three dots, numbers and words in capitals stand for values.
    unknown = [
        (page, quote)
        for page, quote in found
        for part in re.split(r"\.\.\.|\b[A-Z_]{2,}\b|\d+", quote)
        if quote not in GOOGLES and part.strip(" ,:;%") not in text
    ]
    assert unknown == []
