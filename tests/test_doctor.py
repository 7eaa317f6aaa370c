"""Each known trap: the fault is made, its rule fires, the remedy is applied, and it is gone."""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from beside import free_port
from setups import ANTHROPIC_KEY, KEYS, Gateway, World

from tracebridge.agents.claude_code.wiring import HOT_EVENTS
from tracebridge.checks import rules
from tracebridge.doctor import as_json, as_text, rules_page
from tracebridge.model import CallIdentity, GatewayCall
from tracebridge.sinks import OutboxSpan
from tracebridge.spool import Spool
from tracebridge.store import Store

DOCUMENT = Path(__file__).resolve().parents[1] / "docs" / "doctor.md"
SECRET = "sk-proj-secret0123456789abcdefghijk"
CLAUDE, STATE = ".claude/settings.json", ".claude.json"
CODEX, CODEX_HOOKS = ".codex/config.toml", ".codex/hooks.json"
GEMINI, GEMINI_ENV = ".gemini/settings.json", ".gemini/.env"
OPENCODE = ".config/opencode/opencode.json"

Act = Callable[[World], object]


@dataclass(frozen=True)
class Case:
    """One rule, a fault that it knows, and what its user does; None: types what is printed."""

    rule: str
    fault: Act
    remedy: Act | None = None
    # What the user names on the command line.
    named: tuple[str, ...] = ()


@pytest.fixture(scope="module")
def gateway():
    gateway = Gateway()
    yield gateway
    gateway.close()


@pytest.fixture
def world(tmp_path, gateway, monkeypatch):
    # On a busy machine it may take longer, and the list is what some cases are about.
    monkeypatch.setattr("tracebridge.checks.requests.PATIENCE_S", 60.0)
    folder = tmp_path / "world"
    folder.mkdir()
    return World(folder, gateway.url)


def env(name: str, value: str) -> Act:
    return lambda world: world.env.__setitem__(name, value)


def claude_env(path: str = CLAUDE, **values: str) -> Act:
    return lambda world: world.edit(path, env=values)


def claude(path: str = CLAUDE, **values: object) -> Act:
    return lambda world: world.edit(path, values)


def text(path: str, old: str, new: str) -> Act:
    return lambda world: world.replace(path, old, new)


def write(path: str, content: str) -> Act:
    def act(world: World) -> None:
        world.file(path).parent.mkdir(parents=True, exist_ok=True)
        world.file(path).write_text(content)

    return act


def both(*acts: Act) -> Act:
    return lambda world: [act(world) for act in acts]


def remove(path: str) -> Act:
    return lambda world: world.file(path).unlink()


def base_url(url: str) -> Act:
    return claude_env(ANTHROPIC_BASE_URL=url)


def gemini_env(line: str) -> Act:
    return lambda world: write(GEMINI_ENV, world.file(GEMINI_ENV).read_text() + line)(world)


def hook(path: str, event: str, **changes: object) -> Act:
    """Change the one hook of an event."""

    def act(world: World) -> None:
        settings = json.loads(world.file(path).read_text())
        settings["hooks"][event][0]["hooks"][0] |= changes
        world.file(path).write_text(json.dumps(settings))

    return act


def without_event(path: str, event: str) -> Act:
    def act(world: World) -> None:
        settings = json.loads(world.file(path).read_text())
        del settings["hooks"][event]
        world.file(path).write_text(json.dumps(settings))

    return act


def integrated(*options: str) -> Act:
    return lambda world: world.tracebridge("integrate", "claude-code", *options)


def without_hooks(world: World) -> None:
    settings = json.loads(world.file(CLAUDE).read_text())
    del settings["hooks"]
    world.file(CLAUDE).write_text(json.dumps(settings))


def repository(world: World) -> None:
    world.git("init", "--quiet")


def add_all(world: World) -> None:
    world.git("add", "--all", "--force")


def commit(world: World) -> None:
    add_all(world)
    world.git("commit", "--quiet", "-m", "x")


def amend(world: World) -> None:
    add_all(world)
    world.git("commit", "--quiet", "--amend", "-m", "x", "--allow-empty")


def hooks_in_the_project_too(world: World) -> None:
    settings = json.loads(world.file(CLAUDE).read_text())
    world.edit("./.claude/settings.local.json", {"hooks": settings["hooks"]})


