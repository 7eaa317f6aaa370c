"""Every test has a home of its own, a clean environment, and leaves no thread behind."""

from __future__ import annotations

import gc
import os
import sys
import threading
import time
import warnings
from collections.abc import Generator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from support import EVIDENCE, NAMES, README, Shown, in_readme, is_shown, write_readme

OURS = ("TRACEBRIDGE_", "RESPAN_", "OTEL_", "ANTHROPIC_", "CLAUDE_")

# On a busy machine a slow example is no fault.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")


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


class SupportTable:
    """After a run of all real agents the README's support table must say what they showed."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._shown = Shown()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        for name, value in report.user_properties:
            if name == "shown":
                slug, behaviours, evidence = value
                self._shown.behaviours.setdefault(slug, set()).update(behaviours)
                self._shown.evidence.setdefault(slug, set()).update(evidence)

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        options = self._config.option
        # What did not run shows nothing.
        part = options.keyword or options.markexpr or any("::" in a for a in self._config.args)
        if session.testsfailed or part or not NAMES.keys() <= self._shown.behaviours.keys():
            return
        if options.update_support:
            write_readme(self._shown)
        elif not is_shown(in_readme(), self._shown):
            print(f"\n{README}: the support table is not what was shown; run `make support`")  # noqa: T201  # beside pytest's own words
            session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_configure(config: pytest.Config) -> None:
    # Where tests run in several processes, only the one that started them knows of all.
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(SupportTable(config))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    slug = item.path.stem.removeprefix("test_").replace("_", "-")
    if call.when == "setup":
        EVIDENCE.clear()
    elif call.when == "call" and report.passed and item.get_closest_marker("real_agent"):
        named = item.callspec.params.get("name") if hasattr(item, "callspec") else None
        marker = item.get_closest_marker("shows")
        behaviours = [*([named] if named else ()), *(marker.args if marker else ())]
        if slug in NAMES and behaviours:
            report.user_properties.append(("shown", (slug, behaviours, sorted(EVIDENCE))))
    return report


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Let what a failed test left open warn here, unheard, and not in the test that comes next."""
    failed_before = item.session.testsfailed
    result = yield
    if item.session.testsfailed > failed_before:
        # They hold the failed test's variables until the next one begins.
        for name in ("last_exc", "last_type", "last_value", "last_traceback"):
            vars(sys).pop(name, None)
        with warnings.catch_warnings(action="ignore"):
            gc.collect()
    return result


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
    deadline = time.monotonic() + 60
    while True:
        leaked = [t for t in threading.enumerate() if t not in before and t.is_alive()]
        if not leaked:
            return
        if time.monotonic() > deadline:
            pytest.fail(f"threads left behind: {[t.name for t in leaked]}")
        time.sleep(0.01)
