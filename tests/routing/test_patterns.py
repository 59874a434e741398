"""Public patterns: what they match, what they refuse, and that what they cover they match, every path of it."""

import re
import string
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from server.http.targets import malformed
from server.routing.automaton import ALL, Automaton, Unsupported
from server.routing.patterns import PATH, Pattern, PatternError, shadows, template_automaton
from server.routing.regex import Expression
from server.routing.table import _shadowed
from server.routing.trie import Trie, shape_of


@pytest.mark.parametrize(
    ("pattern", "path", "expected"),
    [
        ("/api/health", "/api/health", True),
        ("/api/health", "/api/health/", True),
        ("/api/health", "/API/HEALTH", True),
        ("/api/health", "/api/healthz", False),
        ("/api/health", "/api/health/x", False),
        ("/api/health", "/api/health%2F", False),
        ("/api/health", "/api/health%20", False),
        ("/api/health", "/api/health//", False),
        ("/api/health", "/api/health\n", False),
        ("/api/health", "x/api/health", False),
        ("/api/health", "", False),
        ("/v1.0", "/v1.0", True),
        ("/v1.0", "/v1x0", False),
        ("/api/webhooks(.*)", "/api/webhooks", True),
        ("/api/webhooks(.*)", "/api/webhooks/clerk", True),
        ("/api/webhooks(.*)", "/api/webhooksevil", True),
        ("/api/webhooks(.*)", "/api/webhooks-admin/secret", True),
        ("/api/webhooks(.*)", "/api/webhooks;x=1", True),
        ("/api/webhooks(.*)", "/api/webhooks/..%2fadmin", True),
        ("/api/webhooks(.*)", "/api/webhooks/../admin", True),
        ("/api/webhooks(.*)", "/api/webhooks/é", True),
        ("/api/webhooks(.*)", "/api/webhook", False),
        ("/api/webhooks(.*)", "/x/api/webhooks", False),
        ("/api/webhooks(.*)", "/api%2Fwebhooks/x", False),
        ("/api/webhooks(.*)", "/api/webhooks\n", False),
        ("/api/webhooks(.*)", "/api/webhooks/a\rb", False),
        ("/foo/:path*", "/foo", True),
        ("/foo/:path*", "/foo/", True),
        ("/foo/:path*", "/foo/a/b", True),
        ("/foo/:path*", "/foobar", False),
        ("/foo/:path+", "/foo/a", True),
        ("/foo/:path+", "/foo/a/b/c", True),
        ("/foo/:path+", "/foo", False),
        ("/foo/:path+", "/foo/", False),
        ("/foo/:id", "/foo/1", True),
        ("/foo/:id", "/foo/1/", True),
        ("/foo/:id", "/foo/a%2Fb", True),
        ("/foo/:id", "/foo/", False),
        ("/foo/:id", "/foo/1/2", False),
        ("/foo/(.*)", "/foo/", True),
        ("/foo/(.*)", "/foo/a", True),
        ("/foo/(.*)", "/foo", False),
        ("/foo{/:a}?", "/foo", True),
        ("/foo{/:a}?", "/foo/x", True),
        ("/foo{/:a}?", "/foo/x/y", False),
        ("/foo/:a?", "/foo", True),
        ("/foo/:a?", "/foo/x", True),
        ("/foo/:a?", "/foo/x/y", False),
        (r"/u/:id(\d+)", "/u/12", True),
        (r"/u/:id(\d+)", "/u/a", False),
        (r"/u/:id(\d+)", "/u/", False),
        (r"/u/:id(\d+)", "/u/٣", False),
        ("/api/(a|b)", "/api/a", True),
        ("/api/(a|b)", "/api/b/", True),
        ("/api/(a|b)", "/api/c", False),
        ("/api/(a|b)", "/api/ab", False),
        ("/api/(a|b)", "/b", False),
        ("/(kiss)", "/KISS", True),
        ("/(kiss)", "/\u212aiss", False),
        ("/kiss", "/ki\u017fs", False),
        ("/file.:ext", "/file.json", True),
        ("/file.:ext", "/filexjson", False),
        (r"/a\:b", "/a:b", True),
        (r"/a\*", "/a*", True),
        ("/n/(a{2,3})", "/n/aa", True),
        ("/n/(a{2,3})", "/n/aaaa", False),
        ("/(.*)", "/", True),
        ("/(.*)", "/anything/at/all", True),
    ],
)
def test_a_pattern_matches_as_clerks_do(pattern: str, path: str, expected: bool) -> None:
    assert Pattern(pattern).matches(path) is expected


