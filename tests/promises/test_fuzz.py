"""Fuzzing with a budget of time: FUZZ_SECONDS for each target (default 20). Whatever comes, the answer is one of the contract's.

The server runs in a thread of its own, on a real socket; hypothesis makes what is sent and shrinks what breaks it.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import json
import os
import socket
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from urllib.parse import quote

import pytest
from aiohttp import web
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kits import tokens as kit
from kits.app import build_app, stub

from server.app import build
from server.settings.sources import Settings
from tests.conftest import KEYS, TestDatabase

pytestmark = pytest.mark.long
SECONDS = float(os.environ.get("FUZZ_SECONDS", "20"))
EXAMPLES = 300
"""Of one round; at least one round is made, however slow the machine is."""
SLUGS = {
    "credential-rejected", "token-expired", "token-not-active-yet", "token-issuer", "token-audience", "token-authorized-party", "token-type", "token-claims", "session-pending",
    "session-revoked", "key-expired", "key-revoked",
}  # fmt: skip
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False) | st.text(max_size=12)
    | st.sampled_from(["", "user_1", "org:admin", "a,b", "o:x", "1,2", "9" * 40, "-1", "null", "\x00", "٣", "2026-01-01", "org_1", "admin", "[]"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["id", "rol", "per", "fpm", "slg", "x", ""]) | st.text(max_size=4), inner, max_size=4),
    max_leaves=8,
)  # fmt: skip
CLAIMS = ["iss", "sub", "sid", "azp", "aud", "iat", "nbf", "exp", "jti", "v", "o", "fea", "pla", "fva", "sts", "act", "org_id", "org_slug", "org_role", "org_permissions", "role", "scope"]
MEMBERS = ["alg", "typ", "kid", "cat", "cty", "crit", "b64", "enc", "zip", "jku", "jwk", "x5u", "x5c", "iss"]
# What an HTTP header can carry at all, and more.
VALUES = st.text(st.characters(min_codepoint=9, max_codepoint=0x2FF), max_size=60)


@contextlib.contextmanager
def served(app: web.Application) -> Iterator[int]:
    """The application in a thread; gives the port."""
    ready, port, loop = threading.Event(), 0, asyncio.new_event_loop()
    stop = asyncio.Event()

    async def serve() -> None:
        nonlocal port
        runner = web.AppRunner(app, shutdown_timeout=0.5)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        port = runner.addresses[0][1]
        ready.set()
        await stop.wait()
        await runner.cleanup()

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()))
    thread.start()
    assert ready.wait(30)
    try:
        yield port
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(20)
        loop.close()


class Wire:
    """A connection that sends bytes as they are, and opens again when it was closed."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.socket: socket.socket | None = None

    def ask(self, head: bytes, body: bytes = b"") -> tuple[int, Mapping[str, str], bytes]:
        """(status, headers, body); status 0: it hung up without a word."""
        self.socket = self.socket or socket.create_connection(("127.0.0.1", self.port), 10)
        try:
            self.socket.sendall(head + body)
            return self._read()
        except (ConnectionError, EOFError):
            self.close()
            return 0, {}, b""

    def _read(self) -> tuple[int, Mapping[str, str], bytes]:
        assert self.socket is not None
        got = b""
        while b"\r\n\r\n" not in got:
            got += self._some()
        start, _, rest = got.partition(b"\r\n\r\n")
        lines = start.decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
        while len(rest) < int(headers.get("content-length", 0)):
            rest += self._some()
        if headers.get("connection") == "close" or lines[0].startswith("HTTP/1.0"):
            self.close()
        return int(lines[0].split()[1]), headers, rest

    def _some(self) -> bytes:
        assert self.socket is not None
        if not (some := self.socket.recv(65_536)):
            raise EOFError
        return some

    def close(self) -> None:
        if self.socket is not None:
            self.socket.close()
        self.socket = None


def head(method: str, target: str, *lines: str, body: bytes | None = None) -> bytes:
    length = [f"Content-Length: {len(body)}"] if body is not None else []
    return "\r\n".join([f"{method} {target} HTTP/1.1", "Host: localhost", *lines, *length, "", ""]).encode("utf-8", "surrogatepass")


