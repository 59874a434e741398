"""Forged tokens at a running server that knows a Clerk and another issuer: one answer for all of them, and no key set asked.

Each corpus has a control that is taken: a test that fails for the wrong reason looks like one that holds.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import itertools
import json
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from kits import forgeries as forgery
from kits import oidc as oidc_kit
from kits import tokens
from kits.app import LOCAL, Client, Reply, build_app, serving
from kits.oidc import AUDIENCE, Issuer

from providers.api_key.key_format import make
from providers.api_key.provider import ApiKeyProvider
from providers.jwt.jwks import BURST
from server import CredentialRejected, Unavailable
from server.testing.clerk import CATEGORY, KID, LoopbackClerk

REJECTED = b'{"error": "Unauthorized", "reason": "credential-rejected"}'
# RFC 7518 6.2.1.1: the curve of ES256.
P256_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
P256_PRIME = 0xFFFFFFFF00000001000000000000000000000000FFFFFFFFFFFFFFFFFFFFFFFF


def b64(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def segment(members: Any) -> str:
    return b64(json.dumps(members).encode())


@dataclass
class World:
    """A server, its two issuers, and a good token of each."""

    port: int
    clerk: LoopbackClerk
    issuer: Issuer

    def __post_init__(self) -> None:
        self.session, self.rs256, self.es256 = self.clerk.token(), self.issuer.token(), self.issuer.token({"alg": "ES256"})
        self.fetched = self.fetches()

    def fetches(self) -> int:
        """How often a key set was asked for."""
        return sum(number for path, number in self.clerk.calls.items() if path.endswith("jwks")) + self.issuer.seen.count("/keys")

    async def answers(self, tokens: Iterable[str]) -> list[Reply]:
        async with Client(self.port) as client:
            return [await client.ask("GET", "/api/me", [("Host", LOCAL), ("Authorization", f"Bearer {token}")]) for token in tokens]

    async def refuses(self, forged: Mapping[str, str], *controls: str) -> None:
        """All of these get the one answer, to the byte, and cost no fetch; the controls are taken before and after."""
        for reply in await self.answers(controls):
            assert reply.status == 200, "the control is refused: the corpus proves nothing"
        replies = await self.answers(forged.values())
        for (name, token), reply in zip(forged.items(), replies, strict=True):
            assert (reply.status, reply.body) == (401, REJECTED), (name, reply.status, reply.body)
            assert token not in reply.raw.decode("latin-1"), name
        heads = {tuple(sorted((name, value) for name, value in reply.headers.items() if name not in ("date", "x-request-id"))) for reply in replies}
        assert len(heads) == 1, "the refusals differ"
        assert dict(next(iter(heads)))["www-authenticate"] == 'Bearer error="invalid_token"'
        assert {reply.status for reply in await self.answers(controls)} <= {200}
        assert self.fetches() == self.fetched, "a stranger made the server ask for keys"


@pytest.fixture
async def world() -> AsyncIterator[World]:
    async with running() as made:
        yield made


@asynccontextmanager
async def running() -> AsyncIterator[World]:
    async with LoopbackClerk() as clerk, oidc_kit.serve() as issuer:
        issuers = [{"issuer": issuer.url, "audience": AUDIENCE, "namespace": "acme"}]
        given = {key.replace(".", "__"): value for key, value in clerk.settings().items()}
        app = build_app({}, **{**given, "providers": ["clerk", "oidc"], "plugins": [], "oidc__issuers": issuers})
        async with serving(app) as port:
            yield World(port, clerk, issuer)


async def test_malformed_paddings_are_no_signature(world: World) -> None:
    head, payload, signature = world.session.split(".")
    message = f"{head}.{payload}".encode()
    size = len(base64.urlsafe_b64decode(signature + "=="))
    right = forgery.padded(forgery.info(digest=hashlib.sha256(message).digest()), size)
    control = f"{head}.{payload}.{b64(forgery.signature_of(right, world.clerk.key))}"
    assert control == world.session, "our own signing is the same as the library's"
    wrong = {name: forgery.signature_of(em, world.clerk.key) for name, em in forgery.encodings(message, size).items()}
    wrong |= forgery.odd_numbers(base64.urlsafe_b64decode(signature + "=="), world.clerk.key)
    assert len(set(wrong.values())) >= 150
    await world.refuses({name: f"{head}.{payload}.{b64(raw)}" for name, raw in wrong.items()}, control)
    print(f"drill: paddings: {len(set(wrong.values()))} malformed PKCS#1 v1.5 signatures, all refused alike, the control taken")


async def test_no_point_is_a_signature(world: World) -> None:
    """CVE-2022-21449 and its kin, at an issuer that signs with ES256."""
    head, payload, signature = world.es256.split(".")
    good = base64.urlsafe_b64decode(signature + "==")
    wrong = forgery.no_points(P256_ORDER, P256_PRIME, 32, good)
    assert len(wrong) >= 80
    forged = {name: f"{head}.{payload}.{b64(raw)}" for name, raw in wrong.items()}
    for name in ("0", "n"):  # the same under the header of a token that is Clerk's, and of an RSA key of the issuer
        raw = {"0": bytes(64), "n": P256_ORDER.to_bytes(32, "big") * 2}[name]
        for kid in ("RS256", "ES256"):
            forged[f"{name} under {kid}"] = f"{segment({'alg': 'ES256', 'kid': kid, 'typ': 'at+jwt'})}.{payload}.{b64(raw)}"
        forged[f"{name} of Clerk"] = f"{segment({'alg': 'ES256', 'kid': KID, 'cat': CATEGORY})}.{world.session.split('.')[1]}.{b64(raw)}"
    await world.refuses(forged, world.es256, world.session)


def spellings(key: Any, kid: str) -> dict[str, bytes]:
    """What a verifier that confuses kinds of keys could take for an HMAC secret: the public key, in every spelling."""
    pem, der = key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo), key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    made = {"PEM": pem, "DER": der, "nothing": b"", "NUL": b"\0", "kid": kid.encode(), "DER in base64": base64.b64encode(der), "DER in base64url": b64(der).encode(),
            "PEM in base64": base64.b64encode(pem), "PEM without lines": pem.replace(b"\n", b""), "PEM with escapes": pem.replace(b"\n", b"\\n"), "its hash": hashlib.sha256(der).digest()}  # fmt: skip
    if hasattr(key.public_numbers(), "n"):
        numbers = key.public_numbers()
        made |= {"PKCS#1 PEM": key.public_bytes(Encoding.PEM, PublicFormat.PKCS1), "PKCS#1 DER": key.public_bytes(Encoding.DER, PublicFormat.PKCS1)}
        made |= {"SSH": key.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)}
        modulus = numbers.n.to_bytes(256, "big")
        jwk = {"kty": "RSA", "n": b64(modulus), "e": "AQAB", "kid": kid, "use": "sig", "alg": "RS256"}
        bare = {name: jwk[name] for name in ("e", "kty", "n")}  # RFC 7638 3
        made |= {"n": modulus, "n in base64url": b64(modulus).encode(), "n as number": str(numbers.n).encode()}
        made |= {"JWK": json.dumps(jwk).encode(), "JWK tight": json.dumps(jwk, separators=(",", ":")).encode(), "key set": json.dumps({"keys": [jwk]}).encode(),
                 "JWK of RFC 7638": json.dumps(bare, separators=(",", ":")).encode(), "key set tight": json.dumps({"keys": [jwk]}, separators=(",", ":")).encode()}  # fmt: skip
    ends = {"": lambda raw: raw, " without its last line end": lambda raw: raw.rstrip(b"\n"), " with CRLF": lambda raw: raw.replace(b"\n", b"\r\n"), " after a blank": lambda raw: b" " + raw,
            " after a BOM": lambda raw: b"\xef\xbb\xbf" + raw, " with a blank": lambda raw: raw + b" ", " with a line end": lambda raw: raw + b"\n", " in UTF-16": lambda raw: raw.decode("latin-1").encode("utf-16")}  # fmt: skip
    return {f"{name}{end}": change(raw) for name, raw in made.items() for end, change in ends.items()}


async def test_a_public_key_is_no_secret(world: World) -> None:
    forged = {}
    session, access = world.session.split(".")[1], world.rs256.split(".")[1]
    keys = [(world.clerk.key.public_key(), KID, {"cat": CATEGORY, "typ": "JWT"}, session)]
    issuers = [(oidc_kit.key(alg).public_key, alg) for alg in ("RS256", "ES256")]
    keys += [(key, kid, {"typ": "at+jwt"}, access) for key, kid in issuers]
    for key, kid, head, payload in keys:
        for (name, secret), bits in itertools.product(spellings(key, kid).items(), ("256", "384", "512")):
            message = f"{segment({'alg': f'HS{bits}', 'kid': kid, **head})}.{payload}"
            forged[f"HS{bits} {kid} {name}"] = f"{message}.{b64(hmac.digest(secret, message.encode(), f'sha{bits}'))}"
    assert len(forged) >= 400
    await world.refuses(forged, world.session, world.rs256, world.es256)
    print(f"drill: confusion: {len(forged)} HMACs over spellings of the public keys, all refused alike")


async def test_no_spelling_of_none_is_an_algorithm(world: World) -> None:
    names: list[Any] = ["none", "None", "NONE", "nOnE", "", " none", "none ", "none\x00", "non\u0435", None, ["none"], ["RS256"], {"alg": "RS256"}, True, 0, 256, "rs256", "Rs256", "RS256 ", "RS256\n",
                        "RS-256", "RSA-SHA256", "HS256", "PS256", "RS1", "RSA1_5", "A256GCM", "dir", "EdDSA", "ES256K", "ES521", "RS256,none", "*"]  # fmt: skip
    forged = {}
    for alg, (kid, head, token) in itertools.product(names, ((KID, {"cat": CATEGORY}, world.session), ("RS256", {"typ": "at+jwt"}, world.rs256))):
        _, payload, signature = token.split(".")
        for kind, end in (("its signature", f".{signature}"), ("no signature", "."), ("no dot", ""), ("a byte", ".AA"), ("zeros", f".{b64(bytes(256))}")):
            forged[f"{alg!r} {kid} with {kind}"] = f"{segment({'alg': alg, 'kid': kid, **head})}.{payload}{end}"
    for kid, token in ((KID, world.session), ("RS256", world.rs256)):
        _, payload, signature = token.split(".")
        forged[f"no alg {kid}"] = f"{segment({'kid': kid})}.{payload}.{signature}"
    await world.refuses(forged, world.session, world.rs256)


async def test_keys_that_a_header_brings_are_never_looked_at(world: World) -> None:
    """`jwk`, `x5c`, `jku`, `x5u` (RFC 7515 4.1): no URL is fetched, and an attacker's key is never used. With a valid signature they are ignored."""
    called: list[str] = []

    async def listen(request: web.Request) -> web.Response:
        called.append(request.path)
        return web.json_response({"keys": []})

    app = web.Application()
    app.router.add_get("/{path:.*}", listen)
    attacker = tokens.rsa_key("attacker")
    issuers_own = oidc_kit.key("RS256").private_key
    async with serving(app) as port:
        url = f"http://127.0.0.1:{port}/keys"
        brought: dict[str, Any] = {"jku": url, "x5u": url, "jwk": tokens.jwk(attacker), "x5c": [base64.b64encode(b"x").decode()], "x5t": "AA", "iss": url, "epk": {}}
        forged, good = {}, []
        for name, value in brought.items():
            access = json.dumps({"alg": "RS256", "kid": "RS256", "typ": "at+jwt", name: value}).encode()
            session = json.dumps({"alg": "RS256", "kid": KID, "cat": CATEGORY, name: value}).encode()
            forged[name] = tokens.raw_token(access, payload_of(world.rs256), attacker)
            forged[f"{name} of Clerk"] = tokens.raw_token(session, payload_of(world.session), attacker)
            good += [tokens.raw_token(access, payload_of(world.rs256), issuers_own), tokens.raw_token(session, payload_of(world.session), world.clerk.key)]
        await world.refuses(forged, world.session, *good)
    assert called == []


