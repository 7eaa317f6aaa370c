"""MLflow's tracking server as its users run it: what it shows of our turns, through its own API."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from backend_runs import Turns, answers, get, hex_of, running, until
from beside import free_port
from pypi_programs import Program, installed

from tracebridge import semconv

pytestmark = pytest.mark.heavy

MLFLOW = Program("mlflow", "3.17.2", "bin/mlflow")
# What it calls OpenInference's kinds.
KINDS = {"LLM": {"LLM", "CHAT_MODEL"}, "AGENT": {"AGENT"}, "TOOL": {"TOOL"}, "CHAIN": {"CHAIN"}}


@contextmanager
def mlflow(folder: Path) -> Iterator[str]:
    port = free_port()
    command = [installed(MLFLOW), "server", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--workers", "1", "--backend-store-uri", f"sqlite:///{folder}/mlflow.db"]
    command += ["--default-artifact-root", str(folder / "artifacts")]
    url = f"http://127.0.0.1:{port}"
    env = {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true"}
    with running(command, folder, env, lambda: answers(f"{url}/health")):
        yield url


def _traces(url: str, experiment: str) -> list[dict[str, Any]]:
    place = {"type": "MLFLOW_EXPERIMENT", "mlflow_experiment": {"experiment_id": experiment}}
    found = get(f"{url}/api/3.0/mlflow/traces/search", {"locations": [place], "max_results": 100})
    return found.get("traces", [])


def test_mlflow_shows_our_turns_as_they_were(turns: Turns, tmp_path):
    """Tree, kinds, errors, sessions, user, metadata; tokens and cost once; sent twice or not."""
    with mlflow(tmp_path / "mlflow") as url:
        created = get(f"{url}/api/2.0/mlflow/experiments/create", {"name": "coding agents"})
        experiment = created["experiment_id"]
        for _ in range(2):
            turns.send("mlflow", MLFLOW_TRACKING_URI=url, MLFLOW_EXPERIMENT_ID=experiment)
        until(
            lambda: len(_traces(url, experiment)) >= len(turns.of_type("turn")),
            "MLflow lacks traces",
        )
        traces = {trace["trace_id"]: trace for trace in _traces(url, experiment)}
        shown = {}
        for trace_id in traces:
            trace = get(f"{url}/api/3.0/mlflow/traces/get?trace_id={trace_id}")["trace"]
            shown.update({hex_of(span["span_id"]): span for span in trace["spans"]})
    assert shown.keys() == {span.span_id for span in turns.spans}
    for span in turns.spans:
        its = shown[span.span_id]
        attributes = {a["key"]: a["value"].get("string_value") for a in its["attributes"]}
        assert its["name"] == span.name
        assert (hex_of(its["parent_span_id"]) if its.get("parent_span_id") else None) == span.parent
        assert ("ERROR" in its["status"].get("code", "")) == span.failed
        assert attributes["mlflow.spanType"].strip('"') in KINDS[span.kind]
        assert attributes[semconv.METADATA_PREFIX + "team"] == "blue"
    for root in turns.of_type("turn"):
        facts = traces[f"tr-{root.trace_id}"]["trace_metadata"]
        chats = [span for span in turns.of_type("llm") if span.trace_id == root.trace_id]

        def total(name: str, chats=chats) -> float:
            return sum(chat.attributes.get(name, 0) for chat in chats)

        assert traces[f"tr-{root.trace_id}"]["state"] == "OK"
        assert facts["mlflow.trace.session"] == root.attributes[semconv.SESSION_ID]
        assert facts["mlflow.trace.user"] == "acme"
        usage = json.loads(facts["mlflow.trace.tokenUsage"])
        assert usage["input_tokens"] == total(semconv.INPUT_TOKENS)
        assert usage["output_tokens"] == total(semconv.OUTPUT_TOKENS)
        assert usage["cache_read_input_tokens"] == total(semconv.CACHE_READ_TOKENS)
        assert usage["cache_creation_input_tokens"] == total(semconv.CACHE_WRITE_TOKENS)
        cost = json.loads(facts["mlflow.trace.cost"])["total_cost"]
        assert cost == pytest.approx(total(semconv.OI_COST_TOTAL))
