"""The report in a real browser: it shows what was, asks for nothing, and lets nothing run."""

from __future__ import annotations

import re
import stat
import subprocess
import sys
from dataclasses import replace

import pytest
from axe_playwright_python.sync_playwright import Axe
from browser import chromium, visit
from hypothesis import given
from hypothesis import strategies as st
from recorded_turns import put, recorded_turns
from test_tree import TRACE, span

from tracebridge import semconv
from tracebridge.model import SpanEvent, Status
from tracebridge.store import Store, TurnRow
from tracebridge.views.report import report

NOW_NS = 2**61
BEHAVIOURS = ("claude-code/tools", "codex-cli/tools", "gemini-cli/tools", "opencode/tools")


@pytest.fixture(scope="module")
def browser():
    with chromium() as browser:
        yield browser


def row(spans, prompt="do it", **more):
    known = {
        "trace_id": spans[0].trace_id,
        "agent": "claude-code",
        "session_id": "s",
        "turn_key": "t",
        "state": "finished",
        "outcome": "completed",
        "start_ns": min(each.start_ns for each in spans),
        "end_ns": max(each.end_ns or 0 for each in spans),
        "prompt": prompt,
        "customer_id": None,
        "told": True,
        "revision": 1,
    }
    return TurnRow(**(known | more))


@pytest.fixture
def page(tmp_path):
    """Return a function that writes turns as a page."""

    def write(turns):
        path = tmp_path / "report.html"
        path.write_text(report(turns, NOW_NS), "utf-8", errors="replace")
        return path

    return write


@pytest.fixture(scope="module")
def recorded():
    return [
        (row(spans, turn.prompts[0].text, agent=turn.agent, outcome=str(turn.outcome)), spans)
        for turn, spans in recorded_turns(*BEHAVIOURS)
    ]


@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 700)])
def test_a_page_of_four_agents(browser, page, recorded, scheme, width):
    """Every span once, no word on the console, no request but for the page, no fault that axe finds."""
    path = page(recorded)
    with visit(browser, path, scheme=scheme, width=width) as seen:
        assert len(seen.labels) == sum(len(spans) for _, spans in recorded)
        seen.page.click("#open")
        assert seen.page.locator("article details:not([open])").count() == 0
        text = seen.page.inner_text("main")
        assert "greet.py" in text
        assert "exit_nonzero" in text
        assert seen.page.locator(".diff .added").count() > 3
        assert seen.page.locator("pre.thought").count() > 3
        # Nothing lies beyond the right edge.
        assert seen.page.evaluate("document.documentElement.scrollWidth") <= width
        # Colours take it long: the next test has fewer of them.
        options = {"resultTypes": ["violations"], "rules": {"color-contrast": {"enabled": False}}}
        faults = Axe().run(seen.page, options=options)
        assert faults.violations_count == 0, faults.generate_report()
        seen.page.click("#close")
        assert seen.page.locator("article details[open]").count() == 0
        assert seen.console == []
        assert seen.requests == [path.as_uri()]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_kind_of_element_can_be_read(browser, page, recorded, scheme):
    """In one turn that has all those of the four agents, each is as clear as axe wants it."""
    kinds = "[...new Set([...document.all].map(it => `${it.tagName} ${it.className}`))].sort()"
    with visit(browser, page(recorded)) as seen:
        expected = seen.page.evaluate(kinds)
    with visit(browser, page(recorded[1:2]), scheme=scheme) as seen:
        assert seen.page.evaluate(kinds) == expected
        seen.page.click("#open")
        faults = Axe().run(seen.page, options={"runOnly": ["color-contrast"]})
        assert faults.violations_count == 0, faults.generate_report()


def test_colours_can_be_changed_by_hand(browser, page, recorded):
    """From what the system says to the other, and back."""
    with visit(browser, page(recorded[:1]), scheme="dark") as seen:
        background = "getComputedStyle(document.body).backgroundColor"
        dark = seen.page.evaluate(background)
        seen.page.click("#theme")
        light = seen.page.evaluate(background)
        assert light != dark
        seen.page.click("#theme")
        assert seen.page.evaluate(background) == dark