def payload_of(token: str) -> bytes:
    return base64.urlsafe_b64decode(token.split(".")[1] + "==")


async def test_other_shapes_of_a_token(world: World) -> None:
    """JSON serialisations (RFC 7515 7.2), JWE (RFC 7516), nested and cut tokens, and encodings with two readings."""
    head, payload, signature = world.session.split(".")
    flat = {"protected": head, "payload": payload, "signature": signature}
    texts = {
        "flattened": json.dumps(flat, separators=(",", ":")), "general": json.dumps({"payload": payload, "signatures": [{"protected": head, "signature": signature}]}, separators=(",", ":")),
        "a JWE": ".".join((segment({"alg": "RSA-OAEP", "enc": "A256GCM", "zip": "DEF", "kid": KID}), "AA", "AA", "AA", "AA")), "a JWE of dir": ".".join((segment({"alg": "dir", "enc": "A256GCM"}), "", "AA", "AA", "AA")),
        "two segments": f"{head}.{payload}", "four": f"{head}.{payload}.{signature}.{signature}", "a dot more": f"{world.session}.", "a dot in front": f".{world.session}", "no payload": f"{head}..{signature}",
        "padded": f"{world.session}=", "padded twice": f"{world.session}==", "padded within": f"{head}=.{payload}.{signature}", "standard alphabet": f"{head}.{payload}.+/{signature[2:]}",
        "percent": world.session.replace(".", "%2E"), "nested": f"{segment({'alg': 'RS256', 'kid': KID, 'cty': 'JWT'})}.{b64(world.session.encode())}.{signature}", "quoted": f'"{world.session}"',
        "reversed": f"{signature}.{payload}.{head}", "twice": f"{world.session}{world.session}", "an element too many": f"{world.session},{world.session}", "upper case": world.session.upper(),
        "a template's": world.clerk.token(category="cl_B7d4PD222AAA")[:-5] + "AAAAA", "an mch_": f"{head}.{b64(payload_of(world.session).replace(b'user_1', b'mch_12'))}.{signature}",
        "b64 false": f"{segment({'alg': 'RS256', 'kid': KID, 'b64': False, 'crit': ['b64']})}.{payload}.{signature}", "UTF-16": f"{head}.{b64(payload_of(world.session).decode().encode('utf-16'))}.{signature}",
        "15 KiB": f"{head}.{'A' * 15_000}.{signature}", "deep": f"{b64(b'[' * 5000)}.{payload}.{signature}", "deep within": f"{head}.{b64(b'{' + b'[' * 5000)}.{signature}", "a BOM": f"{b64(bytes([0xEF, 0xBB, 0xBF]) + b'{}')}.{payload}.AA",
    }  # fmt: skip
    await world.refuses(texts, world.session)