@pytest.mark.parametrize(
    "text",
    ["", "api", "api/health", "*", "/foo*", "/foo/**", "/foo/*", "/foo+", "/foo?", "/foo/:", "/foo/:-x", "/foo/(", "/foo/()", "/foo/(a",
     "/foo/(?:a)", "/foo/(?=a)", "/foo{", "/foo{/:a", "/foo}", "/foo/(a(?=b))", r"/foo/(a\b)", r"/foo/(\1)", "/foo/([a)", "/foo/(a{2)",
     "/foo/(a{3,2})", "/foo/(a{65})", "/foo/(^a)", "/foo/(a$)", "/foo/(*a)", "/foo/([z-a])", "/foo\\", "/föö", "/foo/(ö)", r"/foo/(\u0041)"],
)  # fmt: skip
def test_a_pattern_that_does_not_compile_is_refused_by_name(text: str) -> None:
    with pytest.raises(PatternError) as caught:
        Pattern(text)
    assert repr(text) in str(caught.value)


@pytest.mark.parametrize(
    ("pattern", "template", "expected"),
    [
        ("/api/health", "/api/health", True),
        ("/api/health", "/api/healthz", False),
        ("/api/health", "/api/{name}", False),
        ("/api/webhooks(.*)", "/api/webhooks/clerk", True),
        ("/api/webhooks(.*)", "/api/webhooks-admin", True),
        ("/api/webhooks(.*)", "/api/webhooks/{name}", True),
        ("/api/webhooks(.*)", "/api/webhooks/{tail:.*}", True),
        ("/api/webhooks(.*)", "/api/webhooks{tail:.*}", True),
        ("/api/webhooks(.*)", "/api/{name}", False),
        ("/api/webhooks(.*)", "/api/{tail:.*}", False),
        ("/api/webhooks(.*)", "/api/{tail:webhooks.*}", True),
        ("/api/webhooks(.*)", "/api/{tail:webhook.*}", False),
        ("/api/webhooks(.*)", "/{tail:.*}", False),
        ("/api/notes/:id", "/api/notes/{id}", True),
        ("/api/notes/:id", "/api/notes/{id}/x", False),
        ("/api/notes/:id", "/api/notes/{id:.*}", False),
        ("/api/notes/:id", r"/api/notes/{id:[^/]+}", True),
        ("/api/notes/:id", r"/api/notes/{id:\d+}", True),
        (r"/api/notes/:id(\d+)", "/api/notes/{id}", False),
        (r"/api/notes/:id(\d+)", r"/api/notes/{id:\d+}", False),  # Python's \d knows the digits of every script
        (r"/api/notes/:id(\d+)", r"/api/notes/{id:[0-9]+}", True),
        (r"/api/notes/:id(\d+)", r"/api/notes/{id:[0-9]{1,3}}", True),
        ("/api/notes/:id([a-f]+)", "/api/notes/{id:[A-F]+}", True),
        ("/api/notes/:id([a-f]+)", "/api/notes/{id:[A-G]+}", False),
        ("/api/(a|b)", "/api/{x:a|b}", True),
        ("/api/(a|b)", "/api/{x:a|b|c}", False),
        ("/api/(a|b)", "/api/{x:(?i:a)}", False),
        ("/api/(.*)", r"/api/{x:(?=secret).*}", True),
        ("/api/x(.*)", r"/api/{x:(?=x).*}", False),
        ("/api/:a/:b", "/api/{a}/{b}", True),
        ("/api/:a", "/api/{a}-{b}", True),
        ("/api/:path*", "/api/{tail:.+}", False),  # // in it
        ("/(.*)", "/api/{tail:.*}", True),
        ("/(.*)", "/", True),
        ("/api/health", "/API/Health", True),
        ("/api/h(.)llo", "/api/héllo", True),
        ("/api/public(.*)", "/api/publi{c}", False),
    ],
)
def test_covers_means_every_path_of_the_template(pattern: str, template: str, expected: bool) -> None:
    assert Pattern(pattern).covers(template) is expected


def test_an_expression_that_we_cannot_read_counts_as_anything_at_all() -> None:
    assert template_automaton(r"/x/{y:a(?!b)}").matches("/x/whatever/it/is")
    assert not Pattern("/x/a(.*)").covers(r"/x/{y:a(?!b)}")
    assert Pattern("/x/(.*)").covers(r"/x/{y:a(?!b)}")


# Properties ------------------------------------------------------------------------------------------------------------

ALPHABET = "abAB01/-._ \n~"
LITERALS = st.sampled_from(["a", "b", "A", "0", "/", "-", "_", r"\.", r"\-", r"\/", r"\*", "~", " "])
SETS = st.sampled_from([".", r"\d", r"\w", r"\s", r"\D", r"\W", r"\S", "[ab]", "[^ab]", "[a-z]", "[^0-9/]", r"[\d_]", r"[^\w]", "[]a]",
                        "[^]]", "[a-]", "[-a]", r"[\]\-]"])  # fmt: skip
