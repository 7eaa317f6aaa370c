"""Facts about how the house is built, so that it stays so."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path
from typing import get_type_hints

import pytest

import tracebridge
from tracebridge import agents, dialects, sinks
from tracebridge.agents import Agent
from tracebridge.dialects import Dialect

PACKAGE = Path(tracebridge.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
# Where modules of one kind lie side by side.
FAMILIES = ("agents", "dialects", "sinks")
PURE = (
    "turns",
    "linker",
    "spans",
    "tree",
    "time_spent",
    "totals",
    "ids",
    "tags",
    "scrub",
    "model",
    "codec",
    "semconv",
)
IO = {
    "os",
    "sqlite3",
    "socket",
    "subprocess",
    "threading",
    "time",
    "pathlib",
    "io",
    "asyncio",
    "logging",
    "random",
    "datetime",
    "tempfile",
    "shutil",
    "urllib.request",
    "requests",
}


def name_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for path in FILES}


def imports(path: Path, *, at_start_only: bool = False) -> set[str]:
    """Return the modules that a file imports, `from package import module` resolved."""
    tree = ast.parse(path.read_text("utf-8"))
    found = set()
    for node in tree.body if at_start_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            module = node.module or ""
            names = {f"{module}.{alias.name}" for alias in node.names}
            submodules = {name for name in names if name in MODULES}
            found |= submodules
            # Paths as values are no I/O.
            if len(submodules) < len(names) and names != {"pathlib.PurePath"}:
                found.add(module)
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_adapters_import_no_other_adapter(family):
    """Adding one, or taking one away, touches no other; helpers begin with an underscore."""
    prefix = f"tracebridge.{family}."
    for name, path in MODULES.items():
        if not name.startswith(prefix):
            continue
        own = name.removeprefix(prefix).partition(".")[0]
        others = {i.removeprefix(prefix) for i in imports(path) if i.startswith(prefix)}
        strangers = {i for i in others if i.partition(".")[0] != own and not i.startswith("_")}
        assert not strangers, f"{name} imports {strangers}"


@pytest.mark.parametrize("name", PURE)
def test_the_middle_does_no_input_and_output(name):
    """It has no clock either: values in, values out."""
    assert not imports(PACKAGE / f"{name}.py") & IO


def test_no_module_imports_itself_in_the_end():
    """Imports at the start of files have no cycle."""
    graph = {
        name: {i for i in imports(path, at_start_only=True) if i in MODULES} - {name}
        for name, path in MODULES.items()
    }
    done: set[str] = set()

    def visit(name, way):
        assert name not in way, " -> ".join([*way, name])
        if name not in done:
            for imported in sorted(graph[name]):
                visit(imported, [*way, name])
            done.add(name)

    for name in sorted(graph):
        visit(name, [])


def callables(protocol):
    return [name for name, value in vars(protocol).items() if callable(value) and name[0] != "_"]


@pytest.mark.parametrize("slug", list(agents.agents()))
def test_every_agent_has_all_that_is_expected_of_one(slug):
    """What the others call, and what they read."""
    module = agents.agents()[slug]
    assert all(callable(getattr(module, name)) for name in callables(Agent))
    assert all(hasattr(module, name) for name in get_type_hints(Agent))
    assert slug == module.SLUG
    assert isinstance(module.ALIASES, tuple)
    assert agents.agent(slug) is module
    assert [agents.agent(alias) for alias in module.ALIASES] == [module] * len(module.ALIASES)


def test_every_dialect_has_all_that_is_expected_of_one():
    """What the recorder calls."""
    assert dialects.dialects()
    for module in dialects.dialects():
        assert all(callable(getattr(module, name)) for name in callables(Dialect))
        assert isinstance(module.PROVIDER, str)


@pytest.mark.parametrize("kind", sinks.kinds())
def test_every_sink_can_be_prepared(kind):
    """A module whose name begins with an underscore is none."""
    import importlib

    assert callable(importlib.import_module(f"tracebridge.sinks.{kind}").prepare)


def test_help_waits_for_nothing_heavy():
    """No database, no exporter."""
    result = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "tracebridge", "--help"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    loaded = {
        line.rpartition("|")[2].strip().partition(".")[0] for line in result.stderr.split("\n")
    }
    assert "click" in loaded
    assert not loaded & {
        "sqlite3",
        "opentelemetry",
        "grpc",
        "google",
        "rich",
        "requests",
        "asyncio",
    }