def fuzz(name: str, strategy: st.SearchStrategy[Any], check: Callable[[Any], object]) -> None:
    """Give `check` what the strategy makes until the time is over. What `check` returns is counted."""
    counts: collections.Counter[object] = collections.Counter()
    end = time.monotonic() + SECONDS

    @settings(max_examples=EXAMPLES, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(strategy)
    def some(value: Any) -> None:
        counts[check(value)] += 1

    while time.monotonic() < end:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            some()
    print(f"drill: fuzzing {name}: {SECONDS:.0f} s, {counts.total()} requests, answers {dict(counts.most_common(12))}")
    assert counts.total() >= EXAMPLES
    assert len(counts) > 1, "only one answer: nothing interesting was asked"


@pytest.fixture
def clerk() -> Iterator[Wire]:
    """A server that knows tokens, without a database."""
    given = {"clerk__jwt_key": kit.pem(kit.rsa_key()), "clerk__publishable_key": kit.PUBLISHABLE_KEY, "clerk__authorized_parties": [kit.PARTY], "clerk__audience": ["api"]}
    with served(build_app({}, providers=["clerk"], trusted_proxies=["127.0.0.1"], **given)) as port:
        wire = Wire(port)
        yield wire
        wire.close()


def answered(wire: Wire, token: str) -> object:
    status, headers, body = wire.ask(head("GET", "/api/me", f"Authorization: Bearer {token}"))
    said = json.loads(body)
    if status == 200:
        assert said["user_id"].startswith("user_") or said["user_id"].isprintable()
        assert said["provider"] == "clerk"
        return 200
    assert status == 401, (status, body)
    assert said["reason"] in SLUGS, body
    assert headers["www-authenticate"].startswith("Bearer")
    return said["reason"]


def test_claims(clerk: Wire) -> None:
    """Really signed tokens with anything for claims: 200, or a 401 with a slug."""
    changes = st.dictionaries(st.sampled_from(CLAIMS) | st.text(max_size=6), JSON, min_size=1, max_size=4)
    drops = st.sets(st.sampled_from(CLAIMS), max_size=2)

    def check(value: tuple[dict[str, Any], set[str]]) -> object:
        changed, dropped = value
        claims = {name: one for name, one in {**kit.claims(), **changed}.items() if name not in dropped}
        return answered(clerk, kit.mint(claims))

    fuzz("claims", st.tuples(changes, drops), check)


def test_payloads(clerk: Wire) -> None:
    """Really signed bytes that are hardly JSON."""
    good = json.dumps(kit.claims()).encode()
    cuts = st.tuples(st.integers(0, len(good)), st.integers(0, 12), st.binary(max_size=12) | JSON.map(lambda one: json.dumps(one).encode()))

    def check(edits: list[tuple[int, int, bytes]]) -> object:
        raw = good
        for at, gone, new in edits:
            raw = raw[:at] + new + raw[at + gone :]
        return answered(clerk, kit.raw_token(json.dumps(kit.header()).encode(), raw))

    fuzz("payloads", st.lists(cuts, max_size=3), check)


def test_header_members(clerk: Wire) -> None:
    changes = st.dictionaries(st.sampled_from(MEMBERS) | st.text(max_size=5), JSON | st.sampled_from(["RS256", "RS512", "none", "HS256", "JWT", "at+jwt", "k1", kit.SESSION_CAT]), max_size=4)
    fuzz("header members", changes, lambda changed: answered(clerk, kit.mint(kit.claims(), kit.header(**{**changed, **({"alg": "RS256"} if len(changed) % 2 else {})}))))


def test_credentials_of_any_text(clerk: Wire) -> None:
    token = kit.encode(kit.claims(aud="api"))
    words = st.sampled_from(["Bearer ", "bearer ", "Basic ", token, token[:40], token.split(".")[0], "gp_", "ak_", ".", "=", ",", '"', "e30.e30.e30", "\t", " ", "Stub "])
    lines = st.tuples(st.sampled_from(["Authorization", "X-API-Key", "Cookie", "authorization"]), st.lists(words | VALUES, max_size=5).map("".join))

    def check(value: list[tuple[str, str]]) -> object:
        status, _, body = clerk.ask(head("GET", "/api/me", *(f"{name}: {text}" for name, text in value)))
        assert status in (0, 200, 400, 401), (status, body)
        return status

    fuzz("credentials", st.lists(lines, min_size=1, max_size=3), check)


def test_forwarded_addresses(clerk: Wire) -> None:
    """From a trusted proxy: anything at all for X-Forwarded-For changes nothing of the answer."""
    token = kit.encode(kit.claims(aud="api"))
    parts = st.sampled_from(["127.0.0.1", "::1", "[::1]:80", "203.0.113.9:1", "unknown", "_x", "for=1.2.3.4", "1.2.3.4.5", "::ffff:1.2.3.4", "fe80::1%eth0", ",", ", ", " ", "999.1.1.1", "0x7f.1"])

    def check(values: list[str]) -> object:
        status, _, body = clerk.ask(head("GET", "/api/me", f"Authorization: Bearer {token}", *(f"X-Forwarded-For: {value}" for value in values)))
        assert status in (200, 400, 0), (status, body)
        return status

    fuzz("X-Forwarded-For", st.lists(st.lists(parts | VALUES, max_size=4).map("".join), max_size=4), check)


def test_heads_of_any_bytes(clerk: Wire) -> None:
    """A request of bytes that were changed anywhere: an answer below 500 or the end of the connection, and a server that goes on."""
    good = head("GET", "/api/health?x=1", "Authorization: Bearer x", "Accept: */*", "Content-Length: 0", "Connection: keep-alive")
    odd = st.sampled_from([b"\r\n", b"\n", b"\r", b"\0", b":", b" ", b"\t", b"%", b"..", b"/", b"HTTP/1.1", b"Transfer-Encoding: chunked\r\n", b"\x80", b"\xff", b"Host: x\r\n", b"http://", b"{", b"\r\n\r\n"])
    edits = st.lists(st.tuples(st.integers(0, len(good)), st.integers(0, 8), odd | st.binary(max_size=6)), max_size=4)

    def check(value: list[tuple[int, int, bytes]]) -> object:
        raw = good
        for at, gone, new in value:
            raw = raw[:at] + new + raw[at + gone :]
        clerk.close()
        # The end of the stream is the end of the request: nobody waits for its rest.
        clerk.socket = socket.create_connection(("127.0.0.1", clerk.port), 10)
        clerk.socket.sendall(raw)
        clerk.socket.shutdown(socket.SHUT_WR)
        try:
            status, _, body = clerk._read()
        except (EOFError, ConnectionError):
            status, body = 0, b""
        finally:
            clerk.close()
        assert status < 500, (raw, status, body)
        return status

    fuzz("heads", edits, check)
    assert clerk.ask(head("GET", "/api/health"))[0] == 200


@pytest.fixture
def rows(db: TestDatabase, tmp_path: Any) -> Iterator[Wire]:
    """A server with a database."""
    given = {"env": "test", "ops.port": 0, "providers": ["stub", "api_key"], "database.url": db.url, "database.pool_size": 4, "data_folder": str(tmp_path), "api_key.keys": KEYS}
    with served(build(Settings(environ={}, given=given))) as port:
        wire = Wire(port)
        yield wire
        wire.close()


WHO = ": ".join(stub("fuzzer", org_id="org_1", org_role="org:admin", org_permissions="org:invoices:read org:invoices:create"))


def test_cursors_and_queries(rows: Wire) -> None:
    for number in range(3):
        body = json.dumps({"name": f"n{number}"}).encode()
        assert rows.ask(head("POST", "/api/data", WHO, "Content-Type: application/json", body=body), body)[0] == 201
    link = rows.ask(head("GET", "/api/data?limit=1", WHO))[1]["link"]
    cursor = link.partition("cursor=")[2].partition(">")[0].partition("&")[0]
    pieces = st.sampled_from(["limit=", "cursor=", "&", "=", "1", "200", "201", "-1", "1.0", "٣", cursor, cursor[:-2], cursor[:6], "x", "%00", "%", "+", "[]", "limit", "9" * 30, "1e3", "null"])
    texts = st.lists(pieces | VALUES.map(quote), max_size=6).map("".join) | st.text(max_size=20).map(lambda text: "cursor=" + quote(text))

    def check(value: tuple[str, str]) -> object:
        path, query = value
        status, _, body = rows.ask(head("GET", f"{path}?{query}", WHO))
        assert status in (200, 400, 403, 404, 422), (status, body, query)
        return status

    fuzz("cursors and queries", st.tuples(st.sampled_from(["/api/data", "/api/invoices", "/api/orgs/org_1/data", "/api/keys", "/api/orgs/org_1/audit"]), texts), check)


def test_bodies(rows: Wire) -> None:
    """Anything for a body, and anything for an Idempotency-Key: what is taken is a 201, the rest is the client's mistake."""
    fields = st.dictionaries(st.sampled_from(["name", "payload", "customer", "amount", "currency", "due_on", "memo", "owner", "scopes", "expires_at", "org_role", "id", "user_id"]) | st.text(max_size=3),
                             JSON | st.sampled_from(["12.50", "EUR", "2026-12-31", "user", "1e9", "NaN", "0.001", "99999999999999.99"]), max_size=5)  # fmt: skip
    bases = st.sampled_from([{"name": "x"}, {"name": "x", "payload": {}}, {"customer": "c", "amount": "12.50", "currency": "EUR"}, {}])
    likely = st.tuples(bases, st.dictionaries(st.sampled_from(["payload", "memo", "due_on", "name"]), JSON, max_size=1)).map(lambda pair: pair[0] | pair[1])
    raw = (likely | fields).map(json.dumps).map(str.encode) | st.binary(max_size=30) | JSON.map(json.dumps).map(str.encode)
    keys = st.none() | VALUES | st.sampled_from(["k", '"k"', "k" * 255, "k" * 256, "", " ", "é", "a,b"])
    kinds = st.sampled_from(["application/json", "application/json; charset=utf-8", "text/plain", "application/json; charset=rot13", "APPLICATION/JSON", "application/x+json", ""])

    def check(value: tuple[str, bytes, str | None, str]) -> object:
        path, body, key, kind = value
        lines = [WHO, f"Content-Type: {kind}", *([f"Idempotency-Key: {key}"] if key is not None else [])]
        status, _, said = rows.ask(head("POST", path, *lines, body=body), body)
        assert status in (0, 201, 400, 403, 409, 411, 415, 422), (status, said, value)
        return status

    fuzz("bodies and Idempotency-Keys", st.tuples(st.sampled_from(["/api/data", "/api/invoices", "/api/orgs/org_1/data", "/api/keys"]), raw, keys, kinds), check)
