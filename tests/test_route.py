"""`route` says what wins and why, `env` prints lines that a shell takes, and neither shows a key."""

from __future__ import annotations

import json
import shutil
import subprocess

import pytest
from setups import ANTHROPIC_KEY, GEMINI_KEY, KEYS, OPENAI_KEY, World

from tracebridge.agents import agents
from tracebridge.route import SHELLS, env_lines, routes
from tracebridge.routing import ByHand, Reference, is_loopback, mask, routing_module

SECRET = "sk-proj-secret0123456789abcdefghijk"


@pytest.fixture
def world(tmp_path):
    return World(tmp_path, "http://127.0.0.1:4141")


def route(world, slug):
    return routes([agents()[slug]], world.place)[slug]


def won(answer):
    source = answer.won.source
    return answer.value, source.variable or (source.file.path.name, ".".join(map(str, source.keys)))


def test_claude_code_by_scope(world):
    """Managed beats local beats project beats user beats the shell, each variable alone."""
    name = "ANTHROPIC_BASE_URL"
    world.edit(".claude/settings.json", env={})
    settings = json.loads(world.file(".claude/settings.json").read_text())
    del settings["env"][name]
    world.file(".claude/settings.json").write_text(json.dumps(settings))
    assert route(world, "claude-code").url == "https://api.anthropic.com"
    world.env[name] = "https://shell"
    assert won(route(world, "claude-code").base_url) == ("https://shell", name)
    for path in (
        ".claude/settings.json",
        "./.claude/settings.json",
        "./.claude/settings.local.json",
    ):
        world.edit(path, env={name: f"https://{path}"})
        value, (file, key) = won(route(world, "claude-code").base_url)
        assert value == f"https://{path}"
        assert (file, key) == (path.rpartition("/")[2], f"env.{name}")
    managed = world.root / "etc" / "claude-code" / "managed-settings.json"
    managed.parent.mkdir(parents=True)
    managed.write_text(json.dumps({"env": {name: "https://managed"}}))
    base = route(world, "claude-code").base_url
    assert base.value == "https://managed"
    assert [said.value for said in base.overruled] == [
        "https://./.claude/settings.local.json",
        "https://./.claude/settings.json",
        "https://.claude/settings.json",
        "https://shell",
    ]


def test_claude_code_rest(world):
    """Keys, extra headers, the model and the time limit; an empty value silences another."""
    world.env |= {"ANTHROPIC_AUTH_TOKEN": SECRET, "API_TIMEOUT_MS": "9"}
    world.edit(
        ".claude/settings.json",
        env={
            "ANTHROPIC_AUTH_TOKEN": "",
            "ANTHROPIC_CUSTOM_HEADERS": 'X-Team: blue\nno colon\nX-Meta: {"a": 1}',
        },
    )
    found = route(world, "claude-code")
    assert found.key.value == ANTHROPIC_KEY
    assert found.key.won.source.variable == "ANTHROPIC_API_KEY"
    assert [(header.name, header.value) for header in found.headers] == [
        ("X-Team", "blue"),
        ("X-Meta", '{"a": 1}'),
    ]
    assert (found.timeout_ms.value, found.model.value) == ("9", "claude-opus-5-5")


def test_codex(world):
    """The provider in use, by a profile, too; its key is a variable's."""
    found = route(world, "codex-cli")
    assert won(found.base_url) == (
        "http://127.0.0.1:4141/api",
        ("config.toml", "model_providers.gateway.base_url"),
    )
    assert (found.key.name, found.key.value) == ("GATEWAY_API_KEY", OPENAI_KEY)
    config = world.file(".codex/config.toml")
    config.write_text(
        'profile = "p"\nmodel = "a"\n[profiles.p]\nmodel = "b"\nmodel_provider = "openai"\n'
        '[model_providers.x]\nhttp_headers = {"X-A" = "1"}\n'
    )
    world.env["OPENAI_API_KEY"] = SECRET
    found = route(world, "codex-cli")
    assert found.url == "https://api.openai.com/v1"
    assert [said.value for said in found.model.said] == ["b", "a"]
    assert found.key.value == SECRET
    world.env["CODEX_HOME"] = str(world.project)
    assert route(world, "codex-cli").model.won is None