def calls(world: World, **facts: object) -> None:
    now = time.time_ns()
    call = GatewayCall(
        call_id="",
        gateway="tracebridge",
        method="POST",
        path="/api/anthropic/v1/messages",
        start_ns=now - 10_000_000_000,
        end_ns=now - 1_000_000_000,
        identity=CallIdentity(agent="claude-code", session_id="s"),
        server_address="gateway.example",
        status_code=200,
    )
    with Store(world.state) as store, store.transaction():
        for number in range(30):
            store.add_call(replace(call, call_id=str(number), **facts), now)


def recorded(**facts: object) -> Act:
    return lambda world: calls(world, **facts)


def forget_calls(world: World) -> None:
    (world.state / "store.sqlite3").unlink()


def old_event(world: World) -> None:
    spool = Spool(world.state)
    spool.create()
    path = spool.new / "00000000000000000001-1-0.event"
    path.write_bytes(b"format=1\0kind=hook\0agent=claude-code\0\0{}")
    os.utime(path, (time.time() - 3600,) * 2)


def watched(world: World) -> None:
    """Hold the watcher's lock, as one that hangs does."""
    descriptor = os.open(world.state / "watch.lock", os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    world.lock = descriptor


def end_watcher(world: World) -> None:
    os.close(world.lock)
    world.shell("tracebridge watch --once")


def sink_down(world: World) -> None:
    world.env["OTEL_EXPORTER_OTLP_ENDPOINT"] = "http://127.0.0.1:9"
    span = OutboxSpan(span_id="a" * 16, trace_id="b" * 32, resource=(), data=b"")
    with Store(world.state) as store, store.transaction():
        sink = "otlp"
        store.offer(span.trace_id, [(span.span_id, span.data)], (), [sink])
        store._set_error(sink, 0, "http://127.0.0.1:9: connection refused; is it running?")


def sink_took_it(world: World) -> None:
    with Store(world.state) as store:
        store.acknowledge("otlp", ["a" * 16])


def put(path: str, content: str = "x") -> Act:
    def act(world: World) -> None:
        (world.state / path).parent.mkdir(parents=True, exist_ok=True)
        (world.state / path).write_text(content)

    return act


def refused_port(world: World) -> None:
    base_url(f"http://127.0.0.1:{free_port()}/api/anthropic")(world)


def listen_there(world: World) -> None:
    settings = json.loads(world.file(CLAUDE).read_text())
    port = int(settings["env"]["ANTHROPIC_BASE_URL"].split(":")[2].split("/")[0])
    world.listener = Gateway(port)


def retire(world: World) -> None:
    (world.bin / "claude").unlink()


VERTEX = both(
    lambda world: world.edit(GEMINI, {"security": {"auth": {"selectedType": "vertex-ai"}}}),
    env("GOOGLE_API_KEY", KEYS[2]),
)
RESPAN = "https://api.respan.ai/api/anthropic/"
MANAGED = "etc/claude-code/managed-settings.json"


def managed(**values: object) -> Act:
    def act(world: World) -> None:
        path = world.root / MANAGED
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(values))

    return act


def unmanaged(world: World) -> None:
    (world.root / MANAGED).unlink()


