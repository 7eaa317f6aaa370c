"""Who the work is for, as the environment says it."""

from __future__ import annotations

import pytest

from tracebridge.model import Tags
from tracebridge.tags import over, parse_file, parse_tags, parse_telemetry


def test_no_tags_are_none():
    """Empty variables count as missing."""
    assert parse_tags({}) == (None, None)
    assert parse_tags({"RESPAN_CUSTOMER_ID": "", "RESPAN_METADATA": ""}) == (None, None)


def test_every_variable_has_its_field():
    """Metadata comes in the order of names, whatever its own order."""
    tags, problem = parse_tags(
        {
            "RESPAN_CUSTOMER_ID": "acme",
            "RESPAN_WORKFLOW_NAME": "w",
            "RESPAN_SPAN_NAME": "s",
            "RESPAN_PROJECT_ID": "p",
            "RESPAN_METADATA": '{"b":"2","a":"1"}',
        }
    )
    assert problem is None
    assert tags == Tags(
        customer_id="acme",
        workflow_name="w",
        span_name="s",
        project_id="p",
        metadata=(("a", "1"), ("b", "2")),
    )


def test_our_own_variables_win():
    """An empty one does not."""
    env = {
        "TRACEBRIDGE_CUSTOMER_ID": "ours",
        "RESPAN_CUSTOMER_ID": "theirs",
        "TRACEBRIDGE_PROJECT_ID": "",
        "RESPAN_PROJECT_ID": "theirs",
    }
    tags, _ = parse_tags(env)
    assert (tags.customer_id, tags.project_id) == ("ours", "theirs")


def test_metadata_of_any_type_becomes_text():
    """Nested values are their JSON."""
    tags, _ = parse_tags({"RESPAN_METADATA": '{"n":1,"t":true,"o":{"x":[1,"é"]},"z":null}'})
    assert dict(tags.metadata) == {"n": "1", "t": "true", "o": '{"x":[1,"é"]}', "z": "null"}


@pytest.mark.parametrize("prefix", ["TRACEBRIDGE", "RESPAN"])
@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("team=blue", "not JSON"),
        ('{"team"', "not JSON"),
        ("[1]", "not a JSON object"),
        ("5", "not a JSON object"),
        ("\udcff", "not JSON"),
    ],
)
def test_metadata_that_is_none_is_noted_and_the_rest_counts(prefix, text, what):
    """The note names the variable and shows how to write it."""
    tags, problem = parse_tags({f"{prefix}_METADATA": text, "RESPAN_CUSTOMER_ID": "acme"})
    assert tags == Tags(customer_id="acme")
    assert problem == f'{prefix}_METADATA is {what}; write it as {{"team": "blue"}}'


def test_a_file_has_fields_and_metadata():
    """What has a field of its own, and all the rest; where traces go is not for it to say."""
    tags, problem = parse_file(
        b'{"customer_id": "acme", "span_name": "s", "workflow_name": "w", "project_id": 7,'
        b' "base_url": "https://evil", "team": "blue", "n": [1], "none": null}'
    )
    assert problem is None
    assert tags == Tags(
        customer_id="acme",
        span_name="s",
        workflow_name="w",
        project_id="7",
        metadata=(("n", "[1]"), ("team", "blue")),
    )


@pytest.mark.parametrize("data", [b"{", b"[]", b"\xff", b"", b'"x"', b"[" * 100_000])
def test_a_file_that_is_none_is_said(data):
    """In words."""
    tags, problem = parse_file(data)
    assert tags is None
    assert problem in {"not JSON", "not a JSON object"}


def test_a_project_tag_and_cost_center_are_metadata():
    """Nothing else of that file is."""
    data = b'{"telemetry": {"projectTag": "p", "costCenter": 42, "x": 1}, "env": {"A": "b"}}'
    assert parse_telemetry(data)[0] == Tags(metadata=(("costCenter", "42"), ("projectTag", "p")))
    assert parse_telemetry(b'{"telemetry": []}') == (None, None)
    assert parse_telemetry(b"// comment")[1] is None


def test_what_is_stronger_wins_name_by_name():
    """Metadata of both is there."""
    weak = Tags(customer_id="a", span_name="s", metadata=(("k", "1"), ("l", "1")))
    strong = Tags(customer_id="b", metadata=(("k", "2"),))
    assert over(weak, strong) == Tags(
        customer_id="b", span_name="s", metadata=(("k", "2"), ("l", "1"))
    )
    assert over(None, strong) is strong
    assert over(weak, None) is weak
