"""Arize Phoenix as its users run it: what it shows of our turns, asked through its own API."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from backend_runs import Turns, answers, get, running, until
from beside import free_port
from pypi_programs import Program, installed

from tracebridge import semconv

pytestmark = pytest.mark.heavy

PHOENIX = Program("arize-phoenix", "20.26.1", "bin/phoenix")
PROJECT = "coding agents"
SUMS = """{ projects { edges { node { name traceCount
  tokenCountPrompt tokenCountCompletion costSummary { total { cost } }
  sessions(first: 50) { edges { node { sessionId numTraces } } } } } } }"""


@contextmanager
def phoenix(folder: Path) -> Iterator[str]:
    port = free_port()
    env = {
        "PHOENIX_WORKING_DIR": str(folder / "data"),
        "PHOENIX_HOST": "127.0.0.1",
        "PHOENIX_PORT": str(port),
        "PHOENIX_GRPC_PORT": str(free_port()),
        "PHOENIX_TELEMETRY_ENABLED": "false",
    }
    url = f"http://127.0.0.1:{port}"
    with running([installed(PHOENIX), "serve"], folder, env, lambda: answers(f"{url}/healthz")):
        yield url


def _project(url: str) -> dict[str, Any] | None:
    found = get(f"{url}/graphql", {"query": SUMS})["data"]["projects"]["edges"]
    return next((each["node"] for each in found if each["node"]["name"] == PROJECT), None)


def _spans(url: str) -> list[dict[str, Any]]:
    projects = get(f"{url}/v1/projects")["data"]
    own = [project["id"] for project in projects if project["name"] == PROJECT]
    return get(f"{url}/v1/projects/{own[0]}/spans?limit=1000")["data"] if own else []


def test_phoenix_shows_our_turns_as_they_were(turns: Turns, tmp_path):
    """Tree, kinds, errors, sessions, user, metadata; tokens and cost once; sent twice or not."""
    with phoenix(tmp_path / "phoenix") as url:
        for _ in range(2):
            turns.send("phoenix", PHOENIX_COLLECTOR_ENDPOINT=url, PHOENIX_PROJECT_NAME=PROJECT)
        until(lambda: len(_spans(url)) >= len(turns.spans), "Phoenix lacks spans")
        shown = {span["context"]["span_id"]: span for span in _spans(url)}
        cost = turns.total(semconv.OI_COST_TOTAL)
        # It adds up some time after it has taken a span in.
        until(
            lambda: ((_project(url) or {})["costSummary"]["total"]["cost"] or 0) >= cost * 0.999,
            "Phoenix does not come to our cost",
        )
        project = _project(url)
    assert shown.keys() == {span.span_id for span in turns.spans}
    for span in turns.spans:
        its = shown[span.span_id]
        assert (its["parent_id"], its["name"]) == (span.parent, span.name)
        assert its["span_kind"] == span.kind
        assert (its["status_code"] == "ERROR") == span.failed
        assert its["attributes"]["session.id"] == span.attributes[semconv.SESSION_ID]
        assert its["attributes"]["user.id"] == "acme"
        assert its["attributes"]["metadata.team"] == "blue"
    assert project is not None
    assert project["traceCount"] == len(turns.of_type("turn"))
    assert project["tokenCountPrompt"] == turns.total(semconv.INPUT_TOKENS)
    assert project["tokenCountCompletion"] == turns.total(semconv.OUTPUT_TOKENS)
    assert project["costSummary"]["total"]["cost"] == pytest.approx(cost)
    sessions = {edge["node"]["sessionId"] for edge in project["sessions"]["edges"]}
    assert sessions == turns.sessions