CASES = [
    # Claude Code.
    Case("claude-two-credentials", env("ANTHROPIC_AUTH_TOKEN", SECRET)),
    Case("claude-two-credentials", claude_env(ANTHROPIC_AUTH_TOKEN=SECRET)),
    Case("claude-token-in-shell", env("ANTHROPIC_AUTH_TOKEN", SECRET)),
    Case("claude-helper-and-key", claude(apiKeyHelper="vault read key")),
    Case("claude-key-not-approved", claude(STATE, customApiKeyResponses={"approved": []})),
    Case(
        "claude-key-not-approved",
        claude(STATE, customApiKeyResponses={"rejected": [ANTHROPIC_KEY[-20:]]}),
    ),
    Case("claude-base-url-v1", base_url("https://gateway.example/v1")),
    Case("claude-base-url-v1", base_url("https://gateway.example/v1/")),
    Case(
        "claude-base-url-v1",
        both(claude(env={}), env("ANTHROPIC_BASE_URL", "https://gateway.example/v1")),
    ),
    Case("claude-base-url-slashes", base_url("https://gateway.example/api/anthropic//")),
    Case("claude-timeout-name", claude_env(ANTHROPIC_TIMEOUT_MS="30000")),
    Case("claude-timeout-name", env("ANTHROPIC_TIMEOUT_MS", "30000")),
    Case("claude-routing-fiction", claude(routing={"apiBaseUrl": "https://x", "modelAliases": {}})),
    Case("claude-hooks-disabled", claude(disableAllHooks=True)),
    Case("claude-hooks-disabled", claude("./.claude/settings.json", disableAllHooks=True)),
    Case("claude-managed-hooks-only", managed(allowManagedHooksOnly=True), unmanaged),
    Case("claude-tool-hooks-missing", without_event(CLAUDE, "PreToolUse")),
    Case(
        "claude-tool-hooks-missing",
        both(integrated(), *(without_event(CLAUDE, event) for event in HOT_EVENTS)),
        integrated("--light"),
    ),
    Case("claude-hint-headers-off", claude_env(CLAUDE_CODE_GATEWAY_HINT_HEADERS="0")),
    Case("claude-hint-headers-off", both(claude(env={}), base_url(RESPAN))),
    Case(
        "claude-headers-replaced",
        both(
            claude_env(ANTHROPIC_CUSTOM_HEADERS="X-Team: blue"),
            claude_env("./.claude/settings.local.json", ANTHROPIC_CUSTOM_HEADERS="X-Other: 1"),
        ),
    ),
    Case(
        "claude-header-without-colon",
        claude_env(ANTHROPIC_CUSTOM_HEADERS="X-Team: blue\nX-Route-Provider vertex_ai"),
        claude_env(ANTHROPIC_CUSTOM_HEADERS="X-Team: blue\nX-Route-Provider: vertex_ai"),
    ),
    Case(
        "claude-telemetry-in-project",
        claude_env("./.claude/settings.json", CLAUDE_CODE_ENABLE_TELEMETRY="1"),
    ),
    Case("claude-traceparent-incomplete", claude_env(CLAUDE_CODE_PROPAGATE_TRACEPARENT="1")),
    Case("claude-traceparent-incomplete", env("CLAUDE_CODE_PROPAGATE_TRACEPARENT", "1")),
    Case(
        "claude-telemetry-console",
        claude_env(CLAUDE_CODE_ENABLE_TELEMETRY="1", OTEL_TRACES_EXPORTER="console"),
    ),
    Case(
        "claude-extra-body-metadata",
        claude_env(CLAUDE_CODE_EXTRA_BODY='{"metadata": {"team": "blue"}, "top_k": 3}'),
    ),
    Case(
        "claude-own-spans",
        both(
            claude_env(
                CLAUDE_CODE_ENABLE_TELEMETRY="1",
                CLAUDE_CODE_ENHANCED_TELEMETRY_BETA="1",
                OTEL_TRACES_EXPORTER="otlp",
                OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:4318",
            ),
            put("config.toml", '[env]\nOTEL_EXPORTER_OTLP_ENDPOINT = "http://127.0.0.1:4318"'),
        ),
    ),
    # Codex CLI.
    Case("codex-env-key-is-a-key", text(CODEX, '"GATEWAY_API_KEY"', f'"{SECRET}"')),
    Case("codex-env-key-unset", lambda world: world.env.pop("GATEWAY_API_KEY")),
    Case("codex-wire-api-chat", text(CODEX, '"responses"', '"chat"')),
    Case(
        "codex-provider-missing",
        text(CODEX, 'model_provider = "gateway"', 'model_provider = "gone"'),
        text(CODEX, 'model_provider = "gone"', 'model_provider = "gateway"'),
    ),
    Case(
        "codex-hooks-untrusted",
        lambda world: write(CODEX, world.file(CODEX).read_text().partition("[hooks")[0])(world),
        World.trust_codex,
    ),
    Case("codex-hooks-edited", hook(CODEX_HOOKS, "Stop", timeout=2), World.trust_codex),
    Case(
        "codex-hooks-off",
        text(CODEX, "[model_providers", "[features]\nhooks = false\n[model_providers"),
    ),
    Case("codex-no-reasoning-summary", text(CODEX, 'model_reasoning_summary = "auto"\n', "")),
    Case(
        "codex-tags-in-shell",
        env("RESPAN_CUSTOMER_ID", "acme"),
        write("./.codex/respan.json", '{"customer_id": "acme"}'),
    ),
    # Gemini CLI.
    Case("gemini-hooks-disabled", claude(GEMINI, hooksConfig={"enabled": False})),
    Case(
        "gemini-key-not-the-gateways",
        both(
            write(GEMINI_ENV, "GOOGLE_GEMINI_BASE_URL=https://api.respan.ai/api/google/gemini\n"),
            env("GEMINI_API_KEY", "AIzaSyFake0123456789abcdefghijklmnopqrs"),
            env("RESPAN_API_KEY", KEYS[2]),
        ),
    ),
    Case(
        "gemini-key-not-the-gateways",
        both(
            write(GEMINI_ENV, "GOOGLE_GEMINI_BASE_URL=https://gateway.example\n"),
            env("GEMINI_API_KEY", "AIzaSyFake0123456789abcdefghijklmnopqrs"),
        ),
        env("GEMINI_API_KEY", KEYS[2]),
    ),
    Case(
        "gemini-vertex-no-key",
        both(VERTEX, env("GOOGLE_API_KEY", ""), env("RESPAN_API_KEY", KEYS[2])),
    ),
    Case("gemini-vertex-past-gateway", VERTEX),
    Case(
        "gemini-vertex-without-provider",
        recorded(
            path="/api/google/vertexai/v1beta1/publishers/google/models/m:streamGenerateContent",
            identity=CallIdentity(agent="gemini-cli", session_id="s"),
            status_code=403,
            error_message="no credentials for vertex_ai",
        ),
        forget_calls,
    ),
    Case("gemini-auth-type", env("GOOGLE_GENAI_USE_VERTEXAI", "true"), None),
    Case(
        "gemini-auth-type",
        claude(GEMINI, security={"auth": {"selectedType": "oauth-personal"}}),
    ),
    Case("gemini-settings-fiction", claude(GEMINI, baseUrl="https://gateway.example")),
    Case("gemini-env-hidden", write("./.env", "PORT=8080\n"), remove("./.env")),
    Case("gemini-base-url-version", write(GEMINI_ENV, "GOOGLE_GEMINI_BASE_URL=https://g/v1beta\n")),
    # OpenCode.
    Case(
        "opencode-anthropic-without-v1",
        text(OPENCODE, "/api/anthropic/v1", "/api/anthropic"),
    ),
    Case(
        "opencode-key-in-config",
        lambda world: world.edit(
            OPENCODE,
            provider={
                "anthropic": {
                    "options": {
                        "baseURL": f"{world.gateway_url}/api/anthropic/v1",
                        "apiKey": "{env:ANTHROPIC_API_KEY}",
                    }
                }
            },
        ),
    ),
    Case("opencode-model-prefix", text(OPENCODE, "anthropic/claude-haiku", "claude-haiku")),
    Case(
        "opencode-model-past-gateway",
        text(OPENCODE, "anthropic/claude-haiku-4-5", "openai/gpt-5.5"),
        text(OPENCODE, "openai/gpt-5.5", "anthropic/claude-haiku-4-5"),
    ),
    Case("opencode-plugins-off", env("OPENCODE_PURE", "1")),
    Case("opencode-own-spans", env("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4318")),
    Case("opencode-slow-start", remove(".config/opencode/package-lock.json")),
    # Hooks of any agent.
    Case("hooks-missing", without_hooks, named=("claude-code",)),
    Case("hooks-incomplete", without_event(CLAUDE, "Stop")),
    Case("hook-stale-path", text(CLAUDE, "/bin/python", "/gone/python")),
    Case(
        "hook-shim", hook(CLAUDE, "Stop", command="python3 /x/tracebridge_hook.py claude-code /h")
    ),
    Case("hook-twice", hooks_in_the_project_too),
    Case(
        "hook-twice",
        claude(enabledPlugins={"tracebridge@tracebridge": True}),
        claude(enabledPlugins={"tracebridge@tracebridge": False}),
    ),
    Case(
        "hook-other-home",
        lambda world: world.replace(CLAUDE, str(world.state), "/elsewhere"),
    ),
    Case("hook-async", hook(CLAUDE, "Stop", **{"async": True})),
    Case(
        "respan-hook-too",
        write(
            "./.claude/settings.json",
            '{"hooks": {"Stop": [{"hooks": [{"type": "command",'
            ' "command": "node /home/u/.respan/hooks/claude-code.cjs"}]}]}}',
        ),
        write("./.claude/settings.json", "{}"),
    ),
    # Requests of any agent.
    Case("settings-file-broken", write(CLAUDE, '{"env": {},}'), write(CLAUDE, '{"env": {}}')),
    Case("settings-file-broken", write(CODEX, "model = \n"), write(CODEX, 'model = "m"\n')),
    Case("agent-program-missing", retire, lambda world: world.program("claude", "2.1.329")),
    Case(
        "agent-version",
        lambda world: world.program("claude", "2.1.197"),
        lambda world: world.program("claude", "2.1.329"),
    ),
    Case(
        "agent-version",
        lambda world: world.program("codex", "9.0.0"),
        lambda world: world.program("codex", "0.169.0"),
    ),
    Case("agent-not-routed", claude(env={}), base_url(RESPAN), named=("claude-code",)),
    Case("gateway-not-running", refused_port, listen_there),
    Case("gateway-silent", lambda _: None, recorded(), named=("claude-code",)),
    Case("http-not-loopback", base_url("http://gateway.example/api/anthropic")),
    Case("conflicting-scopes", env("ANTHROPIC_BASE_URL", RESPAN)),
    Case(
        "conflicting-scopes",
        claude("./.claude/settings.json", model="claude-haiku-4-5"),
        remove("./.claude/settings.json"),
    ),
    Case("model-without-prefix", text(CODEX, "openai/gpt-5.5", "gpt-5.5")),
    Case(
        "model-without-prefix",
        both(
            text(CODEX, "openai/gpt-5.5", "gpt-9"),
            lambda world: world.replace(CODEX, world.gateway_url, "http://api.respan.ai"),
        ),
    ),
    Case("model-unknown", text(CODEX, "gpt-5.5", "gpt-55"), text(CODEX, "gpt-55", "gpt-5.5")),
    Case("timeout-below-p95", both(recorded(), claude_env(API_TIMEOUT_MS="5000"))),
    Case("gateway-429", recorded(status_code=429, error_type="429"), forget_calls),
    # What is ours.
    Case("settings-unusable", put("config.toml", 'contents = "full"'), put("config.toml", "")),
    Case("store-unusable", put("store.sqlite3", "garbage" * 1000), forget_calls),
    Case("watcher-dead", old_event),
    Case("watcher-stuck", both(old_event, watched), end_watcher),
    Case("spool-damaged", put("spool/bad/1.event")),
    Case("home-open-to-others", lambda world: world.state.chmod(0o755)),
    Case("sink-settings", env("TRACEBRIDGE_SINKS", "otpl"), env("TRACEBRIDGE_SINKS", "")),
    Case("sink-of-the-shell", env("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4318")),
    Case("sink-of-the-shell", env("TRACEBRIDGE_SINKS", "json_file:/tmp/spans.jsonl")),
    Case(
        "sink-of-the-shell",
        both(
            put("config.toml", 'sinks = "otlp_http:http://backend.example"'),
            env("https_proxy", "http://127.0.0.1:9"),
        ),
    ),
    Case("sink-failing", sink_down, sink_took_it),
    Case(
        "content-full-leaves",
        both(
            env("TRACEBRIDGE_CONTENT", "full"),
            env("OTEL_EXPORTER_OTLP_ENDPOINT", "https://backend.example"),
        ),
    ),
    Case("tags-not-json", env("RESPAN_METADATA", "team=blue")),
    # Keys where others read them.
    Case(
        "key-in-tracked-file", both(repository, write("./.env", f"K_API_KEY={SECRET}\n"), add_all)
    ),
    Case(
        "key-in-tracked-file",
        both(repository, write("./opencode.json", f'{{"apiKey": "{SECRET}"}}'), add_all),
        both(write("./opencode.json", '{"apiKey": "{env:KEY}"}'), add_all),
    ),
    Case(
        "key-in-project-file",
        both(repository, write("./.gemini/.env", f"export GEMINI_API_KEY='{SECRET}'\n")),
    ),
    Case(
        "key-in-git-history",
        both(
            repository,
            write("./.claude/settings.json", json.dumps({"env": {"ANTHROPIC_API_KEY": SECRET}})),
            commit,
            write("./.claude/settings.json", "{}"),
        ),
        amend,
    ),
    Case(
        "vscode-fiction",
        write("./.vscode/settings.json", '{// mine\n"aiCoding.agentConfig": {"a": 1},}'),
        write("./.vscode/settings.json", "{}"),
    ),
]


