"""Whatever breaks, every span arrives, once and unchanged: the short version of `make faults`."""

from __future__ import annotations

import random

import pytest
from faults.scenarios import SCENARIOS
from faults.world import made_world


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    with made_world(tmp_path_factory.mktemp("faults")) as world:
        yield world


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.__name__)
def test_nothing_is_lost_nothing_comes_twice(world, scenario):
    """After each fault the backend has the spans of an undisturbed run, byte for byte."""
    figures = scenario(world, random.Random(6), True)
    assert figures.is_clean, figures