HOSTILE = (
    "</title></style></script><script>document.title = 'owned'; alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    '" onmouseover="alert(1)" x="',
    "' autofocus onfocus='alert(1)",
    "javascript:alert(1)",
    "<!--<svg onload=alert(1)>",
    "]]><b>bold</b>&lt;i&gt;&amp;amp;",
    "a\x00b\x1b[31mc\x7f",
    "user\u202egnp.exe \u2066hidden\u2069",
    "lone \ud800 half",
    "{{7*7}} ${7*7} <%= 7*7 %>",
)


@pytest.mark.parametrize("hostile", HOSTILE)
def test_hostile_words_stay_words(browser, page, hostile):
    """In prompt, answer, thought, tool, diff, path, error, attribute and name: text, and harmless."""
    spans = [
        span(
            "root", None, f"invoke_agent {hostile}", 0, 100, SPAN_TYPE="turn",
            OI_INPUT=hostile, OI_OUTPUT=hostile, CWD=f"/home/{hostile}", GIT_BRANCH=hostile,
        ),
        span("c", "root", f"chat {hostile}", 1, 20, SPAN_TYPE="llm", OI_OUTPUT=hostile),
        span("th", "c", "thinking", 1, 9, SPAN_TYPE="thinking", OI_OUTPUT=hostile),
        span(
            "t", "root", f"execute_tool {hostile}", 20, 30, SPAN_TYPE="tool",
            TOOL_ARGUMENTS=hostile, TOOL_RESULT=hostile, ERROR_TYPE=hostile, status=Status.ERROR,
        ),
        span(
            "e", "t", f"file_edit {hostile}", 25, 30, SPAN_TYPE="edit", EDIT_DIFF=f"+{hostile}",
            EDIT_LINES_ADDED=1, EDIT_LINES_REMOVED=0,
        ),
    ]  # fmt: skip
    event = SpanEvent(name="said", time_ns=5, attributes={semconv.PROMPT_TEXT: hostile})
    spans[0] = replace(spans[0], status_message=hostile, events=(event,))
    kinds = row(spans, hostile, session_id=hostile, customer_id=hostile, agent=hostile)
    path = page([(kinds, spans)])
    with visit(browser, path) as seen:
        seen.page.click("#open")
        assert seen.page.evaluate("document.scripts.length") == 1
        assert seen.page.locator("img, iframe, object, embed, link, b, i, form, input").count() == 0
        handlers = "[...document.querySelectorAll('*')].flatMap(e => e.getAttributeNames())"
        names = set(seen.page.evaluate(handlers))
        assert not {name for name in names if name.startswith("on") or name in {"src", "autofocus"}}
        said = seen.page.locator("pre").first.text_content()
        if hostile.isprintable():
            assert said == hostile
        else:
            assert re.sub(r"[\x00-\x08\x0b-\x1f\x7f\u202a-\u202e\u2066-\u2069]", "", said) == said
            assert "�" in said or "⟦U+" in said
        assert seen.console == []
        assert seen.requests == [path.as_uri()]


def test_a_script_that_got_in_would_not_run(browser, page, recorded):
    """The page's own policy allows what it came with and nothing else."""
    path = page(recorded[:1])
    broken = path.read_text().replace(
        "<main>", "<script>document.title='owned'</script><img src='http://127.0.0.1:9/x'><main>"
    )
    path.write_text(broken)
    with visit(browser, path) as seen:
        assert seen.page.title() != "owned"
        assert len(seen.console) == 2
        assert all("Content Security Policy" in line for line in seen.console)
        assert seen.refused == {"http://127.0.0.1:9/x": "csp"}


def test_the_keyboard_reaches_everything(browser, page, recorded):
    """Tab to the first line, Enter opens it, the arrows go on; the first stop skips to the turns."""
    with visit(browser, page(recorded[:1])) as seen:
        focused = "document.activeElement.className || document.activeElement.id"
        seen.page.keyboard.press("Tab")
        assert seen.page.evaluate(focused) == "skip"
        seen.page.keyboard.press("Enter")
        assert seen.page.evaluate(focused) == "turns"
        seen.page.locator(".fall summary").first.focus()
        seen.page.keyboard.press("Enter")
        assert seen.page.locator(".fall details[open]").count() == 1
        for _ in range(2):
            seen.page.keyboard.press("ArrowDown")
        at = "[...document.querySelectorAll('.fall summary')].indexOf(document.activeElement)"
        assert seen.page.evaluate(at) == 2
        seen.page.keyboard.press("ArrowUp")
        assert seen.page.evaluate(at) == 1


