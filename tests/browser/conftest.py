"""A real browser, and what must hold on every page that it opens."""

import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest

from ..conftest import Running
from ..example.conftest import Example, example, server  # noqa: F401 # its fixtures
from ..servers import ServerUnavailableError

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

OpenPage = Callable[..., "Page"]
REPORTS = "addEventListener('securitypolicyviolation', report => console.error(report.violatedDirective))"


@contextmanager
def _chromium() -> Iterator["Browser"]:
    try:
        from playwright.sync_api import sync_playwright
    except ImportError as error:
        raise ServerUnavailableError("Playwright is not installed: pip install -e '.[dev]'.") from error
    program = shutil.which("chromium")
    if program is None:
        raise ServerUnavailableError("chromium is not on PATH; on Debian: apt install chromium.")
    with sync_playwright() as playwright:
        # As root, which CI is, it has no sandbox. Text without coloured edges makes small pictures.
        browser = playwright.chromium.launch(
            executable_path=program, args=["--no-sandbox", "--disable-lcd-text"]
        )
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def browser(running: Running) -> Iterator["Browser"]:
    """Chromium, headless; for one file, since while it runs nothing else in its thread may use asyncio."""
    with running(_chromium()) as browser:
        yield browser


@pytest.fixture
def open_page(browser: "Browser") -> Iterator[OpenPage]:
    """Open a page in a window of its own: no error in its console, no forbidden or foreign request."""
    seen: list[str] = []
    contexts = []

    def open_page(url: str, **options: Any) -> "Page":
        context = browser.new_context(**options)
        context.set_default_timeout(15_000)
        contexts.append(context)
        page = context.new_page()
        host = urlsplit(url).netloc

        def look_at(message: Any) -> None:
            # Chromium itself writes of every 4xx and 5xx that a script has asked for.
            if message.type in ("error", "warning") and "Failed to load resource" not in message.text:
                seen.append(message.text)

        page.on("console", look_at)
        page.on("pageerror", lambda error: seen.append(f"{error}"))
        page.on("request", lambda sent: urlsplit(sent.url).netloc == host or seen.append(sent.url))
        page.add_init_script(REPORTS)
        page.goto(url)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert seen == []


@dataclass
class Console:
    """The console of an example server, in a page; what the page complained of, and asked for."""

    page: Any
    example: Example
    complaints: list[str] = field(default_factory=list)
    urls: list[str] = field(default_factory=list)
    provoked: set[int] = field(default_factory=set)  # statuses that a test means to see

    def watch(self) -> None:
        """Keep what the page complains of from now on."""
        self.page.on(
            "console", lambda said: said.type in ("error", "warning") and self.complaints.append(said.text)
        )
        self.page.on("pageerror", lambda error: self.complaints.append(f"{error}"))
        self.page.on("request", lambda request: self.urls.append(request.url))
        self.page.add_init_script(REPORTS)

    def check(self) -> None:
        """Fail where there was a complaint that no test provoked, or a request to somebody else."""
        expected = re.compile(
            rf"Failed to load resource: .* status of ({'|'.join(map(str, self.provoked)) or '-'}) "
        )
        assert [text for text in self.complaints if not expected.match(text)] == []
        assert {urlsplit(url).netloc for url in self.urls} == {urlsplit(self.example.url).netloc}
        assert not any(self.example.key in url for url in self.urls)

    def enter(self, key: str | None = None) -> None:
        """Type the key, and use it."""
        self.page.get_by_label("The key that").fill(key or self.example.key)
        self.button("Use the key").click()
        if key is None:
            self.page.get_by_text("accepted").wait_for()

    def button(self, name: str) -> Any:
        """Return a button, or a switch, by the beginning of its name."""
        pattern = re.compile(f"^{re.escape(name)}")
        buttons = self.page.get_by_role("button", name=pattern)
        return buttons.or_(self.page.get_by_role("switch", name=pattern))

    def press(self, name: str, words: str) -> None:
        """Press a button, and wait until the words are told."""
        self.button(name).click()
        self.told(words)

    def told(self, words: str) -> None:
        """Wait until the words are the newest that are told."""
        self.page.locator("#calls > li:first-child .words", has_text=words).wait_for()
        assert words in self.page.locator("#said").text_content()

    def row(self, id: str) -> Any:
        """Return the row of a client."""
        return self.page.locator(f'#clients [data-id="{id}"]')

    def verdicts(self, id: str) -> list[str]:
        """Return what is told of each entry of a client."""
        return self.row(id).locator(".entries .badge").all_text_contents()

    def overflow(self) -> int:
        """Return by how many pixels the page is wider than the screen."""
        return int(self.page.evaluate("document.documentElement.scrollWidth - innerWidth"))


@pytest.fixture
def console(request: pytest.FixtureRequest, browser: Any, server: Example) -> Iterator[Console]:  # noqa: F811
    """The console in a page; a test's parameter is what its context is like."""
    options = {"reduced_motion": "reduce", "viewport": {"width": 1280, "height": 900}}
    context = browser.new_context(**options | getattr(request, "param", {}))
    context.set_default_timeout(10_000)
    console = Console(context.new_page(), server)
    console.watch()
    console.page.goto(server.url)
    yield console
    context.close()
    console.check()


@pytest.fixture
def pictures(pytestconfig: pytest.Config) -> Path | None:
    """Where pictures are to be kept; None in a run that makes none."""
    folder = pytestconfig.getoption("--pictures")
    return Path(folder) if folder else None
