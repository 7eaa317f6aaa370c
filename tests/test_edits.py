"""Texts are edited in place, and every byte that an edit is not about stays."""

from __future__ import annotations

import json
import tomllib

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tracebridge.edits import Append, Delete, Include, Put, changed, edited, pieces
from tracebridge.edits.env_lines import EnvLines
from tracebridge.edits.json_text import JsonText
from tracebridge.edits.toml_text import TomlText

JSON = JsonText()
JSONC = JsonText(comments=True, trailing_commas=True)
TOML = TomlText()
ENV = EnvLines()

NAMES = st.text(st.characters(codec="utf-8"), min_size=1, max_size=8)
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**40), 2**40)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8"), max_size=12)
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NAMES, inner, max_size=4),
    max_leaves=12,
)
OBJECTS = st.dictionaries(NAMES, VALUES, max_size=6)
STYLES = st.sampled_from(
    [
        {},
        {"indent": 2},
        {"indent": 4, "ensure_ascii": False},
        {"indent": "\t"},
        {"separators": (",", ":"), "ensure_ascii": False},
    ]
)


def written(settings, style, *, windows=False):
    text = json.dumps(settings, **style)
    return text.replace("\n", "\r\n") if windows else text


@given(OBJECTS, STYLES, st.booleans(), NAMES, VALUES)
def test_a_value_put_and_deleted_leaves_the_very_text(settings, style, windows, name, value):
    """In any way of writing JSON, unless the object was empty."""
    assume(name not in settings and settings and value is not None)
    text = written(settings, style, windows=windows)
    there = edited(text, JSON, [Put((name,), value)])
    assert json.loads(there) == {**settings, name: value}
    assert edited(there, JSON, [Delete((name,))]) == text


@given(st.lists(VALUES, min_size=1, max_size=4), STYLES, st.booleans(), VALUES)
def test_an_item_appended_and_deleted_leaves_the_very_text(items, style, windows, item):
    """Also where items stand in lines of their own."""
    assume(item is not None)
    text = written({"a": {"list": items}, "b": 1}, style, windows=windows)
    there = edited(text, JSON, [Append(("a", "list"), item)])
    assert json.loads(there) == {"a": {"list": [*items, item]}, "b": 1}
    assert edited(there, JSON, [Delete(("a", "list", len(items)))]) == text


@given(OBJECTS, STYLES, st.data())
def test_deleting_leaves_the_rest(settings, style, data):
    """Whichever entry goes."""
    assume(settings)
    name = data.draw(st.sampled_from(sorted(settings)))
    text = edited(written(settings, style), JSON, [Delete((name,))])
    rest = {key: value for key, value in settings.items() if key != name}
    # What is null counts as not there.
    assert json.loads(text) == (rest if settings[name] is not None else settings)


@given(st.text(max_size=200))
def test_any_text_is_edited_or_refused(text):
    """With nothing but ValueError, by every format."""
    for form in (JSON, JSONC, TOML, ENV):
        try:
            fresh = edited(text, form, [Put(("a",), "x")])
        except ValueError:
            continue
        assert form.parse(fresh.removeprefix("\ufeff"))["a"] == "x"


@pytest.mark.parametrize(
    "text", ['{"a": ' + "[" * 3000 + "]" * 3000 + "}", '{"a": NaN}', "[1]", "{"]
)
def test_json_that_cannot_be_edited_is_refused(text):
    """Deep nesting, what JSON does not know, and what is no object."""
    with pytest.raises(ValueError, match=r"JSON|deep"):
        edited(text, JSON, [Put(("b",), 1)])


def test_unusual_values_keep_their_spelling():
    """Numbers that no float holds, escapes, names that stand twice."""
    text = '{"n": 1e400, "m": 1.0E+2, "s": "\\u00e9\\/\\ud800", "d": 1, "d": 2}\n'
    fresh = edited(text, JSON, [Put(("x",), 1), Put(("d",), 3)])
    assert fresh == '{"n": 1e400, "m": 1.0E+2, "s": "\\u00e9\\/\\ud800", "d": 1, "d": 3, "x": 1}\n'


COMMENTED = """// top
{
  /* before */ "a": 1, // about a
  // about b
  "b": [
    1, // one
    2 // two, [not} this
  ], // end of b
}
"""


def test_comments_stay_where_they_are():
    """Those behind an entry belong to it, and new ones come behind them."""
    changes = [Append(("b",), 3), Put(("c",), "//"), Put(("a",), {"x": 1})]
    fresh = edited(COMMENTED, JSONC, changes)
    assert fresh == (
        """// top
{
  /* before */ "a": {
    "x": 1
  }, // about a
  // about b
  "b": [
    1, // one
    2, // two, [not} this
    3
  ], // end of b
  "c": "//",
}
"""
    )
    back = edited(fresh, JSONC, [Put(("a",), 1), Delete(("b", 2)), Delete(("c",))])
    assert back == COMMENTED