async def test_odd_key_ids_are_only_names(world: World) -> None:
    """A kid is looked up and nothing else: no file, no query, no address. Unknown ones cost the budget of fetches, and beyond it they are a 503."""
    _, payload, signature = world.session.split(".")
    kids: list[Any] = ["", 1, None, ["x"], {}, True, "x" * 10_000, "../../../../dev/null", "/dev/null", "' OR '1'='1", "x\x00", "\ud800", "%00", "http://127.0.0.1:1/x", "file:///etc/passwd", "|id", "${x}",
                       "KID", f"{KID} ", f" {KID}", f"{KID}\x00", KID.upper(), "__proto__", "é"]  # fmt: skip
    tokens = [f"{segment({'alg': 'RS256', 'kid': kid, 'cat': CATEGORY})}.{payload}.{signature}" for kid in kids]
    tokens += [f"{segment({'alg': 'RS256', 'kid': f'k{n}', 'cat': CATEGORY})}.{payload}.{signature}" for n in range(500)]
    answers = await asyncio.gather(*(world.answers(tokens[start::8]) for start in range(8)))
    told = {(reply.status, reply.body) for replies in answers for reply in replies}
    assert told == {(401, REJECTED), (503, b'{"error": "Service Unavailable"}')}
    assert world.fetches() <= world.fetched + BURST + 2  # two more in half a minute, on a slow machine
    assert [reply.status for reply in await world.answers([world.session])] == [200]
    print(f"drill: unknown key ids: {len(tokens)} at once, {world.fetches() - world.fetched} fetches of the key set, known keys unaffected")