def printed(world: World, found) -> str:
    return as_text(found, {}, world.place) + json.dumps(as_json(found, {}))


def test_a_healthy_set_up_fires_none(world):
    """Four agents with hooks, a gateway and models that it lists."""
    found = world.diagnose()
    assert not found, as_text(found, {}, world.place)
    result = world.tracebridge("doctor")
    assert (result.returncode, result.stderr) == (0, "")
    assert "no problem" in result.stdout
    everything = world.tracebridge("doctor", "claude", "codex", "gemini", "opencode")
    assert everything.returncode == 0, everything.stdout


@pytest.mark.parametrize(
    "case", CASES, ids=[f"{number}-{case.rule}" for number, case in enumerate(CASES)]
)
def test_a_fault_is_found_and_mended(world, case):
    """The rule fires, names a place and a remedy and no key; after the remedy it is silent."""
    case.fault(world)
    found = world.found(case.rule, *case.named)
    assert found, [each.rule.id for each in world.diagnose(*case.named)]
    for each in found:
        assert each.finding.problem
        assert each.finding.remedy
    for secret in (*KEYS, SECRET):
        assert secret not in printed(world, found)
    if case.remedy is not None:
        case.remedy(world)
    else:
        assert found[0].command is not None, "nothing to type"
        result = world.shell(found[0].command.replace("…", "value"))
        assert "Traceback" not in result.stderr, result.stderr
    left = world.found(case.rule, *case.named)
    assert not left, as_text(left, {}, world.place)
    if listener := getattr(world, "listener", None):
        listener.close()


