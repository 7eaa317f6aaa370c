"""Who the work is for, as the environment says it."""

from __future__ import annotations

import pytest

from tracebridge.model import Tags
from tracebridge.tags import parse_tags


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