class Lookups:
    """The database as the provider of API keys sees it: it finds no key, and counts the calls."""

    def __init__(self) -> None:
        self.asked: Counter[str] = Counter()
        self.env, self.folder = "test", Path()

    async def query(self, function: str, *args: Any) -> list[Mapping[str, Any]]:
        self.asked[function] += 1
        return []

    def revoked(self, *args: Any) -> bool:
        return False


async def test_unknown_and_wrong_keys_cost_the_same() -> None:
    """One lookup by the digest of the whole key: nothing in an API key is looked up by itself, so nothing of it can be found out alone."""
    provider, house = ApiKeyProvider({"keys": (), "scopes": ()}), Lookups()
    await provider.open(house)  # type: ignore[arg-type]
    before, costs = house.asked.copy(), []
    known = make("test").text
    for key in (known, make("test").text, known[:-8] + make("test").text[-8:], make("live").text):
        house.asked.clear()
        try:
            await provider.authenticate(requested(key))
        except (CredentialRejected, Unavailable) as refused:
            costs.append((type(refused).__name__, getattr(refused, "reason", None), dict(house.asked)))
    await provider.close()
    assert costs[0] == costs[1] == ("CredentialRejected", "credential-rejected", {"key_by_hash": 1}), (before, costs)
    # What does not even fit together asks nobody; the answer is the same.
    assert {cost[:2] for cost in costs} == {("CredentialRejected", "credential-rejected")}


