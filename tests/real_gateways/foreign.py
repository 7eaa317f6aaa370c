"""Other people's gateways, started on loopback in front of scripted models."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from backend_runs import answers, free_port, running
from pypi_programs import Program, installed

LITELLM = Program(
    "litellm",
    "1.106.2",
    "bin/litellm",
    # It does not ask for the SDK itself, and without it exports nothing.
    ("litellm[proxy]==1.106.2", "opentelemetry-sdk", "opentelemetry-exporter-otlp"),
)
RESPAN_GATEWAY = Program("respan-gateway", "0.3.0", "bin/respan-gateway")
PAGE = Path(__file__).parents[2] / "examples" / "gateways" / "litellm.md"
# What it sends upstream; agents bring their own to it.
KEY = "sk-upstream-0123456789"


@contextmanager
def litellm(
    folder: Path,
    *,
    key: str,
    anthropic: str,
    openai: str,
    otlp: str,
    version: int = 2,
    plain_ids: bool = True,
    callbacks: Sequence[str] = ("otel",),
    more_env: Mapping[str, str] | None = None,
) -> Iterator[str]:
    """Run the LiteLLM proxy for clients with *key*; give its base URL.

    It exports to *otlp* by its OTel *version*.

    Without *plain_ids* it hides the provider's ids from OpenAI's clients, as is its default.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "model_list": [
            _model("claude-*", "anthropic/claude-*", anthropic),
            _model("openai/*", "openai/*", f"{openai}/v1"),
        ],
        "litellm_settings": {"callbacks": list(callbacks)},
        "general_settings": {"master_key": key, "disable_responses_id_security": plain_ids},
    }
    path = folder / "config.yaml"
    # JSON is YAML.
    path.write_text(json.dumps(config))
    port = free_port()
    env = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "OTEL_BSP_SCHEDULE_DELAY": "500"}
    env |= {name: value.replace("http://127.0.0.1:4141", otlp) for name, value in on_page()}
    if version == 1:
        del env["LITELLM_OTEL_V2"]
    env |= more_env or {}
    command = [installed(LITELLM), "--config", path, "--host", "127.0.0.1", "--port", str(port)]
    url = f"http://127.0.0.1:{port}"
    with running(command, folder, env, lambda: answers(f"{url}/health/liveliness")):
        yield url


def on_page() -> list[tuple[str, str]]:
    """Return the environment that the page about LiteLLM tells people to give it."""
    lines = PAGE.read_text("utf-8").splitlines()
    settings = [line.split("=") for line in lines if re.fullmatch(r"[A-Z0-9_]+=\S+", line)]
    return [(name, value) for name, value in settings]


@contextmanager
def respan_gateway(folder: Path, *, anthropic: str, otlp: str) -> Iterator[str]:
    """Run `respan-gateway`, exporting to *otlp*; give its base URL."""
    folder.mkdir(parents=True, exist_ok=True)
    port = free_port()
    path = folder / "respan.toml"
    path.write_text(
        f"""
        listen = "127.0.0.1:{port}"
        [providers.anthropic]
        vendor = "anthropic"
        base_url = "{anthropic}"
        key = "{KEY}"
        [plugins.respan]
        url = "{otlp}/v1/traces"
        key = "sk-none"
        content = true
        """
    )
    url = f"http://127.0.0.1:{port}"
    command = [installed(RESPAN_GATEWAY), "serve"]
    with running(command, folder, {"RESPAN_CONFIG": str(path)}, lambda: answers(f"{url}/healthz")):
        yield url


def _model(name: str, behind: str, url: str) -> dict[str, Any]:
    return {
        "model_name": name,
        "litellm_params": {"model": behind, "api_base": url, "api_key": KEY},
    }
