"""What is wrong with a set-up, where, and how to mend it. Reads only, but for `--fix`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from shutil import which
from typing import Any

import tracebridge.settings as ours
from tracebridge.agents import Agent, agents
from tracebridge.checks import (
    DAY_NS,
    AgentLook,
    Finding,
    Fix,
    Machine,
    Rule,
    open_store,
    rules,
)
from tracebridge.config_files import ConfigFile, EditError, Place, edited, write
from tracebridge.integrate import light_agents
from tracebridge.routing import Source, routing_module
from tracebridge.settings import Settings, SettingsError, read_settings
from tracebridge.store import StoreError
from tracebridge.tree import printable


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """A finding, and the rule and agent that it belongs to."""

    rule: Rule
    finding: Finding
    # None: it is not about an agent.
    agent: str | None

    @property
    def command(self) -> str | None:
        """Return what to type."""
        if self.finding.command is not None or self.finding.fix is None:
            return self.finding.command
        return f"tracebridge doctor --fix {self.rule.id}"


@dataclass(frozen=True, slots=True)
class Names:
    """What the user asked about: agents and rules; neither means everything."""

    agents: tuple[str, ...] = ()
    rules: tuple[str, ...] = ()


def parse_names(words: Sequence[str]) -> Names:
    """Return what *words* name. Raise ValueError for a word that is neither agent nor rule."""
    known = {alias: a.SLUG for a in agents().values() for alias in (a.SLUG, *a.ALIASES)}
    for word in words:
        if word not in known and word not in rules():
            raise ValueError(
                f"{word}: neither an agent ({', '.join(agents())}) nor a rule"
                " (docs/doctor.md lists them)"
            )
    return Names(
        tuple(dict.fromkeys(known[word] for word in words if word in known)),
        tuple(dict.fromkeys(word for word in words if word not in known)),
    )


def diagnose(
    place: Place, names: Names = Names(), *, clock: Callable[[], int] = time.time_ns
) -> list[Diagnosis]:
    """Apply every rule, or those that are asked for, and return what they find."""
    with _machine(place, clock()) as machine:
        looks = list(_looks(machine, names))
        found: list[Diagnosis] = []
        for rule, slug in rules().values():
            if names.rules and rule.id not in names.rules:
                continue
            if rule.of_machine is not None:
                found += [Diagnosis(rule, finding, None) for finding in rule.of_machine(machine)]
            for look in looks:
                if rule.of_agent is not None and slug in {None, look.slug}:
                    findings = rule.of_agent(look)
                    found += [Diagnosis(rule, finding, look.slug) for finding in findings]
    return sorted(found, key=lambda each: (each.finding.note, each.agent or "", each.rule.id))


def mend(
    found: Sequence[Diagnosis], names: Names, backups: Path
) -> tuple[dict[int, str], list[str]]:
    """Make the fixes that are safe, or whose rule is named.

    Return by place what was done, and why something could not be.
    """
    done: dict[int, str] = {}
    problems: list[str] = []
    for place, each in enumerate(found):
        fix = each.finding.fix
        if fix is None or not (fix.safe or each.rule.id in names.rules):
            continue
        try:
            done[place] = _apply(fix, backups)
        except (EditError, OSError) as error:
            problems.append(f"{each.rule.id}: {error}")
    return done, problems


def as_json(found: Sequence[Diagnosis], done: Mapping[int, str]) -> dict[str, Any]:
    """Return findings for programs. The shape is a contract for scripts."""
    return {
        "findings": [
            {
                "rule": each.rule.id,
                "severity": "note" if each.finding.note else "problem",
                "agent": each.agent,
                "breaks": each.rule.joint,
                "summary": each.rule.summary,
                "problem": each.finding.problem,
                "at": [_place_json(at) for at in each.finding.at if at],
                "remedy": each.finding.remedy,
                "command": each.command,
                "fixable": each.finding.fix is not None,
                "fixed": place in done,
            }
            for place, each in enumerate(found)
        ],
        "rules": len(rules()),
    }


def as_text(found: Sequence[Diagnosis], done: Mapping[int, str], place: Place) -> str:
    """Return findings for people, the ones that break something first."""
    lines: list[str] = []
    for number, each in enumerate(found):
        finding = each.finding
        about = f"  {each.agent}" if each.agent else ""
        lines += [
            f"{'note' if finding.note else 'PROBLEM'}  {each.rule.id}{about}",
            f"  {each.rule.summary}",
            f"  found    {finding.problem}",
            *(f"  at       {_place_text(at, place)}" for at in finding.at if at),
        ]
        if number in done:
            lines += [f"  mended   {done[number]}", ""]
            continue
        lines.append(f"  remedy   {finding.remedy}")
        if each.command is not None:
            lines.append(f"           {each.command}")
        lines.append("")
    left = [each for number, each in enumerate(found) if number not in done]
    problems = sum(not each.finding.note for each in left)
    lines.append(_summary(problems, len(left) - problems, len(done)))
    # What stands in a project's file is not to steer the terminal.
    return "\n".join(map(printable, lines))


def has_problems(found: Sequence[Diagnosis], done: Mapping[int, str]) -> bool:
    return any(not e.finding.note and number not in done for number, e in enumerate(found))


def rules_page() -> str:
    """Return all rules as a page of Markdown."""
    lines = [
        "# What `tracebridge doctor` knows",
        "",
        "<!-- Written by `tracebridge doctor --rules`; change the rules' docstrings instead. -->",
        "",
        "One entry per rule id. `tracebridge doctor` applies them all, `tracebridge doctor RULE` one;"
        " `--fix` mends what is safe to mend, `--fix RULE` also what changes your mind for you."
        " Exit code 0: no problem; 3: problems. Notes do not count.",
        "",
    ]
    for heading, slug in [("Any agent", None), *((slug, slug) for slug in agents())]:
        lines += [f"## {heading}", ""]
        for rule, about in rules().values():
            if about == slug:
                lines += [f"### {rule.id}", "", f"**{rule.summary}** {rule.reason}".strip(), ""]
    return "\n".join(lines)


def _summary(problems: int, notes: int, done: int) -> str:
    said = [f"{problems} problem{'s' if problems != 1 else ''}"] if problems else ["no problem"]
    said += [f"{notes} note{'s' if notes != 1 else ''}"] if notes else []
    said += [f"{done} mended"] if done else []
    return f"{', '.join(said)}; {len(rules())} rules applied"


@contextmanager
def _machine(place: Place, now_ns: int) -> Iterator[Machine]:
    settings, settings_problem = settings_of(place.env)
    store, store_problem = open_store(settings)
    light = light_agents(settings.home, place.project)
    machine = Machine(place, settings, now_ns, settings_problem, store_problem, store, light)
    try:
        if store is not None:
            try:
                machine.recent.extend(store.calls_since(now_ns - DAY_NS))
            except StoreError as error:
                machine = replace(machine, store=None, store_problem=str(error))
        yield machine
    finally:
        if store is not None:
            store.close()


def settings_of(env: Mapping[str, str]) -> tuple[Settings, str | None]:
    """Return our settings and what is wrong with them; the defaults where they cannot be used."""
    try:
        return read_settings(env), None
    except SettingsError as error:
        values = {each.name: ours.Origin(each.default, "default") for each in ours.SETTINGS}
        return Settings(ours.home(env), values, dict(env)), str(error)


def _looks(machine: Machine, names: Names) -> Iterator[AgentLook]:
    """Yield the agents that are named, or else that are in use here."""
    for slug, agent in agents().items():
        if names.agents and slug not in names.agents:
            continue
        module = routing_module(agent)
        look = AgentLook(
            agent, module, module.read_setup(machine.place), machine, asked=slug in names.agents
        )
        if look.asked or _is_used(look, agent):
            yield look


def _is_used(look: AgentLook, agent: Agent) -> bool:
    there = which(agent.PROGRAM, path=look.place.env.get("PATH", "")) is not None
    return there or any(file.exists for file in look.setup.files.values())


def _apply(fix: Fix, backups: Path) -> str:
    said = []
    if fix.run is not None:
        fix.run()
        said.append("done")
    for path in dict.fromkeys(change.file.path for change in fix.changes):
        changes = [change for change in fix.changes if change.file.path == path]
        file: ConfigFile = changes[0].file
        try:
            # Another fix may have changed it since it was read.
            text = path.read_bytes().decode("utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise EditError(f"{path}: {error}; nothing was changed") from error
        before = text
        for change in changes:
            text = edited(replace(file, text=text), change.keys, change.value)
        said.append(f"{path}; the file as it was: {write(path, text, before, backups)}")
    return "; ".join(said)


def _place_json(at: Source | Path | str) -> dict[str, Any]:
    if isinstance(at, Source):
        return at.as_json()
    return {"file": str(at)} if isinstance(at, Path) else {"name": at}


def _place_text(at: Source | Path | str, place: Place) -> str:
    if isinstance(at, Source):
        return at.shown(place)
    return place.shown(at) if isinstance(at, Path) else at
