"""Targets that two readers could take differently are refused; development credentials are for this very machine."""

import re
import time
import timeit
from collections.abc import AsyncIterator
from urllib.parse import unquote_to_bytes

import pytest
from aiohttp import web
from hypothesis import example, given, settings
from hypothesis import strategies as st
from kits.app import LOCAL, ask, build_app, routes_plugin, serving, stub

from server import identity_of, is_local, public, signed_in
from server.http.targets import _PLAIN, _malformed_at_length, malformed

GOOD = [
    "/", "/api/me", "/api/me/", "/API/me", "//api/me", "/api//me", "/%61pi/me", "/api/%6De", "/api/me;a=b", "/api/me?x=1&y=2",
    "/api/me?next=/../x", "/api/me?x=%2F%2e%25", "/api/me?x=a%20b", "/api/data/%E2%82%AC", "/api/.well-known", "/api/...", "/api/..a",
    "/api/a..", "/api/%EF%BC%8Fme", "/api/me%20", "/api/me%3Fx", "/api/me%23x", "/api/a%3Bb", "/api/me?", "/api/me?#".rstrip("#"), "/api/~a",
    "/api/a:b@c", "/api/me?x=[1]", "http://localhost/api/me", "https://evil:8/api/me", "http://evil", "HTTP://evil/api/me?x=1",
]  # fmt: skip
BAD = {
    "R1 encoded slash": ["/api%2Fme", "/api%2fme", "/api/webhooks%2F..%2Fme", "/api/public/%2F"],
    "R1 encoded backslash": ["/api%5Cme", "/api/x%5c..%5cme"],
    "R1 encoded percent": ["/api%252Fme", "/api/%25", "/api/%252e%252e/me"],
    "R2 dot segments": ["/api/../me", "/api/./me", "/..", "/.", "/api/..", "/api/.", "/./", "/../", "/api/webhooks/../me"],
    "R2 encoded dots": ["/api/%2e%2e/me", "/api/%2E./me", "/api/.%2e/me", "/api/%2e", "/api/x%2ejson"],
    "R2 dots after //": ["/.//api", "/api/.//me", "//..//api/me"],
    "R6 dots with a parameter": ["/api/..;/me", "/api/..;x=1/me", "/api/.;/me", "/..;a"],
    "R7 control characters": ["/api/me%00", "/api/%0a", "/api/%0D%0A", "/api/%09", "/api/%1f", "/api/%7F", "/api/%C2%80", "/api/%C2%9f",
                              "/api/me\x00", "/api/me\n", "/api/me\x7f", "/api/me\t"],
    "R7 a raw blank": ["/api/me x", " /api/me", "/api/me ", "/api/me?x= 1"],
    "R7 control characters of the query": ["/api/me?x=%00", "/api/me?x=%0a", "/api/me?%0d=1", "/api/me?x=%C2%85", "/api/me?x=\x01"],
    "R16 line ends of other languages": ["/api/%E2%80%A8", "/api/%E2%80%A9me", "/api/me?x=%E2%80%A8"],
    "R8 not UTF-8": ["/api/%ff", "/api/%C0%AF", "/api/%E2%82", "/api/%ED%A0%80", "/api/%F4%90%80%80", "/api/me?x=%ff", "/api/%80"],
    "R8 raw Unicode": ["/api/é", "/api/\uff0fme", "/api/me?x=é", "/api/\u2028"],
    "bad escapes": ["/api/%", "/api/%2", "/api/%zz", "/api/%u002f", "/api/me?x=%", "/api/me?x=%g0", "/api/%%32", "/api/% 20"],
    "R9 raw fragment": ["/api/me#", "/api/me#x", "/#/api/me", "/api/me?x#y"],
    "raw backslash": ["/api\\me", "\\api\\me", "/api/..\\me", "/api/me?x=\\"],
    "R10 absolute form with tricks": ["http://u:p@evil/api/me", "http://evil@localhost/api/me", "http://evil?/api/me", "http:///api/me", "http://%6cocalhost/api/me", "http://;/api/me", "http://evil/api/../me",
                                      "http://evil/api%2Fme", "ftp://evil/api/me", "file:///api/me", "http:/api/me", "http:api/me",
                                      "javascript://x/api/me"],
    "no path": ["", "*", "?x", "api/me", "localhost:80", "evil.example:443", "./api", "../api", ";x"],
}  # fmt: skip