def test_strict_json_knows_no_comments():
    """An agent that takes none would not start."""
    with pytest.raises(ValueError, match="line 1: not JSON, which knows no comments"):
        edited(COMMENTED, JSON, [Put(("c",), 1)])


@pytest.mark.parametrize(
    "change", [Put(("a", "x"), 1), Append(("a",), 1), Include(("b",), "x", ","), Append(("o",), 1)]
)
def test_what_stands_in_the_way_is_named(change):
    """Nothing is written over."""
    with pytest.raises(ValueError, match=r'"(a|b|o)"'):
        edited('{"a": 1, "b": [], "o": {}}', JSON, [change])


CONFIG = """# mine
model = "o3" # keep
notify = [
  "x", # y
]

[model_providers.mine] # mine
name = 'é'

[projects."/a.b/c"]
trust_level = "trusted"
"""


@pytest.mark.parametrize("windows", [False, True])
@pytest.mark.parametrize("end", ["", "\n"])
def test_toml_keeps_comments_order_and_line_ends(windows, end):
    """New tables come last or beside their like, new values before the first table."""
    text = CONFIG.rstrip("\n") + end
    text = text.replace("\n", "\r\n") if windows else text
    state = ("hooks", "state", "/x.y/hooks.json:stop:0:0", "trusted_hash")
    provider = {"name": "R", "auth": {"command": "/bin/sh", "args": ["-c", "x"]}}
    changes = [
        Put(("model_provider",), "respan"),
        Put(("model_providers", "respan"), provider),
        Put(state, "sha256:1"),
        Put(("notify",), ["ours", "x"]),
    ]
    fresh = edited(text, TOML, changes)
    assert tomllib.loads(fresh) == changed(tomllib.loads(text), changes)
    for line in ("# mine", 'model = "o3" # keep', "[model_providers.mine] # mine", "name = 'é'"):
        assert line in fresh.splitlines()
    assert ("\n" in fresh.replace("\r\n", "")) is not windows
    undo = [Delete(("model_provider",)), Delete(("model_providers", "respan")), Delete(state[:1])]
    back = edited(fresh, TOML, undo)
    assert tomllib.loads(back) == {**tomllib.loads(text), "notify": ["ours", "x"]}


@pytest.mark.parametrize(
    "text",
    [
        'model_providers = {mine = {name = "x"}}\n',
        "[[profile]]\na = 1\n[[profile]]\na = 2\n",
        'model_providers.mine.name = "x"\nmodel = "y"\n',
        '[model_providers]\n[model_providers.mine]\nname = "x"\n[other]\n[model_providers.z]\na = 1\n',
        "",
        "# only a comment",
    ],
)
def test_toml_written_in_other_ways_is_edited_or_refused(text):
    """What it says is right afterwards, or nothing is written."""
    changes = [
        Put(("model_provider",), "respan"),
        Put(("model_providers", "respan"), {"name": "R"}),
    ]
    try:
        fresh = edited(text, TOML, changes)
    except ValueError:
        return
    assert tomllib.loads(fresh) == changed(tomllib.loads(text), changes)


def test_lines_of_an_env_file_stay():
    """Comments, quotes, exports and line ends; the last of two lines counts."""
    text = "# c\r\nexport A='x y' # z\r\nA=2\r\nB=\"1\\n2\"\r\nlast=1"
    fresh = edited(text, ENV, [Put(("A",), "new # v"), Put(("C",), "http://x/y")])
    expected = (
        "# c\r\nexport A='x y' # z\r\nA='new # v'\r\nB=\"1\\n2\"\r\nlast=1\r\nC=http://x/y\r\n"
    )
    assert fresh == expected
    assert ENV.parse(fresh)["B"] == "1\n2"


@given(st.text(st.characters(codec="utf-8", exclude_characters="\0\r"), max_size=20))
def test_values_of_an_env_file_are_read_as_they_were_written(value):
    """Or refused, where no quotation marks are left."""
    try:
        fresh = edited("", ENV, [Put(("A",), value)])
    except ValueError:
        return
    assert ENV.parse(fresh) == {"A": value}


def test_a_piece_is_included_once():
    """Beside the pieces that are there."""
    text = '{"h": "X-A: 1\\nX-B: 2"}'
    fresh = edited(text, JSON, [Include(("h",), "X-C: 3", "\n"), Include(("h",), "X-A: 1", "\n")])
    assert pieces(json.loads(fresh)["h"], "\n") == ["X-A: 1", "X-B: 2", "X-C: 3"]


def test_a_byte_order_mark_stays():
    """Some editors on Windows write one."""
    assert edited("\ufeff{}", JSON, [Put(("a",), 1)]).startswith('\ufeff{\n  "a": 1')
