"""The real Claude Code in a clean environment: a home and a project of its own, one base URL."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from terminal import PATIENCE_S, Terminal, wait_until

REPOSITORY = Path(__file__).resolve().parents[2]
BINARY = REPOSITORY / ".agents" / "bin" / "claude"
# Longer than the 20 characters by which Claude Code remembers an approved key.
API_KEY = "sk-ant-fake-0123456789abcdefghij"

READY_FOR_PROMPT = "❯"  # noqa: RUF001 (Claude Code's prompt sign)


@dataclass(frozen=True)
class Finished:
    session_id: str
    exit_code: int
    stdout: str
    stderr: str


@dataclass(frozen=True)
class Running:
    session_id: str
    process: subprocess.Popen[bytes]
    stdout: Path
    stderr: Path

    def wait_for_output(self, text: str) -> None:
        wait_until(
            lambda: text in self.stdout.read_text() or self.process.poll() is not None,
            complaint=f"claude did not print {text!r}",
        )

    def send(self, signal_number: signal.Signals) -> None:
        self.process.send_signal(signal_number)

    def finish(self, timeout: float = PATIENCE_S) -> Finished:
        try:
            exit_code = self.process.wait(timeout)
        finally:
            self.process.kill()
            self.process.wait()
        return Finished(
            self.session_id, exit_code, self.stdout.read_text(), self.stderr.read_text()
        )


@dataclass
class ClaudeCode:
    """How one user runs Claude Code; *hooks* and *settings_env* go to the user's settings."""

    workdir: Path
    base_url: str
    hooks: Mapping[str, Any] = field(default_factory=dict)
    settings_env: Mapping[str, str] = field(
        default_factory=lambda: {"CLAUDE_CODE_GATEWAY_HINT_HEADERS": "1"}
    )
    env: Mapping[str, str] = field(default_factory=dict)
    # Stands before the binary: `tracebridge run --`, say.
    launcher: Sequence[str] = ()

    def __post_init__(self) -> None:
        if not BINARY.exists():
            raise FileNotFoundError(f"{BINARY} is missing: run `make agents`")
        self.home.mkdir(parents=True, exist_ok=True)
        self.project.mkdir(parents=True, exist_ok=True)
        (self.home / ".claude").mkdir(exist_ok=True)
        settings = {
            "env": dict(self.settings_env),
            "hooks": dict(self.hooks),
            "skipDangerousModePermissionPrompt": True,
        }
        (self.home / ".claude" / "settings.json").write_text(json.dumps(settings))
        # What a fresh interactive start would otherwise ask about.
        state = {
            "hasCompletedOnboarding": True,
            "bypassPermissionsModeAccepted": True,
            "theme": "dark",
            "customApiKeyResponses": {"approved": [API_KEY[-20:]], "rejected": []},
            "projects": {str(self.project): {"hasTrustDialogAccepted": True}},
        }
        (self.home / ".claude.json").write_text(json.dumps(state))

    @property
    def home(self) -> Path:
        return self.workdir / "home"

    @property
    def project(self) -> Path:
        return self.workdir / "project"

    @property
    def transcripts(self) -> Path:
        return self.home / ".claude" / "projects"

    def environment(self) -> dict[str, str]:
        return {
            "PATH": os.environ.get("PATH", os.defpath),
            "HOME": str(self.home),
            "TERM": "xterm-256color",
            "SHELL": "/bin/sh",
            "LANG": "C.UTF-8",
            "TMPDIR": str(self._temporary()),
            "DISABLE_AUTOUPDATER": "1",
            "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
            # Lets root skip permissions, which containers need.
            "IS_SANDBOX": "1",
            "ANTHROPIC_BASE_URL": self.base_url,
            "ANTHROPIC_API_KEY": API_KEY,
            **self.env,
        }

    def start(self, prompt: str, *options: str, session_id: str | None = None) -> Running:
        """Start `claude -p`; without options that name a session, in a new one."""
        known = {"--resume", "--continue"} & set(options)
        if session_id is None and not known:
            session_id = str(uuid.uuid4())
        named = ("--session-id", session_id) if session_id else ()
        if not any(option.startswith("--permission-mode") for option in options):
            options = (*options, "--dangerously-skip-permissions")
        output = self.workdir / f"output-{uuid.uuid4()}"
        stdout, stderr = output.with_suffix(".stdout"), output.with_suffix(".stderr")
        with stdout.open("wb") as to_stdout, stderr.open("wb") as to_stderr:
            process = subprocess.Popen(
                [*self.launcher, str(BINARY), "-p", prompt, *named, *options],
                cwd=self.project,
                env=self.environment(),
                stdin=subprocess.DEVNULL,
                stdout=to_stdout,
                stderr=to_stderr,
            )
        return Running(session_id or "", process, stdout, stderr)

    def run(self, prompt: str, *options: str, session_id: str | None = None) -> Finished:
        return self.start(prompt, *options, session_id=session_id).finish()

    def interactive(self, *options: str) -> Terminal:
        """Start Claude Code in a terminal and wait until it takes a prompt."""
        if not any(option.startswith("--permission-mode") for option in options):
            options = (*options, "--permission-mode", "default")
        terminal = Terminal(
            [*self.launcher, str(BINARY), *options], cwd=self.project, env=self.environment()
        )
        try:
            terminal.wait_for_text(READY_FOR_PROMPT)
        except BaseException:
            terminal.close()
            raise
        return terminal

    def transcript(self, session_id: str) -> Path:
        found = list(self.transcripts.glob(f"*/{session_id}.jsonl"))
        return found[0] if found else self.transcripts / "none" / f"{session_id}.jsonl"

    def wait_for_transcript(self, session_id: str, text: str, count: int = 1) -> None:
        """Wait until *text* stands in the session's transcript that often."""

        def is_there() -> bool:
            path = self.transcript(session_id)
            return path.exists() and path.read_text().count(text) >= count

        wait_until(is_there, complaint=f"{text!r} is not in the transcript of {session_id}")

    def _temporary(self) -> Path:
        folder = self.workdir / "tmp"
        folder.mkdir(exist_ok=True)
        return folder
