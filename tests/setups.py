"""A user with four agents, all of them set up as they should be: files, programs and a gateway."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from tracebridge.agents import agent, agents
from tracebridge.agents.claude_code.wiring import EVENTS as CLAUDE_EVENTS
from tracebridge.agents.codex_cli.routing import hook_hash
from tracebridge.agents.codex_cli.wiring import EVENTS as CODEX_EVENTS
from tracebridge.agents.gemini_cli.wiring import EVENTS as GEMINI_EVENTS
from tracebridge.config_files import Place
from tracebridge.doctor import Diagnosis, Names, diagnose
from tracebridge.integrate import hooks_directory

ANTHROPIC_KEY = "sk-ant-fake-0123456789abcdefghij"
OPENAI_KEY = "sk-fake-openai-0123456789abcdefg"
GEMINI_KEY = "sk_fake_gemini_0123456789abcdefg"
KEYS = (ANTHROPIC_KEY, OPENAI_KEY, GEMINI_KEY)
MODELS = ("claude-opus-5-5", "claude-haiku-4-5", "openai/gpt-5.5", "gemini-2.5-pro")


class Gateway:
    """Something that listens on loopback and lists its models."""

    def __init__(self, port: int = 0) -> None:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                models = [{"id": name, "name": f"models/{name}"} for name in MODELS]
                body = json.dumps({"data": models}).encode()
                self.send_response(200)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class World:
    """Four agents in a home and a project of their own."""

    def __init__(self, folder: Path, gateway_url: str) -> None:
        self.home, self.project = folder / "user", folder / "project"
        self.state, self.root, self.bin = folder / "state", folder / "root", folder / "bin"
        self.gateway_url = gateway_url
        for each in (self.home, self.project, self.root, self.bin):
            each.mkdir()
        self.state.mkdir(mode=0o700)
        self.env = {
            "PATH": f"{self.bin}:{Path(sys.executable).parent}:{os.defpath}",
            "HOME": str(self.home),
            "TRACEBRIDGE_HOME": str(self.state),
            "ANTHROPIC_API_KEY": ANTHROPIC_KEY,
            "GATEWAY_API_KEY": OPENAI_KEY,
            "GEMINI_API_KEY": GEMINI_KEY,
        }
        for each in agents().values():
            self.program(each.PROGRAM, each.TESTED_VERSION)
        self._claude()
        self._codex()
        self._gemini()
        self._opencode()

    @property
    def place(self) -> Place:
        return Place(self.home, self.project, self.env, self.root)

    def program(self, name: str, version: str) -> None:
        """Put a program on PATH that does nothing but say its version."""
        path = self.bin / name
        path.write_text(f"#!/bin/sh\necho '{name} {version} (a program of the tests)'\n")
        path.chmod(0o755)

    def diagnose(self, *words: str, **more: Any) -> list[Diagnosis]:
        known = {alias for a in agents().values() for alias in (a.SLUG, *a.ALIASES)}
        names = Names(
            tuple(agent(word).SLUG for word in words if word in known),
            tuple(word for word in words if word not in known),
        )
        return diagnose(self.place, names, **more)

    def found(self, rule: str, *words: str, **more: Any) -> list[Diagnosis]:
        return [each for each in self.diagnose(*words, **more) if each.rule.id == rule]

    def shell(self, command: str) -> subprocess.CompletedProcess[str]:
        """Type *command*; what it exports or unsets stays so."""
        after = self.state.parent / "environment"
        done = subprocess.run(
            ["bash", "-c", f"{command}\nstatus=$?; env -0 > '{after}'; exit $status"],
            cwd=self.project,
            env=self.env,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        pairs = (line.partition("=") for line in after.read_text().split("\0") if line)
        noise = {"SHLVL", "_", "PWD", "OLDPWD"}
        self.env = {name: value for name, _, value in pairs if name not in noise}
        return done

    def tracebridge(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "tracebridge", *words],
            cwd=self.project,
            env=self.env,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    def git(self, *words: str) -> None:
        identity = ("-c", "user.name=T", "-c", "user.email=t@example.org")
        command = ["git", "-C", str(self.project), *identity, *words]
        subprocess.run(command, check=True, capture_output=True)

    def edit(self, path: str, change: Mapping[str, Any] | None = None, **deep: Any) -> None:
        """Lay values over those of a JSON file in the home or, with ./, the project."""
        file = self.file(path)
        file.parent.mkdir(parents=True, exist_ok=True)
        settings = json.loads(file.read_text()) if file.exists() else {}
        settings |= change or {}
        for name, values in deep.items():
            settings[name] = {**settings.get(name, {}), **values}
        file.write_text(json.dumps(settings, indent=2))

    def file(self, path: str) -> Path:
        return self.project / path[2:] if path.startswith("./") else self.home / path

    def replace(self, path: str, old: str, new: str) -> None:
        file = self.file(path)
        text = file.read_text()
        assert old in text
        file.write_text(text.replace(old, new))

    def commands(self, slug: str) -> dict[str, str]:
        hooks = hooks_directory()
        python, sh = sys.executable, "/bin/sh"
        return {
            "hook": f"{python} -I -S {hooks / 'tracebridge_hook.py'} {slug} {self.state}",
            "hot": f"{sh} {hooks / 'tracebridge_hook.sh'} {slug} {self.state}",
        }

    def trust_codex(self) -> None:
        """Approve Codex's hooks, as its user does in /hooks."""
        path = self.home / ".codex" / "hooks.json"
        lines = [(self.home / ".codex" / "config.toml").read_text().partition("\n[hooks.")[0], ""]
        for event, groups in json.loads(path.read_text())["hooks"].items():
            snake = "".join(f"_{c.lower()}" if c.isupper() else c for c in event).lstrip("_")
            for place, group in enumerate(groups):
                for number, entry in enumerate(group["hooks"]):
                    lines += [
                        f'[hooks.state."{path}:{snake}:{place}:{number}"]',
                        f'trusted_hash = "{hook_hash(event, group.get("matcher"), entry)}"',
                    ]
        (self.home / ".codex" / "config.toml").write_text("\n".join(lines))

    def _hooks(self, slug: str, events: tuple[str, ...], before: str = "") -> dict[str, Any]:
        command = before + self.commands(slug)["hook"]
        entry = {"type": "command", "command": command, "timeout": 3}
        return {event: [{"hooks": [dict(entry)]}] for event in events}

    def _claude(self) -> None:
        env = {
            "ANTHROPIC_BASE_URL": f"{self.gateway_url}/api/anthropic",
            "CLAUDE_CODE_GATEWAY_HINT_HEADERS": "1",
        }
        settings = {"env": env, "hooks": self._hooks("claude-code", CLAUDE_EVENTS)}
        self.edit(".claude/settings.json", {"model": "claude-opus-5-5", **settings})
        approved = {"approved": [ANTHROPIC_KEY[-20:]], "rejected": []}
        self.edit(".claude.json", {"customApiKeyResponses": approved})

    def _codex(self) -> None:
        self.edit(".codex/hooks.json", {"hooks": self._hooks("codex-cli", CODEX_EVENTS)})
        (self.home / ".codex" / "config.toml").write_text(
            f"""# mine
model = "openai/gpt-5.5"
model_provider = "gateway"
model_reasoning_summary = "auto"

[model_providers.gateway]
name = "Gateway"
base_url = "{self.gateway_url}/api" # ours
wire_api = "responses"
env_key = "GATEWAY_API_KEY"
"""
        )
        self.trust_codex()

    def _gemini(self) -> None:
        hooks = self._hooks("gemini-cli", GEMINI_EVENTS, "TRACEBRIDGE_AGENT_PID=$PPID ")
        auth = {"auth": {"selectedType": "gemini-api-key"}}
        model = {"name": "gemini-2.5-pro"}
        self.edit(".gemini/settings.json", {"security": auth, "model": model, "hooks": hooks})
        base = f"{self.gateway_url}/api/google/gemini"
        (self.home / ".gemini" / ".env").write_text(f"GOOGLE_GEMINI_BASE_URL={base}\n")

    def _opencode(self) -> None:
        words = self.commands("opencode")["hook"].split()
        plugin = [(hooks_directory() / "opencode.js").as_uri(), {"home": words[-1], "hook": words}]
        base = {"baseURL": f"{self.gateway_url}/api/anthropic/v1"}
        self.edit(
            ".config/opencode/opencode.json",
            {
                "model": "anthropic/claude-haiku-4-5",
                "provider": {"anthropic": {"options": base}},
                "plugin": [plugin],
            },
        )
        (self.home / ".config" / "opencode" / "package-lock.json").write_text("{}")