def test_every_rule_has_a_case():
    """And every rule that fires is one of them."""
    assert {case.rule for case in CASES} == set(rules())


def test_every_rule_is_told():
    """An id of one form, a joint that it breaks, what is wrong, and why that matters."""
    joints = {"program", "turn", "hooks", "watcher", "gateway", "link", "sink", "safety"}
    for name, (rule, _) in rules().items():
        assert name == rule.id
        assert set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")
        assert rule.joint in joints
        assert rule.summary.endswith(".")
        assert rule.reason.endswith(".")


def test_the_page_of_rules_is_fresh():
    """`tracebridge doctor --rules > docs/doctor.md` writes it."""
    assert DOCUMENT.read_text() == rules_page()


def garbage() -> list[bytes]:
    return [
        b"",
        b"\n",
        b"\x00\xff\xfe" * 100,
        b"{" * 5000,
        b"[" * 100_000,
        b'{"env": [], "hooks": {"Stop": {"hooks": 5}}, "plugin": {}, "model": {}, "provider": []}',
        b'{"hooks": {"Stop": [5, {"hooks": [7, null, {"command": 5}]}]}, "env": {"A": {"b": 1}}}',
        b'{"env": {"ANTHROPIC_BASE_URL": 5, "ANTHROPIC_API_KEY": null}, "model": true}',
        b'{"env": {"ANTHROPIC_BASE_URL": "http://[::1"}, "plugin": [["x", {"hook": 5}], []]}',
        b'{"provider": {"anthropic": {"options": {"baseURL": "http://x:port/", "apiKey": 7}}}}',
        b'{"customApiKeyResponses": 5, "enabledPlugins": {"tracebridge@x": 7}, "security": 7}',
        b'model = 7\nmodel_provider = "x"\n[model_providers]\nx = 5\n',
        b'[model_providers.x]\nenv_key = 5\nbase_url = []\n[hooks]\nstate = "x"\n',
        b"GOOGLE_GEMINI_BASE_URL\n=\nA=B=C\nexport GEMINI_API_KEY='unclosed\n",
        b'{"env": {"ANTHROPIC_BASE_URL": "' + b"h" * 1_000_000 + b'"}}',
        b'{"a": 1' + b"0" * 10_000 + b"}",
    ]


