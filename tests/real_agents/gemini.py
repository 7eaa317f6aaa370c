"""The real Gemini CLI in a clean environment: a home and a project of its own, one base URL."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from terminal import PATIENCE_S, Terminal, wait_until

REPOSITORY = Path(__file__).resolve().parents[2]
BINARY = REPOSITORY / ".agents" / "bin" / "gemini"
API_KEY = "gemini-fake-0123456789abcdefghij"
MODEL = "gemini-2.5-pro"


def wait_until_idle(terminal: Terminal) -> None:
    # Between an answer and the hooks behind it nothing shows that it works.
    terminal.wait_until_it_stays("Type your message", without="esc to cancel")


def say(terminal: Terminal, line: str, timeout: float = PATIENCE_S) -> None:
    """Type a line into a waiting prompt and send it.

    A return that comes right behind the text is taken for a part of it, and another one needed.
    """
    wait_until_idle(terminal)
    terminal.send(line)
    # The mark before it is another one where Gemini CLI asks for approval.
    terminal.wait_for_text(rf"[*>] +{re.escape(line)}")
    deadline = time.monotonic() + timeout
    while True:
        terminal.press("enter")
        try:
            terminal.wait_for_text("Type your message|esc to cancel|Allow once", 2.0)
        except TimeoutError:
            if time.monotonic() > deadline:
                raise
        else:
            return


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

    def send(self, signal_number: signal.Signals) -> None:
        # As a terminal does: Gemini CLI is a process that starts itself again.
        os.killpg(self.process.pid, signal_number)

    def finish(self, timeout: float = PATIENCE_S) -> Finished:
        try:
            exit_code = self.process.wait(timeout)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        return Finished(
            self.session_id, exit_code, self.stdout.read_text(), self.stderr.read_text()
        )


@dataclass
class GeminiCli:
    """How one user runs Gemini CLI; *settings* are added to the user's settings file."""

    workdir: Path
    base_url: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    env: Mapping[str, str] = field(default_factory=dict)
    # Stands before the program: `tracebridge run --`, say.
    launcher: Sequence[str] = ()
    max_attempts: int = 3

    def __post_init__(self) -> None:
        if not BINARY.exists():
            raise FileNotFoundError(f"{BINARY} is missing: run `make agents`")
        for folder in (self.home / ".gemini", self.project, self.temporary):
            folder.mkdir(parents=True, exist_ok=True)
        settings = {
            "security": {"auth": {"selectedType": "gemini-api-key"}},
            "privacy": {"usageStatisticsEnabled": False},
            "general": {"enableAutoUpdate": False, "maxAttempts": self.max_attempts},
            **self.settings,
        }
        (self.home / ".gemini" / "settings.json").write_text(json.dumps(settings))

    @property
    def home(self) -> Path:
        return self.workdir / "home"

    @property
    def project(self) -> Path:
        return self.workdir / "project"

    @property
    def temporary(self) -> Path:
        return self.workdir / "tmp"

    def environment(self) -> dict[str, str]:
        return {
            "PATH": os.environ.get("PATH", os.defpath),
            "HOME": str(self.home),
            "TERM": "xterm-256color",
            "SHELL": "/bin/sh",
            "LANG": "C.UTF-8",
            "TMPDIR": str(self.temporary),
            "GOOGLE_GEMINI_BASE_URL": self.base_url,
            "GEMINI_API_KEY": API_KEY,
            **self.env,
        }

    def start(self, prompt: str, *options: str, session_id: str | None = None) -> Running:
        """Start `gemini -p`; without options that name a session, in a new one."""
        if session_id is None and not {"--resume", "-r"} & set(options):
            session_id = str(uuid.uuid4())
            options = (*options, "--session-id", session_id)
        output = self.workdir / f"output-{uuid.uuid4()}"
        stdout, stderr = output.with_suffix(".stdout"), output.with_suffix(".stderr")
        words = [*self.launcher, str(BINARY), "-m", MODEL, "--skip-trust", "-y", *options]
        with stdout.open("wb") as to_stdout, stderr.open("wb") as to_stderr:
            process = subprocess.Popen(
                [*words, "-p", prompt],
                cwd=self.project,
                env=self.environment(),
                stdin=subprocess.DEVNULL,
                stdout=to_stdout,
                stderr=to_stderr,
                start_new_session=True,
            )
        return Running(session_id or "", process, stdout, stderr)

    def run(self, prompt: str, *options: str, session_id: str | None = None) -> Finished:
        return self.start(prompt, *options, session_id=session_id).finish()

    def terminal(self, session_id: str, *, approving: bool = True) -> Terminal:
        """Start an interactive session in a terminal of its own."""
        words = [*self.launcher, str(BINARY), "-m", MODEL, "--skip-trust"]
        return Terminal(
            [*words, *(["-y"] if approving else []), "--session-id", session_id],
            cwd=self.project,
            env=self.environment(),
        )

    def session_ids(self) -> set[str]:
        return {
            json.loads(path.read_text().partition("\n")[0])["sessionId"] for path in self.chats()
        }

    def chats(self) -> list[Path]:
        return sorted((self.home / ".gemini" / "tmp").glob("*/chats/*.jsonl"))

    def wait_for_chat(self, text: str) -> None:
        """Wait until *text* stands in a chat file."""
        wait_until(
            lambda: any(text in path.read_text() for path in self.chats()),
            complaint=f"{text!r} is in no chat file",
        )