def test_gemini(world):
    """One .env file and no other; the shell beats it; Vertex has a base URL of its own."""
    found = route(world, "gemini-cli")
    assert won(found.base_url)[1] == (".env", "GOOGLE_GEMINI_BASE_URL")
    assert (found.key.value, found.model.value) == (GEMINI_KEY, "gemini-2.5-pro")
    (world.project / ".env").write_text("PORT=1\n")
    assert not route(world, "gemini-cli").is_custom
    (world.project / ".gemini").mkdir()
    (world.project / ".gemini" / ".env").write_text("GOOGLE_GEMINI_BASE_URL=https://nearer\n")
    assert route(world, "gemini-cli").url == "https://nearer"
    world.env["GOOGLE_GEMINI_BASE_URL"] = "https://shell"
    assert route(world, "gemini-cli").url == "https://shell"
    world.edit(".gemini/settings.json", {"security": {"auth": {"selectedType": "vertex-ai"}}})
    found = route(world, "gemini-cli")
    assert (found.family, found.url) == ("vertex", "https://aiplatform.googleapis.com")


def test_opencode(world):
    """The configuration beats the variable, and of several the one nearest to the project."""
    world.env["ANTHROPIC_BASE_URL"] = "https://shell"
    found = route(world, "opencode")
    assert found.url == "http://127.0.0.1:4141/api/anthropic/v1"
    assert [said.value for said in found.base_url.overruled] == ["https://shell"]
    options = {"baseURL": "https://p/v1", "apiKey": "{env:OTHER}", "headers": {"X-A": "1"}}
    (world.project / "opencode.jsonc").write_text(
        '{// mine\n"provider": {"anthropic": {"options": ' + json.dumps(options) + "}},}"
    )
    world.env["OTHER"] = SECRET
    found = route(world, "opencode")
    assert (found.url, found.key.value) == ("https://p/v1", SECRET)
    assert [header.name for header in found.headers] == ["X-A"]
    world.env["OPENCODE_CONFIG_CONTENT"] = '{"model": "openai/gpt-5.5"}'
    found = route(world, "opencode")
    assert (found.family, found.url) == ("openai", "https://api.openai.com/v1")


def test_the_command(world):
    """A table for people, JSON for programs, and no key in either."""
    world.env |= {"ANTHROPIC_AUTH_TOKEN": SECRET, "GOOGLE_GEMINI_BASE_URL": f"http://u:{SECRET}@g/"}
    printed = world.tracebridge("route")
    assert printed.returncode == 0, printed.stderr
    for word in ("~/.claude/settings.json", "$ANTHROPIC_API_KEY", "openai/gpt-5.5", "overruled"):
        assert word in printed.stdout
    told = world.tracebridge("route", "--json", "claude", "gemini", "codex", "opencode")
    for text in (printed.stdout, told.stdout):
        assert not any(secret in text for secret in (*KEYS, SECRET))
    claude = json.loads(told.stdout)["claude-code"]
    assert claude["base_url"]["value"] == "http://127.0.0.1:4141/api/anthropic"
    source = claude["base_url"]["source"]
    assert source["file"] == str(world.file(".claude/settings.json"))
    assert (source["line"], source["key"]) == (4, "env.ANTHROPIC_BASE_URL")
    assert claude["keys"][0]["source"] == {"variable": "ANTHROPIC_API_KEY"}
    unknown = world.tracebridge("route", "cursor")
    assert (unknown.returncode, "unknown agent" in unknown.stderr) == (2, True)