FILES = (
    CLAUDE,
    STATE,
    CODEX,
    CODEX_HOOKS,
    GEMINI,
    GEMINI_ENV,
    OPENCODE,
    "./.claude/settings.json",
    "./.vscode/settings.json",
    "./.env",
)


@pytest.mark.parametrize("data", garbage(), ids=range(len(garbage())))
def test_whatever_stands_in_a_file(world, data):
    """Everything else is still looked at; nothing crashes, and the file is not changed."""
    repository(world)
    for path in FILES:
        world.file(path).parent.mkdir(parents=True, exist_ok=True)
        world.file(path).write_bytes(data)
    add_all(world)
    world.env["TRACEBRIDGE_SINKS"] = "otpl"
    result = world.tracebridge("doctor", "--json", "claude", "codex", "gemini", "opencode")
    assert result.stderr == ""
    assert result.returncode == 3
    assert "sink-settings" in {each["rule"] for each in json.loads(result.stdout)["findings"]}
    assert world.tracebridge("route").returncode == 0
    assert all(world.file(path).read_bytes() == data for path in FILES)


def test_files_that_are_none(world, tmp_path):
    """Folders, dangling links, pipes and folders that are files."""
    for path in (CLAUDE, CODEX, GEMINI_ENV):
        world.file(path).unlink()
    world.file(CLAUDE).mkdir()
    world.file(CODEX).symlink_to(tmp_path / "gone")
    os.mkfifo(world.file(GEMINI_ENV))
    (world.project / ".claude").write_text("a file")
    result = world.tracebridge("doctor", "--json")
    assert result.stderr == ""
    broken = [
        each["problem"]
        for each in json.loads(result.stdout)["findings"]
        if each["rule"] == "settings-file-broken"
    ]
    assert len(broken) == 3
    assert any("not a file" in problem for problem in broken)
    assert any("a link to a file that is not there" in problem for problem in broken)


