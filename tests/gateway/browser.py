"""Debian's Chromium, headless, for tests: found, never downloaded, and watched for what it does."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from playwright.sync_api import Browser, ConsoleMessage, Page, sync_playwright

_NAMES = ("chromium", "chromium-browser", "google-chrome")
_FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@contextmanager
def chromium() -> Iterator[Browser]:
    path = next(filter(None, map(shutil.which, _NAMES)), None)
    assert path, (
        f"the playground's tests need one of {', '.join(_NAMES)} on PATH: "
        "run `make browser` as root on Debian, or install Chromium"
    )
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=_FLAGS)
        yield browser
        browser.close()


class Tab:
    """A page on the playground, and what went wrong there.

    requests: the URLs it asked for. complaints: console errors, warnings and uncaught exceptions.
    """

    def __init__(self, browser: Browser, url: str, **context: Any) -> None:
        settings = {"viewport": {"width": 1280, "height": 900}, "reduced_motion": "reduce"}
        self._context = browser.new_context(**(settings | context))
        self.url = url
        self.requests: list[str] = []
        self.complaints: list[str] = []
        self.page: Page = self._context.new_page()
        self.page.set_default_timeout(30_000)
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("console", self._heard)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))

    def open(self, fragment: str = "") -> None:
        self.page.goto(f"{self.url}/playground{fragment}")
        self.page.wait_for_selector("html[data-ready]")

    def fill(self, **fields: str) -> None:
        for name, value in fields.items():
            self.page.fill(f"[name='{name}']", value)

    def run(self) -> None:
        """Presses Run and waits for the end."""
        self.page.click("#run")
        self.page.wait_for_selector("#run:enabled")

    def figure(self, name: str, run: int = 0) -> str:
        return self.page.locator(f"[data-figure={name}]").nth(run).inner_text()

    def answer(self, run: int = 0) -> str:
        return self.page.locator(".text .answer").nth(run).text_content() or ""

    def close(self) -> None:
        self._context.close()

    def _heard(self, message: ConsoleMessage) -> None:
        # A refused request is a line of the browser's own, whatever the page makes of it.
        own = message.text.startswith("Failed to load resource") and "/v1/" in str(message.location)
        if message.type in ("error", "warning") and not own:
            self.complaints.append(message.text)
