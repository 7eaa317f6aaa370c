"""Install the agents that the tests drive, from the npm registry, into a cache outside the clone.

`.agents/bin/<command>` links to each. A fresh clone finds the cache of the last one and fetches
nothing. Install scripts stay off: what is used is the program inside the package.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
ATTEMPTS = 3


@dataclass(frozen=True)
class Agent:
    slug: str
    version: str
    package: str
    # In `.agents/bin`, and inside the package unless *program* says otherwise.
    command: str
    program: str | None = None


def runs_on_musl() -> bool:
    return sys.platform == "linux" and platform.libc_ver()[0] != "glibc"


def platform_name() -> str:
    system = {"linux": "linux", "darwin": "darwin"}.get(sys.platform)
    machine = {"x86_64": "x64", "amd64": "x64", "aarch64": "arm64", "arm64": "arm64"}.get(
        platform.machine().lower()
    )
    if system is None or machine is None:
        raise SystemExit(
            f"agents: no native build is published for {sys.platform} on {platform.machine()}; "
            "use Linux or macOS on x64 or arm64"
        )
    return f"{system}-{machine}" + ("-musl" if runs_on_musl() else "")


def rust_target() -> str:
    machine = "aarch64" if platform_name().startswith(("linux-arm64", "darwin-arm64")) else "x86_64"
    return f"{machine}-{'apple-darwin' if sys.platform == 'darwin' else 'unknown-linux-musl'}"


def wanted_agents() -> list[Agent]:
    # Pinned: an unpinned install on an older Node silently gives an older agent.
    return [
        Agent(
            slug="claude-code",
            version="2.1.329",
            package=f"@anthropic-ai/claude-code-{platform_name()}",
            command="claude",
        ),
        Agent(
            slug="gemini-cli",
            version="0.61.0",
            package="@google/gemini-cli",
            command="gemini",
            # A Node program: it needs Node.js 20 at run time, too.
            program="bundle/gemini.js",
        ),
        Agent(
            slug="codex-cli",
            # The platform's build is a version of its own of the one package.
            version=f"0.169.0-{platform_name().removesuffix('-musl')}",
            package="@openai/codex",
            command="codex",
            program=f"vendor/{rust_target()}/bin/codex",
        ),
        Agent(
            slug="opencode",
            version="1.18.33",
            package=f"opencode-{platform_name()}",
            command="opencode",
            program="bin/opencode",
        ),
    ]


def cache_folder() -> Path:
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "tracebridge" / "agents"


def binary_of(agent: Agent, folder: Path) -> Path:
    return folder / "node_modules" / agent.package / (agent.program or agent.command)


def npm_install(agent: Agent, folder: Path) -> None:
    npm = shutil.which("npm")
    if npm is None:
        raise SystemExit(
            f"agents: npm is missing; it is needed once to fetch {agent.slug} {agent.version}. "
            "Install Node.js (which brings npm) and run `make agents` again"
        )
    command = [npm, "install", "--prefix", str(folder), "--ignore-scripts", "--no-audit"]
    command += ["--no-fund", "--no-save", "--force", "--loglevel=error"]
    # Without a network this fails in seconds, not minutes.
    command += ["--fetch-retries=2", "--fetch-retry-mintimeout=1000"]
    command += ["--fetch-retry-maxtimeout=5000"]
    command.append(f"{agent.package}@{agent.version}")
    for attempt in range(1, ATTEMPTS + 1):
        sys.stderr.write(f"agents: fetching {agent.package}@{agent.version} with npm\n")
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=sys.stderr, cwd=folder, check=False
        )
        if done.returncode == 0 and binary_of(agent, folder).is_file():
            return
        sys.stderr.write(f"agents: attempt {attempt} of {ATTEMPTS} failed\n")
    raise SystemExit(
        f"agents: npm could not fetch {agent.package}@{agent.version}; "
        "check the network and `npm config get registry`, then run `make agents` again"
    )


def install(agent: Agent) -> Path:
    """Return the agent's binary, fetched only if the cache has no complete copy."""
    complete = cache_folder() / f"{agent.slug}-{agent.version}-{platform_name()}"
    if not binary_of(agent, complete).is_file():
        complete.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".fetching-", dir=complete.parent) as scratch:
            fetched = Path(scratch) / "agent"
            fetched.mkdir()
            npm_install(agent, fetched)
            try:
                fetched.rename(complete)
            except OSError:
                # Another clone finished first, or left a folder without its binary.
                if not binary_of(agent, complete).is_file():
                    shutil.rmtree(complete)
                    fetched.rename(complete)
    return binary_of(agent, complete)


def link(agent: Agent, binary: Path) -> Path:
    shortcut = REPOSITORY / ".agents" / "bin" / agent.command
    shortcut.parent.mkdir(parents=True, exist_ok=True)
    fresh = shortcut.with_name(f".{shortcut.name}.{os.getpid()}")
    fresh.symlink_to(binary)
    fresh.replace(shortcut)
    return shortcut


def main() -> None:
    for agent in wanted_agents():
        shortcut = link(agent, install(agent))
        sys.stdout.write(f"{agent.slug} {agent.version}: {shortcut}\n")


if __name__ == "__main__":
    main()