def test_a_broken_file_is_told_with_its_line(world):
    """And with what is wrong there, but not with what stands there."""
    world.file(CLAUDE).write_text('{\n  "env": {\n    "ANTHROPIC_API_KEY": sk-ant-oops,\n  }\n}')
    (found,) = world.found("settings-file-broken")
    assert "line 3" in found.finding.problem
    assert "oops" not in printed(world, [found])


def test_the_exit_code_and_the_json(world):
    """3 with a problem, 0 with notes alone, 2 for a word that is neither agent nor rule."""
    env("ANTHROPIC_BASE_URL", RESPAN)(world)
    noted = world.tracebridge("doctor")
    # OpenCode's requests have their base URL in a file, too.
    assert (noted.returncode, "2 notes" in noted.stdout) == (0, True)
    base_url("https://gateway.example/v1")(world)
    result = world.tracebridge("doctor", "--json", "claude-base-url-v1")
    assert result.returncode == 3
    (finding,) = json.loads(result.stdout)["findings"]
    assert finding["rule"] == "claude-base-url-v1"
    assert finding["agent"] == "claude-code"
    assert finding["severity"] == "problem"
    (place,) = finding["at"]
    assert place["file"] == str(world.file(CLAUDE))
    assert place["key"] == "env.ANTHROPIC_BASE_URL"
    assert place["line"] == 4
    assert finding["command"] == "tracebridge doctor --fix claude-base-url-v1"
    assert (finding["fixable"], finding["fixed"]) == (True, False)
    wrong = world.tracebridge("doctor", "claude-base-url")
    assert wrong.returncode == 2
    assert "neither an agent" in wrong.stderr


def test_nothing_is_changed_without_fix(world):
    """Not even the time of a file, nor our own home."""
    base_url("https://gateway.example/v1")(world)

    def state():
        paths = sorted([*world.home.rglob("*"), *world.project.rglob("*"), *world.state.rglob("*")])
        return {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in paths}

    before = state()
    assert world.tracebridge("doctor").returncode == 3
    assert world.tracebridge("route").returncode == 0
    assert state() == before


