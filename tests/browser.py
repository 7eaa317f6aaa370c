"""A real Chromium that looks at one page and tells of all that a page should not do."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from playwright.sync_api import Browser, Page, sync_playwright

LIMIT_MS = 120_000
NAMES = ("chromium", "chromium-browser", "google-chrome")
# For root in a container, and quiet: a browser likes to call home.
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
)


@contextmanager
def chromium() -> Iterator[Browser]:
    program = next((path for name in NAMES if (path := shutil.which(name))), None)
    if program is None:
        raise FileNotFoundError("no Chromium on PATH: run `make chromium`")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=program, args=list(FLAGS), timeout=LIMIT_MS
        )
        try:
            yield browser
        finally:
            browser.close()


@dataclass
class Visit:
    """One page in a window of its own, and what it did."""

    page: Page
    console: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    # Why, by address.
    refused: dict[str, str | None] = field(default_factory=dict)

    @property
    def labels(self) -> list[str]:
        return self.page.locator(".fall .label").all_inner_texts()


@contextmanager
def visit(
    browser: Browser, path: Path, *, scheme: str = "light", width: int = 1280, height: int = 900
) -> Iterator[Visit]:
    context = browser.new_context(color_scheme=scheme, viewport={"width": width, "height": height})
    context.set_default_timeout(LIMIT_MS)
    try:
        seen = Visit(context.new_page())
        seen.page.on("console", lambda message: seen.console.append(message.text))
        seen.page.on("pageerror", lambda error: seen.console.append(str(error)))
        seen.page.on("dialog", lambda dialog: seen.console.append(f"dialog: {dialog.message}"))
        seen.page.on("request", lambda request: seen.requests.append(request.url))
        seen.page.on("requestfailed", lambda it: seen.refused.update({it.url: it.failure}))
        seen.page.goto(path.as_uri())
        yield seen
    finally:
        context.close()
