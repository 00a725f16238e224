"""A headless Chromium for tests of pages: what a page says, asks and shows."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

from skips import NO_BROWSER

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


@dataclass
class Visit:
    """An open `page`; what it logged as an error, and every address that it asked for."""

    page: Any
    errors: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def until(self, expression: str, seconds: float = 30.0) -> Any:
        """Waits until JavaScript is true; playwright's own way needs `eval`, which the policy of a page may forbid."""
        end = time.monotonic() + seconds
        while not (found := self.page.evaluate(expression)):
            assert time.monotonic() < end, f"not within {seconds} s: {expression}; errors: {self.errors}"
            self.page.wait_for_timeout(20)
        return found

    def away(self, *allowed: str) -> list[str]:
        """The requests that went elsewhere than to addresses that begin so."""
        own = ("data:", "blob:", *allowed)
        return [url for url in self.requests if not url.startswith(own)]


@contextmanager
def browsing() -> Iterator[Any]:
    """A browser that asks no network but what its pages ask. Skips the test where there is none."""
    if CHROMIUM is None:
        pytest.skip(NO_BROWSER)
    from playwright.sync_api import sync_playwright

    flags = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--disable-extensions"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=flags)
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def visiting(browser: Any, url: str, **options: Any) -> Iterator[Visit]:
    """A page at `url`, such as with `viewport={"width": 400, "height": 800}` and `color_scheme="dark"`."""
    context = browser.new_context(**options)
    try:
        visit = Visit(context.new_page())
        visit.page.on("pageerror", lambda error: visit.errors.append(str(error)))
        visit.page.on("console", lambda told: visit.errors.append(told.text) if told.type == "error" else None)
        context.on("request", lambda request: visit.requests.append(request.url))
        visit.page.goto(url)
        yield visit
    finally:
        context.close()