def test_on_paper_everything_is_open(browser, page, recorded):
    """What cannot be opened there stands open, and is closed again afterwards."""
    with visit(browser, page(recorded)) as seen:
        seen.page.evaluate("dispatchEvent(new Event('beforeprint'))")
        assert seen.page.locator("article details:not([open])").count() == 0
        seen.page.evaluate("dispatchEvent(new Event('afterprint'))")
        assert seen.page.locator("article details[open]").count() == 0
        assert len(seen.page.pdf()) > 50_000


def test_bars_stand_where_their_spans_were(browser, page):
    """Gaps between spans are gaps between bars, in proportion; until the first token it is paler."""
    spans = [
        span("root", None, "invoke_agent a", 0, 1000, SPAN_TYPE="turn"),
        span("c", "root", "chat m", 100, 300, SPAN_TYPE="llm", TIME_TO_FIRST_CHUNK=0.05),
        span("t", "root", "execute_tool t", 750, 1000, SPAN_TYPE="tool"),
        span("w", "t", "permission_wait t", 750, 875, SPAN_TYPE="permission"),
    ]
    with visit(browser, page([(row(spans), spans)])) as seen:
        found = []
        for bar in seen.page.locator(".bar").all():
            whole = bar.bounding_box()
            boxes = [rect.bounding_box() for rect in bar.locator("rect").all()]
            found.append(
                [
                    (
                        round(1000 * (box["x"] - whole["x"]) / whole["width"]),
                        round(1000 * box["width"] / whole["width"]),
                    )
                    for box in boxes
                ]
            )
    assert found == [
        [(0, 1000)],
        [(100, 200), (100, 50)],
        [(750, 250)],
        [(750, 125)],
    ]


@given(st.text(), st.text(), st.integers(0, 2**62), st.none() | st.integers(0, 2**62))
def test_no_turn_is_too_odd_for_a_page(name, text, start_ns, end_ns):
    """Whatever texts and times a store holds, escaped they are a page."""
    odd = replace(
        span("root", None, name, 0, 0, SPAN_TYPE=text, OI_INPUT=text, EDIT_DIFF=text),
        start_ns=start_ns,
        end_ns=end_ns,
    )
    child = replace(odd, span_id="child", parent_span_id="root")
    made = report([(row([odd], text, end_ns=end_ns), [odd, child])], NOW_NS)
    assert made.count("<script>") == made.count("</script>") == 1
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f]", made)


def test_long_texts_are_cut():
    """A page must still open; how long the text was stands there."""
    odd = span("root", None, "invoke_agent a", 0, 1, SPAN_TYPE="turn", OI_INPUT="x" * 1_000_000)
    made = report([(row([odd]), [odd])], NOW_NS)
    assert len(made) < 100_000
    assert "[cut: 1000000 characters]" in made


def test_the_command_writes_for_its_owner_alone(home, tmp_path):
    """One turn by its id, or those that the options choose; what cannot be is said."""
    with Store(home) as store:
        for turn, spans in recorded_turns("claude-code/tools", "codex-cli/two_sessions"):
            put(store, turn, spans)
    output = tmp_path / "page.html"

    def run(*words):
        command = [sys.executable, "-m", "tracebridge", "report", *words, "-o", str(output)]
        env = {"TRACEBRIDGE_HOME": str(home), "PATH": ""}
        return subprocess.run(command, env=env, capture_output=True, text=True, check=False)

    with Store(home) as store:
        first = next(store.find_turns(agent="claude-code")).trace_id
    assert run(first[:12]).stdout == f"{output}: 1 turn\n"
    assert stat.S_IMODE(output.stat().st_mode) == 0o600
    assert "write the greeting" in output.read_text()
    assert run("--agent", "codex").stdout == f"{output}: 2 turns\n"
    assert run().stdout == f"{output}: 3 turns\n"
    limited = run("--limit", "1")
    assert limited.stdout == f"{output}: 1 turn\n"
    assert "left out" in limited.stderr
    assert "Earlier turns are left out." in output.read_text()
    for words in (["ffffffff"], ["--session", "nobody"], [""]):
        result = run(*words)
        assert result.returncode == 1
        assert "tracebridge turns" in result.stderr
    output = tmp_path / "no" / "such" / "folder.html"
    assert "choose another place" in run().stderr
    assert TRACE not in first