EXPRESSIONS: st.SearchStrategy[str] = st.recursive(
    LITERALS | SETS,
    lambda inner: st.one_of(
        st.lists(inner, min_size=1, max_size=3).map("".join),
        st.tuples(st.sampled_from(["(", "(?:"]), inner, st.sampled_from([")", ")*", ")+", ")?", ")*?", "){2}", "){1,2}", "){1,}", "){0,2}?"])).map("".join),
        st.lists(inner, min_size=2, max_size=3).map(lambda parts: "(?:" + "|".join(parts) + ")"),
        st.tuples(LITERALS | SETS, st.sampled_from(["*", "+", "?", "{2}", "{0,1}", "{1,}"])).map("".join),
    ),
    max_leaves=8,
)  # fmt: skip


def language(expression: str, *, ignore_case: bool = False) -> Automaton:
    made = Automaton()
    Expression(expression, made, ignore_case=ignore_case, beyond=False).append()
    return made


@settings(max_examples=100, deadline=None)
@given(EXPRESSIONS, st.lists(st.text(ALPHABET, max_size=8), min_size=1, max_size=6), st.booleans(), st.data())
def test_matches_agrees_with_pythons_re(expression: str, texts: list[str], ignore_case: bool, data: st.DataObject) -> None:
    flags = re.ASCII | (re.IGNORECASE if ignore_case else 0)
    compiled = re.compile(expression, flags)
    texts.append(
        data.draw(st.from_regex(compiled, fullmatch=True, alphabet=st.characters(codec="ascii", exclude_characters="\r")))
    )
    made = language(expression, ignore_case=ignore_case)
    for text in texts:
        assert made.matches(text) == (compiled.fullmatch(text) is not None), (expression, text)


@settings(max_examples=150, deadline=None)
@given(EXPRESSIONS, EXPRESSIONS, st.data())
def test_within_agrees_with_samples(small: str, large: str, data: st.DataObject) -> None:
    compiled = re.compile(small, re.ASCII)
    if language(small).within(language(large)):
        sample = data.draw(
            st.from_regex(compiled, fullmatch=True, alphabet=st.characters(codec="ascii", exclude_characters="\r"))
        )
        assert re.fullmatch(large, sample, re.ASCII), (small, large, sample)
    assert language(small).within(language(small))
    assert language(small).within(language(f"(?:{small}|{large})"))


@settings(max_examples=200, deadline=None)
@given(st.text(string.printable, max_size=20))
def test_any_text_is_a_pattern_or_a_pattern_error(text: str) -> None:
    try:
        made = Pattern("/" + text)
    except PatternError:
        return
    made.matches("/api/x")
    made.covers("/api/{x}")


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=20))
def test_any_expression_of_a_template_is_read_or_counts_as_anything(text: str) -> None:
    assume("{" not in text and "}" not in text)
    try:
        language(text)
    except Unsupported:
        assert Automaton.within(Automaton(), template_automaton("/{x:" + text + "}")) is False or text == ""


NAMES = st.sampled_from(["a", "id", "tail"])
PARAMETERS = st.sampled_from(
    ["", ":.*", ":.+", r":\d+", ":[0-9]{1,3}", ":[a-f]+", ":[^/]+", ":a|b", ":webhooks.*", r":\w+", ":(?i:a)+", ":x?"]
)
WORDS_ = ["/api", "/api/webhooks", "/api/public", "/x", "-", "/", ".json", "/A"]


@st.composite
def templates(draw: st.DrawFn) -> str:
    parts = [draw(st.sampled_from(WORDS_[:4]))]
    for number in range(draw(st.integers(0, 2))):
        parts.append(draw(st.sampled_from(WORDS_)))
        parts.append("{" + draw(NAMES) + str(number) + draw(PARAMETERS) + "}")
    parts.append(draw(st.sampled_from(["", *WORDS_])))
    return "".join(parts)


PATTERN_PARTS = st.sampled_from(["/api", "/webhooks", "(.*)", "/:a", "/:a*", "/:a+", "/:a?", r"/:a(\d+)", "/([a-f]+)", "/(a|b)", "{/:b}?",
                                 "/public", "/x", "/(.*)", "-:b", ".json"])  # fmt: skip
PATTERNS = st.lists(PATTERN_PARTS, min_size=1, max_size=4).map("".join).filter(lambda text: text.startswith("/"))
RAW = st.lists(st.sampled_from(["a", "b", "A", "F", "1", "webhooks", "/", "//", ";", ".", "..", "%61", "%C3%A9", "%20", "%2F", "%3F", "%23", "-",
                                "~", "%7B", "{", ".json", "x", "@", ":", "%2e", "%25"]), max_size=5).map("".join)  # fmt: skip


