"""The real Codex CLI in a clean environment: a home and a project of its own, one base URL."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from terminal import PATIENCE_S, Terminal, wait_until

REPOSITORY = Path(__file__).resolve().parents[2]
BINARY = REPOSITORY / ".agents" / "bin" / "codex"
API_KEY = "sk-fake-codex-0123456789abcdefghij"
MODEL = "openai/gpt-5.5"

READY_FOR_PROMPT = "Ask Codex to do anything"
ENDED = '"type":"task_complete"'

CONFIG = """
model = "{model}"
model_provider = "scripted"
model_reasoning_summary = "auto"

[model_providers.scripted]
name = "Scripted"
base_url = "{base_url}"
wire_api = "responses"
env_key = "SCRIPTED_API_KEY"
request_max_retries = 0
stream_max_retries = {retries}

[features]
multi_agent_v2 = true

[projects."{project}"]
trust_level = "trusted"
"""


@dataclass(frozen=True)
class Finished:
    session_id: str
    exit_code: int
    stdout: str
    stderr: str


@dataclass(frozen=True)
class Running:
    process: subprocess.Popen[bytes]
    stdout: Path
    stderr: Path

    def send(self, signal_number: signal.Signals) -> None:
        self.process.send_signal(signal_number)

    def finish(self, timeout: float = PATIENCE_S) -> Finished:
        try:
            exit_code = self.process.wait(timeout)
        finally:
            self.process.kill()
            self.process.wait()
        stdout = self.stdout.read_text()
        return Finished(_session_of(stdout), exit_code, stdout, self.stderr.read_text())


@dataclass
class CodexCli:
    """How one user runs Codex; *hooks* go to the user's hooks.json."""

    workdir: Path
    base_url: str
    hooks: Mapping[str, Any] = field(default_factory=dict)
    env: Mapping[str, str] = field(default_factory=dict)
    # Stands before the binary: `tracebridge run --`, say.
    launcher: Sequence[str] = ()
    # Whether hooks run that nobody approved in /hooks.
    trusted: bool = True
    retries: int = 0
    # As the user's own `-c key=value`.
    settings: Sequence[str] = ()
    # Whether everything is allowed; else Codex asks before it does what it did not do before.
    allowed: bool = True

    def __post_init__(self) -> None:
        if not BINARY.exists():
            raise FileNotFoundError(f"{BINARY} is missing: run `make agents`")
        self.project.mkdir(parents=True, exist_ok=True)
        self.config.mkdir(parents=True, exist_ok=True)
        (self.config / "config.toml").write_text(
            CONFIG.format(
                model=MODEL, base_url=self.base_url, project=self.project, retries=self.retries
            )
        )
        if self.hooks:
            (self.config / "hooks.json").write_text(json.dumps({"hooks": dict(self.hooks)}))

    @property
    def home(self) -> Path:
        return self.workdir / "home"

    @property
    def config(self) -> Path:
        return self.home / ".codex"

    @property
    def project(self) -> Path:
        return self.workdir / "project"

    @property
    def transcripts(self) -> Path:
        return self.config / "sessions"

    def environment(self) -> dict[str, str]:
        temporary = self.workdir / "tmp"
        temporary.mkdir(exist_ok=True)
        return {
            "PATH": os.environ.get("PATH", os.defpath),
            "HOME": str(self.home),
            "TERM": "xterm-256color",
            "SHELL": "/bin/sh",
            "LANG": "C.UTF-8",
            "TMPDIR": str(temporary),
            "SCRIPTED_API_KEY": API_KEY,
            **self.env,
        }

    def start(
        self, prompt: str, *, resume: str | None = None, command: str | None = None
    ) -> Running:
        """Start `codex exec` or a command of it, in a new session or in one to go on with."""
        options = ["--skip-git-repo-check", "--json"]
        # Containers let nobody make another sandbox inside them.
        options.append("--dangerously-bypass-approvals-and-sandbox")
        if self.trusted:
            options.append("--dangerously-bypass-hook-trust")
        within = ("resume", resume) if resume else (command,) if command else ()
        words = ["exec", *options, *self._settings, *within, prompt]
        output = self.workdir / f"output-{uuid.uuid4()}"
        stdout, stderr = output.with_suffix(".stdout"), output.with_suffix(".stderr")
        with stdout.open("wb") as to_stdout, stderr.open("wb") as to_stderr:
            process = subprocess.Popen(
                [*self.launcher, str(BINARY), *words],
                cwd=self.project,
                env=self.environment(),
                stdin=subprocess.DEVNULL,
                stdout=to_stdout,
                stderr=to_stderr,
            )
        return Running(process, stdout, stderr)

    def run(self, prompt: str, *, resume: str | None = None) -> Finished:
        return self.start(prompt, resume=resume).finish()

    @property
    def _settings(self) -> list[str]:
        return [word for setting in self.settings for word in ("-c", setting)]

    def approve_hooks(self) -> None:
        """Approve the hooks for good, as the user does in /hooks."""
        command = [str(BINARY), "app-server"]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        with subprocess.Popen(
            command,
            cwd=self.project,
            env=self.environment(),
            stderr=subprocess.DEVNULL,
            **pipes,
        ) as server:
            _ask(server, "initialize", {"clientInfo": {"name": "test", "version": "1"}})
            found = _ask(server, "hooks/list", {"cwds": [str(self.project)]})["data"][0]["hooks"]
            state = {hook["key"]: {"trusted_hash": hook["currentHash"]} for hook in found}
            edit = {"keyPath": "hooks.state", "value": state, "mergeStrategy": "upsert"}
            _ask(server, "config/batchWrite", {"edits": [edit], "reloadUserConfig": True})
            server.stdin.close()

    @contextmanager
    def shared_server(self) -> Iterator[None]:
        """Stop, at the end, the server that a terminal has started and left behind."""
        try:
            yield
        finally:
            subprocess.run(
                [str(BINARY), "app-server", "daemon", "stop"],
                env=self.environment(),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=60,
                check=True,
            )
            # The process that keeps it up to date stays all the same.
            updater = self.config / "app-server-daemon" / "daemon-updater.pid"
            if updater.exists():
                with suppress(ProcessLookupError):
                    os.kill(json.loads(updater.read_text())["pid"], signal.SIGKILL)
            # It runs from a copy of Codex of its own, of 400 MB.
            shutil.rmtree(self.config / "packages", ignore_errors=True)

    def interactive(self, *command: str, alone: bool = True) -> Terminal:
        """Start Codex in a terminal and wait until it takes a prompt.

        *alone*: without the server that it shares with others, which would outlive the test.
        """
        words = [*command, *self._settings]
        if alone:
            words.append("--no-daemon")
        if self.allowed:
            words.append("--dangerously-bypass-approvals-and-sandbox")
        if self.trusted:
            words.append("--dangerously-bypass-hook-trust")
        terminal = Terminal(
            [*self.launcher, str(BINARY), *words], cwd=self.project, env=self.environment()
        )
        try:
            terminal.wait_for_text(READY_FOR_PROMPT)
        except BaseException:
            terminal.close()
            raise
        return terminal

    def wait_for_transcript(self, text: str, count: int = 1) -> None:
        """Wait until *text* stands in the rollout files that often."""
        wait_until(
            lambda: (
                sum(p.read_text().count(text) for p in self.transcripts.rglob("*.jsonl")) >= count
            ),
            complaint=f"{text!r} is not {count} times in the rollout files",
        )

    def session_ids(self) -> tuple[str, ...]:
        # "rollout-2026-11-21T05-37-32-" and the id.
        return tuple(path.stem[28:] for path in sorted(self.transcripts.rglob("*.jsonl")))


def _ask(server: subprocess.Popen[str], method: str, params: Mapping[str, Any]) -> Any:
    server.stdin.write(json.dumps({"id": method, "method": method, "params": params}) + "\n")
    server.stdin.flush()
    for line in server.stdout:
        said = json.loads(line)
        if said.get("id") == method:
            return said["result"]
    raise EOFError(f"no answer to {method}")


def _session_of(stdout: str) -> str:
    for line in stdout.splitlines():
        if line.startswith("{") and (event := json.loads(line)).get("type") == "thread.started":
            return str(event["thread_id"])
    return ""
