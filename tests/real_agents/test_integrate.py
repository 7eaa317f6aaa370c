"""`integrate`, one turn, `integrate --remove`, on the real agents with settings that people have."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from claude import BINARY, REPOSITORY, ClaudeCode
from codex import BINARY as CODEX
from codex import CodexCli
from gemini import GeminiCli
from opencode import OpenCode
from terminal import wait_until

from tracebridge import semconv
from tracebridge.agents._hooks import is_ours
from tracebridge.agents.codex_cli.trust import known_hooks
from tracebridge.run import started_gateway
from tracebridge.testing.receiver import Receiver
from tracebridge.testing.scripted_gemini import ScriptedGemini
from tracebridge.testing.scripted_model import Reply, ScriptedModel, Text, ToolUse
from tracebridge.testing.scripted_responses import ScriptedResponses
from tracebridge.watch_lock import is_watched

pytestmark = pytest.mark.real_agent

KEY = "sk-respan-fake-0123456789"
PROMPT = "say hello"
# Nobody listens there: only what integrate writes leads to the model.
NOWHERE = "http://127.0.0.1:9"


class Gemini(GeminiCli):
    """Gemini CLI with nothing but the key in its environment."""

    def environment(self) -> dict[str, str]:
        env = super().environment()
        del env["GOOGLE_GEMINI_BASE_URL"]
        return env


def claude(workdir: Path, env: Mapping[str, str]) -> Any:
    agent = ClaudeCode(workdir=workdir, base_url=NOWHERE, settings_env={}, env=env)
    theirs = {
        "model": "opus",
        "permissions": {"allow": ["Bash(git:*)"], "deny": []},
        "unknown": {"deep": [1, 2.5, 1e400, None, "é"]},
        "env": {"ANTHROPIC_CUSTOM_HEADERS": "X-Team: blue", "FOO": "1"},
        "skipDangerousModePermissionPrompt": True,
        "hooks": {"Stop": [{"hooks": [{"type": "command", "command": f"echo >>{mark(workdir)}"}]}]},
    }
    text = json.dumps(theirs, indent=3, ensure_ascii=False).replace("Infinity", "1e400")
    text = text.replace("\n", "\r\n")
    linked(agent.home / ".claude" / "settings.json", workdir / "dotfiles", text)
    return agent


def codex(workdir: Path, env: Mapping[str, str]) -> Any:
    # In a temporary home Codex would warn, and its own trust must be all there is.
    agent = CodexCli(workdir=workdir, base_url=NOWHERE, env=env, trusted=False)
    hook = {"type": "command", "command": "true", "timeout": 3}
    theirs = {"hooks": {"Stop": [{"hooks": [hook]}]}, "description": "é"}
    (agent.config / "hooks.json").write_text(json.dumps(theirs))
    config = agent.config / "config.toml"
    notify = ["/bin/sh", "-c", f"echo >>{mark(workdir)}", "sh"]
    text = "# mine — keep\nnotify = [\n  " + ",  # é\n  ".join(map(json.dumps, notify)) + ",\n]\n"
    linked(config, workdir / "dotfiles", text + config.read_text().rstrip())
    return agent


def gemini(workdir: Path, env: Mapping[str, str]) -> Any:
    agent = Gemini(workdir=workdir, base_url=NOWHERE, env=env)
    settings = agent.home / ".gemini" / "settings.json"
    theirs = json.loads(settings.read_text())
    hook = {"type": "command", "command": f"echo >>{mark(workdir)}"}
    theirs["hooks"] = {"AfterAgent": [{"matcher": "*", "hooks": [hook]}]}
    theirs["telemetry"] = {"enabled": False}
    text = json.dumps(theirs, indent="\t")
    linked(settings, workdir / "dotfiles", "// mine — keep\n" + text)
    (agent.home / ".gemini" / ".env").write_bytes(b"# mine\r\nFOO='b a r'\r\nBAR=1")
    return agent


def opencode(workdir: Path, env: Mapping[str, str]) -> Any:
    agent = OpenCode(workdir=workdir, base_url=NOWHERE, env=env)
    folder = agent.home / ".config" / "opencode"
    # What integrate is to make.
    shutil.rmtree(folder / "node_modules")
    (folder / "package-lock.json").unlink()
    theirs = workdir / "theirs.js"
    append = f'require("node:fs").appendFileSync({json.dumps(str(mark(workdir)))}, "x")'
    theirs.write_text(
        'import { createRequire } from "node:module"\n'
        "const require = createRequire(import.meta.url)\n"
        f'export const T = async () => ({{ "chat.message": async () => {{ {append} }} }})\n'
    )
    written = json.loads((folder / "opencode.json").read_text())
    (folder / "opencode.json").unlink()
    # OpenCode adds it where it is missing.
    written = {"$schema": "https://opencode.ai/config.json", **written}
    written["plugin"] = [theirs.as_uri()]
    text = json.dumps(written, indent=2).replace('"share"', '// mine — keep\n  "share"')
    linked(folder / "opencode.jsonc", workdir / "dotfiles", text.replace("]\n}", "], /* é */\n}"))
    return agent


def mark(workdir: Path) -> Path:
    """Return the file by which a hook of somebody else shows that it ran."""
    return workdir / "mark-of-somebody-else"


def linked(path: Path, dotfiles: Path, text: str) -> None:
    """Keep a settings file as many people do: somewhere else, with a link to it."""
    dotfiles.mkdir(exist_ok=True)
    path.unlink(missing_ok=True)
    (dotfiles / path.name).write_bytes(text.encode())
    (dotfiles / path.name).chmod(0o640)
    path.symlink_to(dotfiles / path.name)


@dataclass(frozen=True)
class Case:
    make: Callable[[Path, Mapping[str, str]], Any]
    model: type[ScriptedModel]
    family: str
    evidence: str
    # Where settings lie, below the home.
    folder: str
    options: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    reply: tuple[Reply, ...] = (Reply((Text("Hello."),)),)


CASES = {
    "claude-code": Case(
        claude,
        ScriptedModel,
        "anthropic",
        "turn_id",
        ".claude",
        ("--api-key-env", "RESPAN_API_KEY", "--route-provider", "vertex_ai"),
    ),
    "codex-cli": Case(
        codex,
        ScriptedResponses,
        "openai",
        "turn_id",
        ".codex",
        ("--api-key-env", "CMD:printenv RESPAN_API_KEY", "--trust-hooks"),
    ),
    "gemini-cli": Case(
        gemini,
        ScriptedGemini,
        "gemini",
        "tool_call_id",
        ".gemini",
        ("--route-provider", "vertex_ai"),
        {"GEMINI_API_KEY": KEY},
        (
            Reply((ToolUse("run_shell_command", {"command": "echo hi"}),)),
            Reply((Text("Hello."),)),
        ),
    ),
    "opencode": Case(
        opencode,
        ScriptedModel,
        "anthropic",
        "traceparent",
        ".config/opencode",
        ("--api-key-env", "RESPAN_API_KEY", "--route-provider", "vertex_ai"),
    ),
}


def files_in(folder: Path) -> dict[str, tuple[str, int]]:
    """Return hash and mode of every file, and where links lead."""
    return {
        str(path.relative_to(folder)): (
            str(path.readlink()) if path.is_symlink() else hash_of(path),
            path.lstat().st_mode,
        )
        for path in folder.rglob("*")
        if path.is_symlink() or path.is_file()
    }


def hash_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("slug", CASES)
def test_in_one_turn_and_out_again(slug, tmp_path, monkeypatch):
    """The turn is one linked trace through the gateway; then every file is what it was."""
    case = CASES[slug]
    home = tmp_path / "state"
    env = {"TRACEBRIDGE_HOME": str(home), "RESPAN_API_KEY": KEY, **case.env}
    # Only a hook can tell of it.
    env["RESPAN_PROJECT_ID"] = "from the environment"
    monkeypatch.setenv("TRACEBRIDGE_HOME", str(home))
    agent = case.make(tmp_path / "play", env)
    monkeypatch.setenv("HOME", str(agent.home))
    programs = REPOSITORY / ".agents" / "bin"
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    folders = [agent.home / case.folder, tmp_path / "play" / "dotfiles", agent.project]
    before = [files_in(folder) for folder in folders]
    with Receiver() as receiver, case.model({PROMPT: list(case.reply)}) as model:
        home.mkdir()
        endpoint = f'OTEL_EXPORTER_OTLP_ENDPOINT = "{receiver.endpoint}"\n'
        (home / "config.toml").write_text(f"idle_minutes = 0.02\n[env]\n{endpoint}")
        with started_gateway([f"{case.family}={model.url}"], dict(os.environ)) as url:
            gateway = ("--gateway", url, "--customer-id", "acme", "--attrs", '{"team": "blue"}')
            integrate(slug, *gateway, *case.options)
            wired = [files_in(folder) for folder in folders]
            assert agent.run(PROMPT).exit_code == 0
            wait_until(lambda: told(receiver), complaint="no turn arrives")
        if "--trust-hooks" in case.options:
            (found,) = known_hooks(str(CODEX), agent.config, agent.environment())
            states = {(is_ours(hook), hook["trustStatus"]) for hook in found["hooks"]}
            assert states == {(True, "trusted"), (False, "untrusted")}
        wait_until(lambda: not is_watched(home), complaint="the idle watcher does not leave")
        # What came when it was about to leave.
        subprocess.run([sys.executable, "-m", "tracebridge", "watch", "--once"], check=True)
        judge(receiver, model, case, mark(tmp_path / "play"))
        if slug == "opencode":
            # Nothing was fetched from a package registry.
            assert not (folders[0] / "package.json").exists()
        assert settings_only(wired[0], files_in(folders[0])) == wired[0]
    integrate(slug, "--remove")
    assert settings_only(before[0], files_in(folders[0])) == before[0]
    assert files_in(folders[1]) == before[1]
    assert settings_only(before[2], files_in(folders[2])) == before[2]
    assert not (folders[0] / "respan.json").exists()


def told(receiver: Receiver) -> bool:
    return any(span.attributes[semconv.SPAN_TYPE] == "turn" for span in receiver.spans)


def judge(receiver: Receiver, model: ScriptedModel, case: Case, theirs: Path) -> None:
    (turn,) = [s for s in receiver.spans if s.attributes[semconv.SPAN_TYPE] == "turn"]
    chats = [s for s in receiver.spans if s.attributes[semconv.SPAN_TYPE] == "llm"]
    assert len(chats) == len(model.calls()) > 0
    for chat in chats:
        assert chat.trace_id == turn.trace_id
        assert chat.attributes[semconv.LINK_EVIDENCE] == case.evidence
    for span in receiver.spans:
        assert span.attributes[semconv.USER_ID] == "acme"
        assert span.attributes[semconv.PROJECT_ID] == "from the environment"
        assert span.attributes[semconv.METADATA_PREFIX + "team"] == "blue"
    for attempt in model.calls():
        names = ("authorization", "x-api-key", "x-goog-api-key")
        assert KEY in {attempt.headers.get(name, "").removeprefix("Bearer ") for name in names}
        if "--route-provider" in case.options:
            assert attempt.headers["x-respan-route-provider"] == "vertex_ai"
    assert theirs.exists(), "the hook that was there before does not run any more"


def settings_only(
    before: dict[str, tuple[str, int]], after: dict[str, tuple[str, int]]
) -> dict[str, tuple[str, int]]:
    """Return *after* without what the agent itself made meanwhile."""
    return {name: facts for name, facts in after.items() if name in before}


def integrate(*arguments: str) -> str:
    command = [sys.executable, "-m", "tracebridge", "integrate", *arguments]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_the_plugin_tells_of_a_turn(tmp_path, monkeypatch):
    """Installed from the marketplace in this repository; hooks beside it are noticed."""
    home = tmp_path / "state"
    commands = tmp_path / "bin"
    commands.mkdir()
    # As pip writes it: its first line names the interpreter that has the package.
    command = commands / "tracebridge"
    command.write_text(f"#!{sys.executable}\nimport tracebridge.cli\ntracebridge.cli.main()\n")
    command.chmod(0o755)
    env = {
        "TRACEBRIDGE_HOME": str(home),
        "PATH": f"{commands}{os.pathsep}{os.environ['PATH']}",
        "RESPAN_CUSTOMER_ID": "acme",
    }
    monkeypatch.setenv("TRACEBRIDGE_HOME", str(home))
    with Receiver() as receiver, ScriptedModel({PROMPT: [Reply((Text("Hello."),))]}) as model:
        home.mkdir()
        endpoint = f'OTEL_EXPORTER_OTLP_ENDPOINT = "{receiver.endpoint}"\n'
        (home / "config.toml").write_text(f"idle_minutes = 0.02\n[env]\n{endpoint}")
        agent = ClaudeCode(
            workdir=tmp_path / "play",
            base_url=f"{model.url}/api/anthropic",
            settings_env={},
            env=env,
        )
        monkeypatch.setenv("HOME", str(agent.home))
        for words in (("marketplace", "add", str(REPOSITORY)), ("install", "tracebridge")):
            subprocess.run(
                [BINARY, "plugin", *words],
                env=agent.environment(),
                cwd=agent.project,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                check=True,
            )
        assert agent.run(PROMPT).exit_code == 0
        wait_until(lambda: told(receiver), complaint="no turn arrives")
        wait_until(lambda: not is_watched(home), complaint="the idle watcher does not leave")
        # What came when it was about to leave.
        subprocess.run([sys.executable, "-m", "tracebridge", "watch", "--once"], check=True)
        (chat,) = [s for s in receiver.spans if s.attributes[semconv.SPAN_TYPE] == "llm"]
        assert chat.attributes[semconv.USER_ID] == "acme"
    assert "twice" in integrate("claude-code")


def test_hooks_that_codex_does_not_take_are_not_called_approved(tmp_path, monkeypatch):
    """It says why; nothing is written."""
    home = tmp_path / "home"
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("PATH", f"{CODEX.parent}{os.pathsep}{os.environ['PATH']}")
    hooks = home / ".codex" / "hooks.json"
    hooks.parent.mkdir(parents=True)
    hooks.write_text('{"note": 1}')
    command = [sys.executable, "-m", "tracebridge", "integrate", "codex", "--trust-hooks"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert "unknown field `note`" in result.stderr
    assert hooks.read_text() == '{"note": 1}'
    assert [path.name for path in hooks.parent.iterdir()] == ["hooks.json"]
