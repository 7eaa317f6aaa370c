"""Which setting is in force, and where it comes from."""

from __future__ import annotations

import pytest

from tracebridge.settings import SETTINGS, SettingsError, home, read_settings
from tracebridge.spans import Content


def env_of(place, **more):
    return {"TRACEBRIDGE_HOME": str(place), **more}


def write(place, text):
    place.mkdir(exist_ok=True)
    (place / "config.toml").write_text(text, encoding="utf-8")


def test_nothing_set_gives_the_defaults(tmp_path):
    """Each says that it is one, and reading makes nothing."""
    settings = read_settings(env_of(tmp_path / "none"))
    assert settings.content is Content.REDACTED
    assert (settings.retention_days, settings.idle_minutes) == (30, 10)
    assert {origin.origin for origin in settings.values.values()} == {"default"}
    assert set(settings.values) == {setting.name for setting in SETTINGS}
    assert not (tmp_path / "none").exists()


def test_the_environment_beats_the_file_beats_the_default(tmp_path):
    """Each value knows its origin."""
    write(tmp_path, 'content = "full"\nretention_days = 7\n')
    settings = read_settings(env_of(tmp_path, TRACEBRIDGE_CONTENT="metadata"))
    origins = {name: origin.origin for name, origin in settings.values.items()}
    assert settings.content is Content.METADATA
    assert settings.retention_days == 7
    assert origins["content"] == "TRACEBRIDGE_CONTENT"
    assert origins["retention_days"] == str(tmp_path / "config.toml")
    assert origins["idle_minutes"] == "default"


def test_the_file_gives_variables_that_the_environment_may_beat(tmp_path):
    """An agent may keep OTEL_* from its hooks."""
    write(tmp_path, '[env]\nOTEL_A = "file"\nOTEL_B = "file"\nOTEL_C = 5\nOTEL_D = true\n')
    env = read_settings(env_of(tmp_path, OTEL_A="process")).env
    assert [env[f"OTEL_{name}"] for name in "ABCD"] == ["process", "file", "5", "true"]


def test_sinks_of_the_file_reach_the_sinks(tmp_path):
    """They look only at the environment that they are given."""
    write(tmp_path, 'sinks = "json_file:/x"')
    assert read_settings(env_of(tmp_path)).env["TRACEBRIDGE_SINKS"] == "json_file:/x"


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("content = ", "correct it or remove it"),
        ("content = 5", "use metadata, redacted or full"),
        ('content = "all"', "use metadata, redacted or full"),
        ("content = []", "content is not a text"),
        ('sinks = ["otlp"]', "sinks is not a text"),
        ("retention_days = -1", "not negative"),
        ("retention_days = nan", "not negative"),
        ("idle_minutes = inf", "not negative"),
        ("idle_minutes = true", "not negative"),
        ('idle_minutes = "soon"', "not negative"),
        ('contents = "metadata"', "no such setting; choose from content"),
        ("env = 1", "not a table"),
        ("[env]\nA = [1]", "env.A is not a text"),
    ],
)
def test_a_file_that_cannot_be_used_is_named_with_the_remedy(tmp_path, text, complaint):
    """At once, not in the middle of the work."""
    write(tmp_path, text)
    with pytest.raises(SettingsError, match=complaint) as caught:
        read_settings(env_of(tmp_path))
    assert str(tmp_path / "config.toml") in str(caught.value)


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    """A directory, or bytes that are no text."""
    (tmp_path / "config.toml").mkdir()
    with pytest.raises(SettingsError, match=r"config\.toml: Is a directory; make it readable"):
        read_settings(env_of(tmp_path))
    (tmp_path / "config.toml").rmdir()
    (tmp_path / "config.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(SettingsError, match=r"config\.toml: .*correct it or remove it"):
        read_settings(env_of(tmp_path))


@pytest.mark.parametrize("value", ["", "everything", "FULL "])
def test_a_variable_that_cannot_be_used_is_named(tmp_path, value):
    """With what it may be."""
    with pytest.raises(SettingsError, match=r"from TRACEBRIDGE_CONTENT.*: use metadata"):
        read_settings(env_of(tmp_path, TRACEBRIDGE_CONTENT=value))


def test_the_home_is_where_the_variable_says_else_the_users_state_folder(monkeypatch, tmp_path):
    """A relative one is taken from here."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    assert home({"TRACEBRIDGE_HOME": "x"}) == tmp_path / "x"
    assert home({}).name == "tracebridge"
    assert home({"TRACEBRIDGE_HOME": ""}) == home({})


def test_what_is_printed_of_settings_holds_no_environment(tmp_path):
    """There are keys in it."""
    assert "hunter2" not in repr(read_settings(env_of(tmp_path, RESPAN_API_KEY="hunter2")))


def test_expressions_and_folders_are_lists(tmp_path):
    """In the file as a list, in the environment one a line."""
    write(tmp_path, "scrub_patterns = ['acme-[0-9]+', 'x{3}']\nuntraced = ['/secret', '~/diary']\n")
    settings = read_settings(env_of(tmp_path))
    assert [pattern.pattern for pattern in settings.scrub_patterns] == ["acme-[0-9]+", "x{3}"]
    assert [path.name for path in settings.untraced] == ["secret", "diary"]
    settings = read_settings(env_of(tmp_path, TRACEBRIDGE_UNTRACED="/a\n\n/b"))
    assert [str(path) for path in settings.untraced] == ["/a", "/b"]


def test_an_expression_that_is_none_is_named(tmp_path):
    """A rule that is never applied would be worse than none."""
    write(tmp_path, "scrub_patterns = ['acme-(']\n")
    with pytest.raises(SettingsError, match=r"scrub_patterns = 'acme-\('.*correct the expression"):
        read_settings(env_of(tmp_path))
