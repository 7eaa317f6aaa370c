"""The real OpenCode in a clean environment: a home and a project of its own, one base URL."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import uuid
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from terminal import PATIENCE_S, Terminal, wait_until

from tracebridge.agents.opencode import prepare

REPOSITORY = Path(__file__).resolve().parents[2]
BINARY = REPOSITORY / ".agents" / "bin" / "opencode"
API_KEY = "sk-ant-fake-0123456789abcdefghij"
MODEL = "anthropic/claude-haiku-4-5"


@dataclass(frozen=True)
class Finished:
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
        return Finished(exit_code, self.stdout.read_text(), self.stderr.read_text())


@dataclass
class OpenCode:
    """How one user runs OpenCode; *settings* goes to the user's own configuration."""

    workdir: Path
    base_url: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    env: Mapping[str, str] = field(default_factory=dict)
    # Stands before the binary: `tracebridge run --`, say.
    launcher: Sequence[str] = ()
    model: str = MODEL

    def __post_init__(self) -> None:
        if not BINARY.exists():
            raise FileNotFoundError(f"{BINARY} is missing: run `make agents`")
        self.project.mkdir(parents=True, exist_ok=True)
        folder = self.home / ".config" / "opencode"
        folder.mkdir(parents=True, exist_ok=True)
        base = {
            "autoupdate": False,
            "share": "disabled",
            "permission": {"*": "allow"},
            "provider": _provider(self.model, self.base_url),
        }
        (folder / "opencode.json").write_text(json.dumps({**base, **self.settings}))
        prepare(self.environment())

    @property
    def home(self) -> Path:
        return self.workdir / "home"

    @property
    def project(self) -> Path:
        return self.workdir / "project"

    @property
    def database(self) -> Path:
        return self.home / ".local" / "share" / "opencode" / "opencode.db"

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
            "OPENCODE_DISABLE_AUTOUPDATE": "1",
            "OPENCODE_DISABLE_MODELS_FETCH": "1",
            "OPENCODE_DISABLE_LSP_DOWNLOAD": "1",
            "ANTHROPIC_API_KEY": API_KEY,
            "OPENAI_API_KEY": API_KEY,
            **self.env,
        }

    def start(self, prompt: str, *options: str, ignored: Sequence[signal.Signals] = ()) -> Running:
        # One argument with spaces in it would reach the model in quotation marks.
        words = prompt.split()

        def set_signals() -> None:
            # Of a shell's background jobs the agent would inherit that SIGINT is ignored.
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            for number in ignored:
                signal.signal(number, signal.SIG_IGN)

        output = self.workdir / f"output-{uuid.uuid4()}"
        stdout, stderr = output.with_suffix(".stdout"), output.with_suffix(".stderr")
        with stdout.open("wb") as to_stdout, stderr.open("wb") as to_stderr:
            process = subprocess.Popen(
                [*self.launcher, str(BINARY), "run", "-m", self.model, *options, *words],
                cwd=self.project,
                env=self.environment(),
                stdin=subprocess.DEVNULL,
                stdout=to_stdout,
                stderr=to_stderr,
                preexec_fn=set_signals,  # noqa: PLW1509  # no threads of ours fork
            )
        return Running(process, stdout, stderr)

    def run(self, prompt: str, *options: str) -> Finished:
        return self.start(prompt, *options).finish()

    def interactive(self) -> Terminal:
        """Start OpenCode in a terminal and wait until it takes a prompt."""
        terminal = Terminal(
            [*self.launcher, str(BINARY), "-m", self.model],
            cwd=self.project,
            env=self.environment(),
        )
        try:
            terminal.wait_for_text("Ask anything")
        except BaseException:
            terminal.close()
            raise
        return terminal

    def wait_for_messages(self, text: str, count: int = 1) -> None:
        """Wait until as many messages hold *text* in the database."""
        self._wait_for_rows("message", text, count)

    def session_ids(self) -> tuple[str, ...]:
        """Return the ids of the sessions that no other started, oldest first."""
        query = "SELECT id FROM session WHERE parent_id IS NULL ORDER BY time_created"
        return tuple(row[0] for row in self._rows(query))

    def wait_for_part(self, text: str) -> None:
        """Wait until a part that holds *text* stands in the database."""
        self._wait_for_rows("part", text, 1)

    def _wait_for_rows(self, table: str, text: str, count: int) -> None:
        query = f"SELECT count(*) FROM {table} WHERE instr(data, ?)"

        def are_there() -> bool:
            try:
                return bool(self._rows(query, text)[0][0] >= count)
            except sqlite3.OperationalError:
                # OpenCode is about to make it.
                return False

        wait_until(are_there, complaint=f"{text!r} is not in {table} of OpenCode's database")

    def _rows(self, query: str, *values: str) -> list[tuple[Any, ...]]:
        with closing(sqlite3.connect(f"file:{self.database}?mode=ro", uri=True)) as database:
            return database.execute(query, values).fetchall()


def _provider(model: str, base_url: str) -> dict[str, Any]:
    """Return the configuration of the provider of *model*, be it known to OpenCode or not."""
    name, _, model_name = model.partition("/")
    provider: dict[str, Any] = {"options": {"baseURL": base_url}}
    if name not in {"anthropic", "openai"}:
        limit = {"context": 100_000, "output": 8_000}
        provider |= {
            "npm": "@ai-sdk/openai-compatible",
            "name": "Some gateway",
            "models": {model_name: {"name": "Scripted", "tool_call": True, "limit": limit}},
        }
        provider["options"]["apiKey"] = API_KEY
    return {name: provider}
