"""Whatever stands in a settings file: values and their lines, or what is wrong and where."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tracebridge.config_files import EditError, edited, read_dotenv, read_json, read_toml, write


@given(st.dictionaries(st.text(min_size=1), st.integers(), min_size=1))
def test_lines_of_json(tmp_path_factory, members):
    """Of each member: the one that it stands on."""
    path = tmp_path_factory.mktemp("json") / "file"
    path.write_text(json.dumps(members, indent=1))
    file = read_json(path)
    assert file.values == members
    for number, name in enumerate(members):
        assert file.line_of((name,)) == number + 2


@given(st.binary())
def test_any_bytes(tmp_path_factory, data):
    """Are values, or a problem; nothing is raised."""
    path = tmp_path_factory.mktemp("bytes") / "file"
    path.write_bytes(data)
    for read in (read_json, read_toml, read_dotenv):
        file = read(path)
        assert file.exists
        assert file.problem is None or not file.values


def test_comments_and_commas(tmp_path):
    """As far as the agent's own reader forgives them."""
    path = tmp_path / "file"
    path.write_text('{ // one\n "a": [1, /* two\n lines */ 2,],\n "b": "// no comment",\n}')
    file = read_json(path, comments=True, trailing_commas=True)
    assert file.values == {"a": [1, 2], "b": "// no comment"}
    wanted = {("a",): 2, ("a", 1): 3, ("b",): 4, ("a", 9): 2, ("z",): None}
    assert {keys: file.line_of(keys) for keys in wanted} == wanted
    assert "line 1: not JSON, which knows no comments" in (read_json(path).problem or "")


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b'{"a": 1\n "b": sk-secret}', "line 2: not JSON"),
        (b"[1]", "not a JSON object"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a":\n "\xff"}', "line 2: not UTF-8"),
        (b'{"a": 1' + b"0" * 5000 + b"}", "4300 digits"),
        (b" " * (5 << 20), "too long"),
    ],
)
def test_what_is_wrong(tmp_path, data, problem):
    """With the line where that is known, and never with what stands there."""
    path = tmp_path / "file"
    path.write_bytes(data)
    said = read_json(path).problem or ""
    assert problem in said
    assert "secret" not in said


def test_files_of_three_kinds(tmp_path):
    """Values and lines, with a byte order mark and other line ends, too."""
    path = tmp_path / "file"
    path.write_bytes(b'\xef\xbb\xbf{\r\n"a": {"b": 1}}')
    file = read_json(path)
    assert (file.at("a", "b"), file.line_of(("a", "b")), file.at("a", "b", "c")) == (1, 2, None)
    path.write_text('# x\n[a."b.c"]\n"d" = "e"\nf.g = 1\n')
    file = read_toml(path)
    assert file.at("a", "b.c", "d") == "e"
    assert [file.line_of(("a", "b.c", *key)) for key in (("d",), ("f", "g"))] == [3, 4]
    path.write_text('A=1\n# B=2\n  export C = "x # y" # z\nE=f # g\n=h\nI\n')
    file = read_dotenv(path)
    assert file.values == {"A": "1", "C": "x # y", "E": "f"}
    assert file.line_of(("C",)) == 3
    path.write_text("model =\n")
    assert read_toml(path).problem == "line 1: not TOML"


def test_an_edit_is_written_whole_or_not_at_all(tmp_path):
    """Mode and mark stay, the file as it was is kept; one that changed meanwhile is left alone."""
    path, backups = tmp_path / "file", tmp_path / "backups"
    before = b'\xef\xbb\xbf{"a": 1}'
    path.write_bytes(before)
    path.chmod(0o640)
    file = read_json(path)
    kept = write(path, edited(file, ("a",), 2), file.text, backups)
    assert json.loads(path.read_text("utf-8-sig")) == {"a": 2}
    assert path.read_bytes()[:3] == before[:3]
    assert path.stat().st_mode & 0o777 == 0o640
    assert kept.read_bytes() == before
    assert kept.stat().st_mode & 0o777 == 0o600
    with pytest.raises(EditError, match="run this again"):
        write(path, "{}", file.text, backups)
    assert json.loads(path.read_text("utf-8-sig")) == {"a": 2}
    with pytest.raises(EditError, match="by hand"):
        edited(file, ("b", "c"), None)