@pytest.mark.parametrize("target", GOOD)
def test_an_honest_target_passes(target: str) -> None:
    assert not malformed(target)


@pytest.mark.parametrize(("kind", "target"), [(kind, target) for kind, targets in BAD.items() for target in targets])
def test_a_target_that_two_could_read_differently_is_refused(kind: str, target: str) -> None:
    assert malformed(target), kind


PIECES = st.one_of(
    st.sampled_from(["/", "//", "/.", "/..", ".", "..", ";", "?", "&", "=", "#", "\\", "%", "%2F", "%2f", "%2e", "%25", "%5c", "%00", "%0A", "%61", "%C3%A9",
                     "%ff", "%E2%80%A8", "%C2%85", "%7f", "api", "me", "http://", "localhost", "@", ":", "*", "~", "é", " ", "\x00", "%zz", "[", "|"]),
    st.characters(max_codepoint=0x2100),
    st.integers(0, 255).map("%{:02X}".format),
)  # fmt: skip
TARGETS = st.lists(PIECES, max_size=9).map("".join) | st.lists(PIECES, max_size=9).map(lambda parts: "/" + "".join(parts))
DOTS = re.compile(r"(?:^|[/;])\.{1,2}(?:[/;]|$)")


@settings(max_examples=300, deadline=None)
@given(TARGETS)
@example("/a?b/..")
@example("/..?")
@example("/;/..")
@example("//..;")
def test_what_passes_reads_alike_everywhere(target: str) -> None:
    if malformed(target):
        return
    assert target.isascii()
    assert not set(target) & set("\\# \t\r\n\x00")
    text = unquote_to_bytes(target).decode("utf-8")  # raises where it is not UTF-8
    assert not any(ord(char) < 32 or 127 <= ord(char) < 160 or char in "\u2028\u2029" for char in text)
    path = re.sub(r"^https?://[^/?]*", "", target, flags=re.IGNORECASE).partition("?")[0] or "/"
    assert path.startswith("/")
    decoded = unquote_to_bytes(path).decode("utf-8")
    assert decoded.count("/") == path.count("/")
    assert "\\" not in decoded
    assert "%" not in decoded, "a second decoding changes nothing"
    assert not any(segment in (".", "..") for part in path.split("/") for segment in (part, part.partition(";")[0]))


@settings(max_examples=300, deadline=None)
@given(TARGETS)
@example("/" * 500)
@example("/.a/..b/...")
@example("/a?/../.")
def test_the_fast_path_reveals_no_more_than_the_full_one(target: str) -> None:
    if _PLAIN.match(target):
        assert not _malformed_at_length(target)
    assert malformed(target) == _malformed_at_length(target)


@pytest.mark.parametrize(
    "target",
    ["/" * 16_000, "/a" * 8_000, "/" + "." * 16_000, "/a?" + "/" * 16_000 + " ", "/" + "a/." * 5_000 + "\x00", "/%61" * 4_000],
)
def test_long_targets_take_no_time(target: str) -> None:
    """The least CPU time of five attempts: other processes do not count."""
    assert min(timeit.repeat(lambda: malformed(target), timer=time.process_time, number=1, repeat=5)) < 0.05


# This machine ----------------------------------------------------------------------------------------------------------


async def where(request: web.Request) -> web.Response:
    return web.json_response({"local": is_local(request)})


async def who(request: web.Request) -> web.Response:
    return web.json_response({"user": identity_of(request).user_id})