@pytest.mark.parametrize("slug", list(agents()))
def test_lines_route_an_agent_by_hand(world, slug):
    """Typed into bash, `route` and `doctor` see them; the key is a reference and is not printed."""
    for path in (".claude", ".codex", ".gemini", ".config"):
        shutil.rmtree(world.file(path))
    words = (slug, "--gateway", "respan", "--api-key-env", "RESPAN_API_KEY", "--shell", "bash")
    world.env["RESPAN_API_KEY"] = SECRET
    lines = world.tracebridge("env", *words)
    assert lines.returncode == 0, lines.stderr
    assert SECRET not in lines.stdout
    assert "RESPAN_API_KEY" in lines.stdout
    assert world.shell(lines.stdout).returncode == 0
    if slug != "codex-cli":
        # It has no variable for it: the lines are a function of the agent's name.
        found = route(world, slug)
        assert found.url.startswith("https://api.respan.ai/api/")
        assert found.key.value == SECRET
        assert world.found("claude-two-credentials") == []


def test_env_takes_no_key(world):
    """Nor a gateway that is none, nor an agent that is none."""
    for words in (
        ("claude", "--api-key-env", "sk-secret-0123456789"),
        ("claude", "--gateway", "nowhere"),
        ("claude", "--gateway", "none"),
        ("cursor",),
    ):
        result = world.tracebridge("env", *words)
        assert (result.returncode, result.stdout) == (2, "")
        assert "0123456789" not in result.stderr


AWKWARD = "a'b\"c\\d $HOME `x` é"


def test_words_reach_the_program_as_they_are(tmp_path):
    """Whatever stands in them."""
    program = tmp_path / "agent"
    program.write_text('#!/bin/sh\nprintf \'%s\\n\' "$VALUE" "$KEY" "$@"\n')
    program.chmod(0o755)
    by_hand = ByHand({"VALUE": AWKWARD, "KEY": Reference("SECRET")}, ("-c", AWKWARD))
    lines = env_lines(by_hand, "agent", "bash")
    result = subprocess.run(
        ["bash", "-c", "\n".join([*lines, "agent given"])],
        env={"PATH": f"{tmp_path}:/usr/bin:/bin", "SECRET": "s3cret"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout.splitlines() == [AWKWARD, "s3cret", "-c", AWKWARD, "given"]


def test_lines_of_other_shells():
    """In fish a backslash escapes in quotes, in PowerShell a quote is doubled."""
    by_hand = ByHand({"VALUE": "it's", "KEY": Reference("SECRET")}, ("-c", 'a="b"'))
    assert SHELLS == ("bash", "fish", "powershell")
    assert env_lines(by_hand, "agent", "fish") == [
        "set -gx VALUE 'it\\'s'",
        'set -gx KEY "$SECRET"',
        "function agent; command agent '-c' 'a=\"b\"' $argv; end",
    ]
    assert env_lines(by_hand, "agent", "powershell")[:2] == [
        "$env:VALUE = 'it''s'",
        "$env:KEY = $env:SECRET",
    ]


def test_every_agent_has_a_routing_module():
    """With all that is expected of one; it is not loaded with the agent itself."""
    for agent in agents().values():
        module = routing_module(agent)
        assert module.PROMPT in " ".join(module.one_turn(("-x",)))
        assert "-x" in module.one_turn(("-x",))
        assert module.expected_events()
        assert module.by_hand({}, None) == ByHand({})


def test_what_is_loopback():
    """Names that only look so are not."""
    for url in ("http://127.0.0.1:1", "http://localhost/x", "http://[::1]:2", "http://127.9.9.9"):
        assert is_loopback(url)
    for url in ("http://127.0.0.1.example", "http://localhost.example", "http://[::1", "", "x"):
        assert not is_loopback(url)


def test_a_mask_hides():
    """Three letters and a length; of what is short not even that."""
    assert mask(SECRET) == "sk-… (35 characters)"
    assert mask("password") == "…"
