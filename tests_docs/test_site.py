"""The site that `make docs` built, in Chromium: light and dark, narrow and wide."""

import functools
import os
import re
import shutil
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, sync_playwright

SITE = Path(__file__).parent.parent / "build/site"
PAGES = sorted(str(path.relative_to(SITE)) for path in SITE.rglob("*.html"))
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
NARROW, WIDE = 400, 1300

if CHROMIUM is None and not os.environ.get("CI"):
    pytest.skip("needs Chromium", allow_module_level=True)


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(scope="session")
def site() -> Iterator[str]:
    """The address of the site."""
    handler = functools.partial(Quiet, directory=str(SITE))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/"
        server.shutdown()


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    assert CHROMIUM, "install Chromium: apt-get install chromium"
    with sync_playwright() as playwright:
        # As root, Chromium runs only without its sandbox.
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="session", params=[("light", WIDE), ("dark", NARROW)], ids=str)
def context(browser: Browser, request: pytest.FixtureRequest) -> Iterator[BrowserContext]:
    scheme, width = request.param
    size = {"width": width, "height": 900}
    with browser.new_context(color_scheme=scheme, viewport=size) as context:
        yield context


@pytest.mark.parametrize("name", PAGES)
def test_a_page_shows_itself_without_errors_or_other_hosts(
    site: str, context: BrowserContext, name: str
) -> None:
    faults: list[str] = []
    with context.new_page() as page:
        page.on("console", lambda message: faults.append(f"console: {message.text}"))
        page.on("pageerror", lambda error: faults.append(f"error: {error}"))
        page.on("request", lambda sent: faults.append(f"request: {sent.url}"))
        page.on("response", lambda got: faults.append(f"response: {got.status} {got.url}"))
        page.goto(site + name)
        for diagram in page.locator(".mermaid").all():
            diagram.and_(page.locator("div")).wait_for()
            box = diagram.bounding_box()
            assert box is not None
            assert box["height"] > 50
        page.wait_for_load_state("networkidle" if page.locator(".mermaid").count() else "load")
        assert page.locator("h1").first.is_visible()
        # Nothing makes the page wider than the screen.
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
        dark = page.evaluate("matchMedia('(prefers-color-scheme: dark)').matches")
        assert is_light(page) != dark
    good = re.compile(rf"request: {site}|response: [23]..")
    assert [fault for fault in faults if not good.match(fault)] == []


def is_light(page: Page) -> bool:
    """Return whether the background of a page is light."""
    color = page.evaluate("getComputedStyle(document.body).backgroundColor")
    numbers = [float(part) for part in color.partition("(")[2].rstrip(")").split(",")[:3]]
    return sum(numbers) > 3 * 128


def test_links_lead_to_pages_and_headings() -> None:
    """The pages of the API have links that no Markdown file contains."""
    texts = {name: (SITE / name).read_text() for name in PAGES}
    ids = {name: set(re.findall(r'\bid="?([^"\s>]+)', text)) for name, text in texts.items()}
    broken = []
    for name, text in texts.items():
        for link in set(re.findall(r'<a\b[^>]*\bhref="?([^"\s>]*)', text)):
            path, _, anchor = link.partition("#")
            to = os.path.normpath(Path("/", name).parent / path)[1:] if path else name
            if "://" not in link and (to not in ids or (anchor and anchor not in ids[to])):
                broken.append((name, link))
    assert broken == []


def test_search_finds_a_flag(site: str, browser: Browser) -> None:
    with browser.new_context(viewport={"width": WIDE, "height": 900}) as context:
        page = context.new_page()
        page.goto(site + "index.html", wait_until="networkidle")
        page.keyboard.press("Control+k")
        page.keyboard.type("max_dead_letter_share")
        page.get_by_text("TooManyDeadLetters").wait_for(timeout=20_000)