@pytest.fixture
async def port() -> AsyncIterator[int]:
    routes = routes_plugin(web.get("/api/where", public(where)), web.get("/api/who", signed_in(who)))
    async with serving(build_app({"acme": routes}, public_routes=["/api/where"])) as port:
        yield port


@pytest.mark.parametrize(
    ("host", "local"),
    [("localhost", True), ("localhost:8080", True), ("LOCALHOST:1", True), ("127.0.0.1", True), ("127.0.0.1:8080", True), ("[::1]", True),
     ("[::1]:8080", True), ("example.com", False), ("localhost.example.com", False), ("127.0.0.1.nip.io", False), ("localhost.", False),
     ("notlocalhost", False), ("127.0.0.2", False), ("127.1", False), ("2130706433", False), ("0.0.0.0", False), ("::1", False),
     ("localhost:", False), ("localhost:x", False), ("localhost:123456", False), ("localhost@evil", False), ("evil@localhost", False),
     ("localhost/evil", False), ("localhost evil", False), ("localhost,evil", False), ("", False)],
)  # fmt: skip
async def test_only_a_loopback_name_is_local(port: int, host: str, local: bool) -> None:
    for target in ("/api/where",):
        got = await ask(port, "GET", target, host=host)
        if got.status == 400:
            assert not local
            continue
        assert got.json == {"local": local}
    known = await ask(port, "GET", "/api/who", stub(), host=host)
    assert known.status == 200 if local else known.status in (400, 401)


@pytest.mark.parametrize(
    "header",
    [("Forwarded", "for=127.0.0.1"), ("forwarded", ""), ("X-Forwarded-For", "127.0.0.1"), ("x-forwarded-host", "localhost"),
     ("X-FORWARDED-PROTO", "https"), ("X-Forwarded-Anything-New", "1"), ("X-Forwarded-For", "")],
)  # fmt: skip
async def test_behind_a_proxy_nothing_is_local(port: int, header: tuple[str, str]) -> None:
    assert (await ask(port, "GET", "/api/where", header)).json == {"local": False}
    got = await ask(port, "GET", "/api/who", stub(), header)
    assert (got.status, got.json) == (401, {"error": "Unauthorized", "reason": "credential-rejected"})


@pytest.mark.parametrize(("target", "local"), [("http://localhost/api/where", True), ("http://evil.example/api/where", False)])
async def test_an_absolute_target_names_a_host_too(port: int, target: str, local: bool) -> None:
    assert (await ask(port, "GET", target)).json == {"local": local}


async def test_an_absolute_local_target_does_not_hide_the_host_header(port: int) -> None:
    assert (await ask(port, "GET", "http://localhost/api/where", host="evil.example")).json == {"local": False}


class Peer:
    """A transport whose other end is where we say."""

    def __init__(self, peer: object) -> None:
        self.peer = peer

    def get_extra_info(self, name: str, default: object = None) -> object:
        return self.peer if name == "peername" else default


@pytest.mark.parametrize(
    ("peer", "local"),
    [(("127.0.0.1", 5), True), (("127.9.9.9", 5), True), (("::1", 5, 0, 0), True), (("10.0.0.1", 5), False),
     (("192.168.1.1", 5), False), (("fe80::1%eth0", 5, 0, 0), False), (("::ffff:10.0.0.1", 5, 0, 0), False), (("what", 5), False), (None, False),
     ("", False), (b"", False)],
    ids=str,
)  # fmt: skip
def test_only_a_loopback_peer_is_local(peer: object, local: bool) -> None:
    from aiohttp.test_utils import make_mocked_request

    request = make_mocked_request("GET", "/", headers={"Host": LOCAL}, transport=Peer(peer))
    assert is_local(request) is local


def test_without_a_connection_nothing_is_local() -> None:
    from aiohttp.test_utils import make_mocked_request

    request = make_mocked_request("GET", "/", headers={"Host": LOCAL})
    request._transport_peername = ("127.0.0.1", 1)
    request.protocol.transport = None
    assert not is_local(request)