def requested(key: str) -> web.Request:
    return tokens.request(X_API_Key=key)


@pytest.mark.parametrize(
    ("lines", "status"),
    [
        (["Authorization: Bearer {t}"], 200), (["authorization: bearer {t}"], 200), (["AUTHORIZATION: BEARER {t}"], 200), (["Authorization: Bearer {t}", "Authorization: Bearer {t}"], 400),
        (["Authorization: Bearer {t}", "X-API-Key: x"], 400), (["X-API-Key: x", "X-API-Key: x"], 400), (["Authorization: Bearer {t}, Bearer {t}"], 401), (["Authorization: Bearer  {t}"], 401),
        (["Authorization: Bearer\t{t}"], 401), (["Authorization: {t}"], 401), (["Authorization: Basic {t}"], 401), (["Authorization: Token {t}"], 401), (["Authorization:Bearer {t}"], 200),
        (["Authorization: Bearer {t} "], 200), (["Authorization: Bearer {t} x"], 401), (["Authorization_: Bearer {t}"], 401), (["Proxy-Authorization: Bearer {t}"], 401), (["X-Authorization: Bearer {t}"], 401),
        (["Authorization: Bearer"], 401), (["Authorization: "], 401), (["Cookie: Authorization=Bearer {t}"], 401), (["X-HTTP-Authorization: Bearer {t}"], 401), (["Authorization: JWT {t}"], 401),
        (["Authorization: Bearer {t}", "Cookie: __session=garbage"], 200), (["Authorization: Bearer garbage", "Cookie: __session={t}; __client_uat=1"], 401),
        (["Sec-WebSocket-Protocol: bearer, {t}"], 401),
    ],
    ids=str,
)  # fmt: skip
async def test_where_a_token_is_read(lines: list[str], status: int, world: World) -> None:
    async with Client(world.port) as client:
        head = "\r\n".join(["GET /api/me HTTP/1.1", "Host: localhost", *(line.format(t=world.session) for line in lines), "", ""])
        await client.send(head.encode())
        assert (await client.reply()).status == status


async def test_a_token_in_the_query_is_not_read(world: World) -> None:
    async with Client(world.port) as client:
        for query in (f"token={world.session}", f"access_token={world.session}", f"authorization=Bearer+{world.session}", f"__session={world.session}"):
            assert (await client.ask("GET", f"/api/me?{query}")).status == 401
