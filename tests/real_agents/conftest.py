"""After a run of all real agents, the README's support table must say what they showed."""

from __future__ import annotations

from collections.abc import Generator

import pytest
from support import NAMES, README, SHOWN, in_readme, table, write_readme

MODULES = {f"test_{slug.replace('-', '_')}.py": slug for slug in NAMES}


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    slug = MODULES.get(item.path.name)
    if slug is not None and call.when == "call" and report.passed and hasattr(item, "callspec"):
        name = item.callspec.params.get("name")
        if name is not None and item.originalname == "test_behaviour":
            SHOWN.behaviours.setdefault(slug, set()).add(name)
    return report


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Compare where nothing was left out: what did not run shows nothing."""
    options = session.config.option
    left_out = (
        options.keyword or options.markexpr or any("::" in arg for arg in session.config.args)
    )
    modules = {item.path.name for item in session.items}
    if session.testsfailed or left_out or not MODULES.keys() <= modules:
        return
    if options.update_support:
        write_readme(SHOWN)
    elif in_readme() != table(SHOWN):
        print(f"\n{README}: the support table is not what the tests showed; run `make support`")  # noqa: T201  # beside pytest's own words
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
