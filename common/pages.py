"""The pages of the operating guide, which errors lead to.

A page is named by a short code, the name of its file in docs/operate. The pages are part of the
wheel, so that `millrace explain CODE` prints them without a checkout.
"""

from __future__ import annotations

from pathlib import Path

from common.command_names import as_typed
from common.errors import MillraceError, UsageError, suggest

# The address of the published documentation, without a slash at its end. Empty as long as it is not
# published: errors then name the file.
SITE = ""
_ROOT = Path(__file__).parent.parent
# The second one exists in an installed wheel: setup.py copies the pages there.
_FOLDERS = (_ROOT / "docs" / "operate", _ROOT / "millrace" / "operate")


def address(code: str) -> str:
    """Return the address of a page, or its path in the repository if the site is not published."""
    return f"{SITE}/operate/{code}.html" if SITE else f"docs/operate/{code}.md"


def codes() -> list[str]:
    """Return the codes of all pages, sorted. The list is empty if the pages are not installed."""
    found = {path.stem for folder in _FOLDERS for path in folder.glob("*.md")}
    return sorted(found - {"index"})


def read_page(code: str) -> str:
    """Return the Markdown of a page.

    Raises:
        UsageError: There is no page with this code.
    """
    if code not in codes():
        raise UsageError(
            f"unknown code {code!r}{suggest(code, codes())}; choose from {', '.join(codes())}"
        )
    path = next(path for folder in _FOLDERS if (path := folder / f"{code}.md").exists())
    return path.read_text()


def titles() -> list[tuple[str, str]]:
    """Return the code and the title of each page."""
    return [(code, read_page(code).partition("\n")[0].removeprefix("# ")) for code in codes()]


def error_line(error: MillraceError) -> str:
    """Return the line that a command prints for an error.

    It ends with the page that explains the error, unless the message says everything.
    """
    if not error.page:
        return f"error: {error}"
    explain = as_typed("millrace explain")
    return f"error: {error} [see {address(error.page)}, or run: {explain} {error.page}]"