async def nobody(request: web.Request) -> web.Response:
    return web.Response()


def resolved(template: str, target: str) -> str | None:
    """The path that aiohttp's own router matched against the template, or None. `?` and `#` stay escapes, as in Clerk's."""
    router = web.UrlDispatcher()
    router.add_route("GET", template, nobody)
    request = make_mocked_request("GET", target)
    try:
        router.resolve(request).send(None)
    except StopIteration as done:  # it never awaits anything
        if done.value.http_exception is None:
            return request.rel_url.path_safe.replace("?", "%3F").replace("#", "%23")
    return None


@settings(max_examples=80, deadline=None)
@given(templates(), st.lists(PATTERNS, min_size=1, max_size=6), st.data())
def test_whatever_aiohttp_routes_to_a_covered_template_matches_the_pattern(
    template: str, patterns: list[str], data: st.DataObject
) -> None:
    target = data.draw(target_of(template))
    assume(not malformed(target))
    path = resolved(template, target)
    assume(path is not None)
    assert path is not None
    assert template_automaton(template).matches(path), (template, path)
    for pattern in patterns:
        if Pattern(pattern).covers(template):
            assert Pattern(pattern).matches(path), (pattern, template, path)


def target_of(template: str) -> st.SearchStrategy[str]:
    """Raw targets that often match the template: its literals, with raw texts in the place of its parameters."""
    parts = re.split(r"(\{[^}]*\}+)", template)
    values: list[Any] = []
    for part in parts:
        found = re.fullmatch(r"\{\w+(?::(.*))?\}", part)
        if found is None:
            values.append(st.just(part))
        elif found[1]:
            values.append(
                st.from_regex(found[1].removeprefix("(?i:").replace(")+", "+"), fullmatch=True)
                .filter(str.isprintable)
                .map(_raw)
                | RAW
            )
        else:
            values.append(RAW)
    return st.tuples(*values).map("".join)


def _raw(text: str) -> str:
    return "".join(
        char if char.isascii() and char not in '?#%\\ "<>^`{|}' else "".join(f"%{byte:02X}" for byte in char.encode())
        for char in text
    )


def test_the_alphabet_has_129_symbols() -> None:
    assert ALL.bit_count() == 129


# The quick ways to an answer are the slow way's answer ------------------------------------------------------------------

PIECES = ["/api", "/Api", "/a", "/a1", "/{id}", "/{x}", "/{n:\\d+}", "/{n:[a-z]*}", "/{tail:.*}", "/x{id}", "/{id}.json", "/", "/data", "/DATA", "/d%20", "/é"]
PIECED = st.lists(st.sampled_from(PIECES), min_size=1, max_size=4).map("".join)
SIGNS = ["/api", "/a", "/A1", "/:id", "/:id?", "/:path*", "/(.*)", "(.*)", "/x(\\d+)", "{/a}?", "/data", "/", ".json", "/a\\:b", "/(\\d+)"]
SIGNED = st.lists(st.sampled_from(SIGNS), min_size=1, max_size=4).map("".join)


@settings(max_examples=600)
@given(SIGNED, PIECED)
def test_what_is_refused_at_first_sight_is_not_covered(text: str, template: str) -> None:
    try:
        pattern = Pattern(text)
    except PatternError:
        assume(False)
    assert pattern.covers(template) == template_automaton(template).within(pattern.automaton, PATH)


@settings(max_examples=600)
@given(PIECED, PIECED)
def test_a_template_shadows_another_as_the_automata_say(earlier: str, later: str) -> None:
    slowly = template_automaton(later).within(template_automaton(earlier, unread=0), PATH)
    assert shadows(earlier, later) == slowly
    one, other = shape_of(earlier), shape_of(later)
    if one is not None and other is not None:
        tree: Trie[str] = Trie()
        tree.add(one, earlier)
        assert bool(tree.find(other)) == slowly


@pytest.mark.parametrize("template", ["/api/shared/{{id}}/part{}", "/api/plain{}", "/api/own{}/{{id}}", "/api/{{n:\\d+}}/part{}"])
def test_many_routes_are_not_held_against_one_another_in_pairs(template: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A start with many routes must not take minutes: nearly all pairs are distinguished by their first segments."""
    asked, within = [], Automaton.within
    monkeypatch.setattr(Automaton, "within", lambda *given: asked.append(given) or within(*given))
    found = list(_shadowed([template.format(number) for number in range(200)]))
    assert found == []
    covering = [Pattern(f"/api/open{number}") for number in range(200)]
    assert not any(pattern.covers(template.format(number)) for number, pattern in enumerate(covering))
    assert len(asked) <= 200