def test_fix_mends_what_is_safe_and_keeps_the_file_as_it_was(world, tmp_path):
    """Through a link, with comments, line ends and mode; what is not safe only by its name."""
    elsewhere = tmp_path / "dotfiles.toml"
    text(CODEX, '"responses"', '"chat"')(world)
    elsewhere.write_bytes(world.file(CODEX).read_bytes().replace(b"\n", b"\r\n"))
    elsewhere.chmod(0o640)
    world.file(CODEX).unlink()
    world.file(CODEX).symlink_to(elsewhere)
    before = elsewhere.read_bytes()
    claude(routing={"apiBaseUrl": "x"})(world)
    result = world.tracebridge("doctor", "--fix")
    assert result.returncode == 3, result.stdout
    assert "claude-routing-fiction" in result.stdout
    assert "mended" in result.stdout
    assert elsewhere.read_bytes() == before.replace(b'"chat"', b'"responses"')
    assert elsewhere.stat().st_mode & 0o777 == 0o640
    assert world.file(CODEX).is_symlink()
    assert before in [path.read_bytes() for path in (world.state / "backups").iterdir()]
    named = world.tracebridge("doctor", "--fix", "claude-routing-fiction")
    assert named.returncode == 0, named.stdout
    assert world.tracebridge("doctor").returncode == 0


def test_several_faults_in_one_file_are_mended_at_once(world):
    """Each edit is made to what the one before it left."""
    claude_env(ANTHROPIC_TIMEOUT_MS="1", CLAUDE_CODE_GATEWAY_HINT_HEADERS="0")(world)
    base_url("https://gateway.example/v1")(world)
    result = world.tracebridge("doctor", "--fix")
    assert result.returncode == 0, result.stdout
    settings = json.loads(world.file(CLAUDE).read_text())["env"]
    assert settings == {
        "ANTHROPIC_BASE_URL": "https://gateway.example",
        "API_TIMEOUT_MS": "1",
        "CLAUDE_CODE_GATEWAY_HINT_HEADERS": "1",
    }


def test_without_anything(tmp_path):
    """No agent, no home, no git: nothing to find."""
    world = World(tmp_path, "https://gateway.example")
    for program in world.bin.iterdir():
        program.unlink()
    for path in (".claude", ".codex", ".gemini", ".config"):
        world.file(path).rename(tmp_path / path)
    world.file(STATE).unlink()
    world.state.rmdir()
    world.env = {"HOME": str(world.home), "TRACEBRIDGE_HOME": str(world.state), "PATH": "/nowhere"}
    assert world.tracebridge("doctor").returncode == 0
    assert not world.state.exists()


def test_what_cannot_be_mended_is_said_and_the_rest_is_mended(world):
    """The file as it was cannot be kept, so it is not touched; the folder's mode can be set."""
    base_url("https://gateway.example/v1")(world)
    world.state.chmod(0o755)
    (world.state / "backups").write_text("not a folder")
    before = world.file(CLAUDE).read_bytes()
    result = world.tracebridge("doctor", "--fix")
    assert result.returncode == 1
    assert "claude-base-url-v1" in result.stderr
    assert "nothing was changed" in result.stderr
    assert world.file(CLAUDE).read_bytes() == before
    assert world.state.stat().st_mode & 0o777 == 0o700


def test_a_plugin_of_ours_counts_as_hooks(world):
    """Nothing is missing, but it cannot switch the hint headers on."""
    without_hooks(world)
    world.edit(
        CLAUDE,
        {"enabledPlugins": {"tracebridge@tracebridge": True}},
        env={"CLAUDE_CODE_GATEWAY_HINT_HEADERS": ""},
    )
    assert not world.found("hooks-missing", "claude-code")
    assert world.found("claude-hint-headers-off")
    assert world.tracebridge("doctor", "--fix", "claude-hint-headers-off").returncode == 0


def test_what_a_project_says_steers_neither_terminal_nor_shell(world):
    """Its values are shown without what would, and are no part of a command but in quotes."""
    hostile = "https://x/\x1b[2J$(touch hit)`touch hit`';touch hit;'/v1"
    world.edit("./.claude/settings.local.json", env={"ANTHROPIC_BASE_URL": hostile})
    world.edit("./.claude/settings.local.json", {"model": "[bold]x[/bold]\x1b[31m"})
    for words in (("doctor", "claude"), ("route",), ("doctor", "--json", "claude")):
        result = world.tracebridge(*words)
        assert "\x1b" not in result.stdout
        assert result.stderr == ""
    for each in world.diagnose("claude-code"):
        if each.command is not None and each.agent == "claude-code":
            world.shell(f"set -- {each.command}")
    assert not (world.project / "hit").exists()
