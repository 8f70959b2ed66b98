"""A headless Chromium, and the playground's page in it."""

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from playwright.sync_api import Browser, BrowserContext, Page, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
PATIENCE = 60.0


@contextmanager
def running_browser() -> Iterator[Browser]:
    path = next(filter(None, map(shutil.which, NAMES)), None)
    assert path is not None, f"no browser; `make browser` installs one of {', '.join(NAMES)}"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        try:
            yield browser
        finally:
            browser.close()


class Playground:
    """The page in a browser, with the requests that it sent."""

    def __init__(self, context: BrowserContext, url: str) -> None:
        self.page: Page = context.new_page()
        self.url = url
        self.asked: list[str] = []
        self.problems: list[str] = []
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))
        self.page.on("console", self._note)
        self.page.goto(url)

    def _note(self, message: Any) -> None:
        """Record errors on the console, except those about error responses."""
        if message.type == "error" and "Failed to load resource" not in message.text:
            self.problems.append(message.text)

    def check(self) -> None:
        """Assert that nothing failed, and that no other host was contacted."""
        assert self.problems == []
        own = (self.url, f"blob:{self.url}")
        assert [url for url in self.asked if not url.startswith(own)] == []

    def get(self, expression: str) -> Any:
        """Evaluate JavaScript, in which `$` finds an element by id."""
        return self.page.evaluate(f"(($) => {expression})((id) => document.getElementById(id))")

    def wait(self, expression: str) -> Any:
        """Wait until JavaScript is true. The page's policy forbids Playwright's own way."""
        deadline = time.monotonic() + PATIENCE
        while not (value := self.get(expression)):
            assert time.monotonic() < deadline, f"{expression} does not come true: {self.text}"
            self.page.wait_for_timeout(20)
        return value

    @property
    def text(self) -> str:
        return self.page.inner_text("main")

    def create(self, prompt: str, **fields: object) -> str:
        """Fill in the form by keyboard, and return the new video's id."""
        before = self.get("location.hash")
        self.wait("$('size').options.length > 0")
        self.page.fill("#prompt", prompt)
        if {"seed", "fps", "steps"} & fields.keys() and not self.page.is_visible("#seed"):
            self.page.press("#create details:has(#seed) summary", "Enter")
        for name, value in fields.items():
            if name == "size":
                self.page.select_option("#size", str(value))
            else:
                self.page.fill(f"#{name}", str(value))
        self.page.press("#prompt", "Control+Enter")
        self.wait(f"location.hash !== {before!r} && location.hash.startsWith('#video_')")
        self.wait("!$('stage-body').hidden")
        return str(self.get("location.hash.slice(1)"))


@contextmanager
def playground(browser: Browser, url: str, **settings: Any) -> Iterator[Playground]:
    """Yield a page with an empty profile. `settings` are those of its context."""
    context = browser.new_context(**settings)
    try:
        shown = Playground(context, url)
        yield shown
        shown.check()
    finally:
        context.close()
