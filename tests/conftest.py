"""Every test has a home of its own, a clean environment, and leaves no thread behind."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest

OURS = ("TRACEBRIDGE_", "RESPAN_", "OTEL_", "ANTHROPIC_", "CLAUDE_")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--update-golden", action="store_true", help="write the expected trees of tests/agents anew"
    )
    parser.addoption(
        "--update-support", action="store_true", help="write the README's support table anew"
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what fetches a gigabyte, unless CI or `make test-all` asks for it."""
    if os.environ.get("CI") == "true":
        return
    left_out = [item for item in items if item.get_closest_marker("heavy")]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in left_out]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in list(os.environ):
        if name.startswith(OURS):
            monkeypatch.delenv(name)
    home = tmp_path / "tracebridge-home"
    monkeypatch.setenv("TRACEBRIDGE_HOME", str(home))
    # The user's own home must never be looked into, let alone written to.
    user_home = tmp_path / "user-home"
    user_home.mkdir()
    monkeypatch.setenv("HOME", str(user_home))
    return home


@pytest.fixture(autouse=True)
def no_leaked_threads():
    before = set(threading.enumerate())
    yield
    deadline = time.monotonic() + 20
    while True:
        leaked = [t for t in threading.enumerate() if t not in before and t.is_alive()]
        if not leaked:
            return
        if time.monotonic() > deadline:
            pytest.fail(f"threads left behind: {[t.name for t in leaked]}")
        time.sleep(0.01)
