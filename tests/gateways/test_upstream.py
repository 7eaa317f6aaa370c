"""Where requests go."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tracebridge.gateways.upstream import Origin, parse_upstreams

FAMILIES = (
    "anthropic=http://a:1",
    "openai=http://o:2/v1",
    "gemini=http://g:3/",
    "vertex=http://v:4/x/y//",
)


@pytest.mark.parametrize(
    ("specs", "target", "host", "expected"),
    [
        # A base URL: the path is kept.
        (["http://h:1"], "/api/anthropic/v1/messages?beta=true", "h", None),
        (["http://h:1/"], "/api/anthropic/v1/messages", "h", None),
        (["http://h:1"], "/v1/messages", "h", None),
        (["http://h:1"], "//api//anthropic/v1/messages", "h", None),
        (["http://h:1"], "/", "h", None),
        (["http://h:1"], "/a%2Fb/../~c+d?x=%20&y", "h", None),
        (["http://h:1/litellm"], "/api/anthropic/v1/x", "h", "/litellm/api/anthropic/v1/x"),
        (["http://h:1/litellm/"], "/v1/messages", "h", "/litellm/v1/messages"),
        # A family's URL: it takes the place of our prefix.
        (FAMILIES, "/api/anthropic/v1/messages?beta=true", "a", "/v1/messages?beta=true"),
        (FAMILIES, "/api/anthropic//v1/messages", "a", "/v1/messages"),
        (FAMILIES, "//api/anthropic/v1/messages", "a", "/v1/messages"),
        (FAMILIES, "/api/anthropic/v1//messages", "a", "/v1//messages"),
        (FAMILIES, "/api/anthropic/v1/v1/messages", "a", "/v1/v1/messages"),
        (FAMILIES, "/api/anthropic", "a", "/"),
        (FAMILIES, "/api/anthropic/", "a", "/"),
        (FAMILIES, "/api/anthropic?x", "a", "/?x"),
        (FAMILIES, "/api/anthropic/api/hello", "a", "/api/hello"),
        (FAMILIES, "/v1/messages", "a", "/v1/messages"),
        (FAMILIES, "//v1/messages", "a", "/v1/messages"),
        (FAMILIES, "/v1/models", "a", "/v1/models"),
        (FAMILIES, "/", "a", "/"),
        (FAMILIES, "/api/chat/completions", "o", "/v1/chat/completions"),
        (FAMILIES, "/api/responses", "o", "/v1/responses"),
        (FAMILIES, "/api/anthropicx", "o", "/v1/anthropicx"),
        (FAMILIES, "/api/google/gemini/v1beta/models/m:g?key=1", "g", "/v1beta/models/m:g?key=1"),
        (FAMILIES, "/api/google/vertexai/v1/projects", "v", "/x/y/v1/projects"),
        # A family's URL comes before the base URL.
        (["http://h:1", "anthropic=http://a"], "/api/anthropic/v1/messages", "a", "/v1/messages"),
        (["http://h:1", "anthropic=http://a"], "/api/responses", "h", None),
        (["http://h:1", "anthropic=http://a"], "/api/google/other", "h", None),
        # Presets.
        (["respan"], "/api/anthropic/v1/messages", "api.respan.ai", None),
        (["anthropic"], "/api/anthropic/v1/messages", "api.anthropic.com", "/v1/messages"),
        (["openai", "google"], "/api/responses", "api.openai.com", "/v1/responses"),
    ],
)
def test_route(specs, target, host, expected):
    """A path goes to its family's URL, else to the base URL."""
    route = parse_upstreams(specs).route(target)
    assert route is not None
    assert (route.origin.host, route.target) == (host, target if expected is None else expected)


@pytest.mark.parametrize(
    ("specs", "target", "remedy"),
    [
        (["openai"], "/api/anthropic/v1/messages", "--upstream anthropic=URL"),
        (["openai"], "/v1/messages", "--upstream anthropic=URL"),
        (["anthropic"], "/api/responses", "--upstream openai=URL"),
        (["anthropic"], "/api/google/gemini/x?key=secret", "--upstream gemini=URL"),
        (["openai"], "/api/google/other", "--upstream URL"),
    ],
)
def test_no_route(specs, target, remedy):
    """A path that nothing serves has no route, and the message says what to configure."""
    upstreams = parse_upstreams(specs)
    assert upstreams.route(target) is None
    assert remedy in upstreams.missing(target)
    assert "secret" not in upstreams.missing(target)


@pytest.mark.parametrize(
    ("specs", "words"),
    [
        ([], "no upstream"),
        (["nonsense"], "no URL and no preset"),
        (["ftp://h"], "no URL and no preset"),
        (["http://"], "no URL and no preset"),
        (["http://h:99999"], "Port out of range"),
        (["http://[::1"], "Invalid IPv6"),
        (["mistral=http://h"], "no family 'mistral'"),
        (["anthropic=nonsense"], "no URL"),
        (["anthropic", "anthropic=http://h"], "given twice"),
        (["http://a", "http://b"], "base URL already"),
        (["http://user:key@h"], "user name"),
        (["http://h/?x=1"], "no query"),
        (["http://h/a b"], "without spaces"),
    ],
)
def test_bad_spec(specs, words):
    """A spec that cannot be understood is refused with its name and the remedy."""
    with pytest.raises(ValueError, match=words):
        parse_upstreams(specs)


def test_base_url_may_hold_an_equals_sign():
    """A base URL with an equals sign in its path is not taken for a family."""
    route = parse_upstreams(["http://h/a=b"]).route("/x")
    assert route is not None
    assert route.target == "/a=b/x"


@pytest.mark.parametrize(
    ("url", "header"),
    [
        ("http://h", "h"),
        ("https://h:443", "h"),
        ("http://h:443", "h:443"),
        ("http://[::1]:8", "[::1]:8"),
    ],
)
def test_host_header(url, header):
    """The Host value names the port only where it is not the scheme's own."""
    route = parse_upstreams([url]).route("/")
    assert route is not None
    assert isinstance(route.origin, Origin)
    assert route.origin.host_header == header


@given(st.text(alphabet="/apinthrocgle?v1%.x", max_size=40))
def test_every_path_has_a_well_formed_target(path):
    """Whatever the path, the upstream gets one that starts with a slash, query untouched."""
    target = "/" + path
    for specs in (["http://h"], ["http://h/base/"], FAMILIES):
        route = parse_upstreams(specs).route(target)
        if route is not None:
            assert route.target.startswith("/")
            assert route.target.partition("?")[2] == target.partition("?")[2]
