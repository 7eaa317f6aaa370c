"""The plan in docs/scale.md is what the simulation says, and the simulation is sound."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def scale():
    path = REPOSITORY / "tests" / "bench" / "scale.py"
    spec = importlib.util.spec_from_file_location("bench_scale", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def test_the_page_has_the_tables_that_the_simulation_prints(scale):
    """To the digit: run tests/bench/scale.py and put them in again after a change."""
    page = (REPOSITORY / "docs" / "scale.md").read_text("utf-8")
    for table in scale.tables():
        assert table in page


def test_every_span_that_is_sent_arrives(scale):
    """Whatever part is gone for a while: what waited is through at the end, and none is planned over."""
    for fleet in scale.FLEETS:
        sent = scale.arrivals(fleet)
        for trouble in scale.TROUBLES.values():
            hour = scale.simulate(fleet, trouble)
            assert (hour.spans, hour.busiest_second) == (sum(sent), max(sent))
            assert (trouble is None) == (hour.drained_after_s is None)
        for part in scale.PARTS:
            number = scale.units(part, hour.busiest_second)
            assert number >= part.least
            assert hour.busiest_second <= scale.HIGHEST_USE * number * scale.capacity(part)


def test_more_developers_send_more(scale):
    """A hundred times as many send about that much more, spread over time zones."""
    few, many = (sum(scale.arrivals(fleet)) for fleet in scale.FLEETS)
    share = scale.busiest_share(scale.FLEETS[1]) / scale.busiest_share(scale.FLEETS[0])
    assert many == pytest.approx(100 * share * few, rel=0.05)
