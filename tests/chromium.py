"""Opens a page in headless Chromium, and returns what a script finds in it."""

import html
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

_WATCH = """
<script>
window.failures = [];
onerror = (message) => failures.push(String(message));
console.error = (...message) => failures.push(message.join(" "));
</script>
"""
_LOOK = """
<script>
addEventListener("load", () => setTimeout(() => {
  const charts = [...document.querySelectorAll(".chart")];
  const drawn = charts.filter((one) => one.querySelector("svg g path")).length;
  const cells = [...document.querySelectorAll("tr")].map(
    (row) => [...row.children].map((cell) => cell.innerText));
  const found = {charts: charts.length, drawn, errors: window.failures, rows: cells,
                 black: document.querySelectorAll(".role-legend-symbol [fill=black]").length,
                 scripts: document.scripts.length, images: document.images.length};
  document.title = JSON.stringify(found);
}, 0));
</script>
"""


def look_at(page: str, path: Path) -> dict[str, Any]:
    """Open a page, and return its charts, the rows of its tables, and its errors.

    Args:
        page: The HTML.
        path: A file for the page.
    """
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("needs Chromium")
    body, _, end = page.replace("<head>", f"<head>{_WATCH}", 1).rpartition("</body>")
    path.write_text(f"{body}{_LOOK}</body>{end}")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=20000"]
    done = subprocess.run(
        [browser, *flags, "--dump-dom", f"file://{path}"],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    title = done.stdout.partition("<title>")[2].partition("</title>")[0]
    found: dict[str, Any] = json.loads(html.unescape(title))
    return found
