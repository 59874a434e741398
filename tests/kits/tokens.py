"""Real parts for tests of token verification: key pairs, tokens of any bytes, a JWKS service, a house, requests."""

from __future__ import annotations

import asyncio
import base64
import json
import re
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from functools import cache
from pathlib import Path
from typing import Any

import aiohttp
import jwt
from aiohttp import web
from aiohttp.test_utils import TestServer, make_mocked_request
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm
from multidict import CIMultiDict

from server import Answer, Unavailable
from server.rate_limits.counters import Counters
from server.rate_limits.first_uses import FirstUses

ISSUER = "https://clerk.example.com"
PUBLISHABLE_KEY = "pk_live_Y2xlcmsuZXhhbXBsZS5jb20k"
SECRET_KEY = "sk_live_0123456789abcdefTOPSECRET"
PARTY = "https://app.example.com"
SESSION_CAT = "cl_B7d4PD111AAA"
HASHES = {"256": hashes.SHA256(), "384": hashes.SHA384(), "512": hashes.SHA512()}


@cache
def rsa_key(name: str = "k1", bits: int = 2048) -> rsa.RSAPrivateKey:
    """A key pair, made once per name and size."""
    return rsa.generate_private_key(public_exponent=65537, key_size=bits)


def pem(key: Any) -> str:
    """The public half as PEM."""
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


def jwk(key: Any, kid: str | None = "k1", **members: Any) -> dict[str, Any]:
    """The public half as a member of a key set; `members` replace or add, None takes away."""
    kinds = {
        rsa.RSAPrivateKey: RSAAlgorithm,
        ec.EllipticCurvePrivateKey: ECAlgorithm,
        ed25519.Ed25519PrivateKey: OKPAlgorithm,
    }
    kind = next(algorithm for key_type, algorithm in kinds.items() if isinstance(key, key_type))
    made = {**kind.to_jwk(key.public_key(), as_dict=True), "use": "sig", "kid": kid, **members}
    made.pop("key_ops", None) if "key_ops" not in members else None
    return {name: value for name, value in made.items() if value is not None}


def b64(raw: bytes) -> str:
    """Unpadded base64url."""
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def sign(key: Any, message: bytes, alg: str = "RS256") -> bytes:
    """A signature of `message`; PS* with PSS, everything else with PKCS#1 v1.5."""
    digest = HASHES[alg[2:]] if alg[2:] in HASHES else hashes.SHA256()
    if alg.startswith("PS"):
        return key.sign(message, padding.PSS(padding.MGF1(digest), padding.PSS.DIGEST_LENGTH), digest)
    return key.sign(message, padding.PKCS1v15(), digest)


def raw_token(header: bytes, payload: bytes, key: Any = None, alg: str = "RS256") -> str:
    """A token of these very bytes, really signed."""
    message = f"{b64(header)}.{b64(payload)}"
    return f"{message}.{b64(sign(key or rsa_key(), message.encode(), alg))}"


def header(**members: Any) -> dict[str, Any]:
    """A session token's header; `members` replace or add, DROP takes away."""
    return _without({"alg": "RS256", "typ": "JWT", "kid": "k1", "cat": SESSION_CAT, **members})


def claims(now: float | None = None, **members: Any) -> dict[str, Any]:
    """A session token's claims at `now`; `members` replace or add, DROP takes away."""
    at = int(time.time() if now is None else now)
    base = {"iss": ISSUER, "sub": "user_1", "sid": "sess_1", "azp": PARTY, "iat": at, "nbf": at - 10, "exp": at + 60}
    return _without({**base, **members})


DROP: Any = object()


def _without(members: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in members.items() if value is not DROP}


def mint(payload: Mapping[str, Any], head: Mapping[str, Any] | None = None, key: Any = None) -> str:
    """A really signed token; the algorithm of the signature follows the header where it can."""
    head = header() if head is None else head
    alg = head.get("alg")
    use = alg if isinstance(alg, str) and alg[:2] in ("RS", "PS") else "RS256"
    return raw_token(json.dumps(head).encode(), json.dumps(payload).encode(), key, use)


def encode(payload: Mapping[str, Any], key: Any = None, kid: str = "k1") -> str:
    """A token as PyJWT makes it."""
    return jwt.encode(dict(payload), key or rsa_key(), "RS256", headers={"kid": kid, "cat": SESSION_CAT})


class Jwks:
    """A key set's service on loopback. Set `members` (or `raw`), `status`, `delay`; read `fetches`, `seen`."""

    def __init__(self, *members: Any) -> None:
        self.members: list[Any] = list(members)
        self.raw: bytes | None = None
        self.status = 200
        self.headers: dict[str, str] = {}
        self.delay = 0.0
        self.fetches = 0
        self.seen: list[Mapping[str, str]] = []
        self.url = ""

    async def answer(self, request: web.Request) -> web.Response:
        """Serve any path."""
        self.fetches += 1
        self.seen.append({"path": request.path, **request.headers})
        await asyncio.sleep(self.delay)
        body = self.raw if self.raw is not None else json.dumps({"keys": self.members}).encode()
        return web.Response(body=body, status=self.status, headers=self.headers, content_type="application/json")


@asynccontextmanager
async def serve(*members: Any) -> AsyncIterator[Jwks]:
    """A running JWKS service; `url` is its origin."""
    service = Jwks(*members)
    app = web.Application()
    app.router.add_get("/{path:.*}", service.answer)
    server = TestServer(app)
    await server.start_server()
    service.url = str(server.make_url("")).rstrip("/")
    try:
        yield service
    finally:
        await server.close()


class TestHouse:
    """A house with a real HTTP client and no database."""

    __test__ = False

    def __init__(self, folder: Path, env: str = "test", issuers: Mapping[str, str] | None = None) -> None:
        self.env, self.folder, self.issuers = env, folder, dict(issuers or {})
        self.revocations: set[tuple[str, str]] = set()
        self.client: aiohttp.ClientSession | None = None
        self.resource_url: str | None = None
        self.first_use = FirstUses(Counters()).first

    async def fetch(
        self,
        url: str,
        *,
        method: str = "GET",
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
        max_bytes: int = 1_048_576,
        timeout: float = 5.0,
    ) -> Answer:
        """One exchange, as the real house makes it."""
        self.client = self.client or aiohttp.ClientSession()
        try:
            async with (
                asyncio.timeout(timeout),
                self.client.request(method, url, headers=headers, data=body, allow_redirects=False) as got,
            ):
                content = await got.content.read(max_bytes + 1)
                while len(content) <= max_bytes and (more := await got.content.read(65536)):
                    content += more
                if len(content) > max_bytes:
                    raise Unavailable("the answer is too large")
                return Answer(got.status, content, dict(got.headers))
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise Unavailable(type(error).__name__) from None

    async def query(self, function: str, *args: Any) -> list[Mapping[str, Any]]:
        """There is no database here."""
        raise Unavailable("no database")

    def revoked(self, kind: str, subject: str, issued_at: float | None) -> bool:
        """As the test says."""
        return (kind, subject) in self.revocations

    def issuer_of(self, issuer: str) -> str | None:
        """As the test says."""
        return self.issuers.get(issuer)

    def has_issuers_beside(self, provider: str) -> bool:
        """As the test says."""
        return any(owner != provider for owner in self.issuers.values())

    async def close(self) -> None:
        """Close the client."""
        if self.client is not None:
            await self.client.close()


class _Transport:
    def __init__(self, peer: object) -> None:
        self.peer = peer

    def get_extra_info(self, name: str, default: object = None) -> object:
        return self.peer if name == "peername" else default


def request(*authorization: str, peer: str = "127.0.0.1", host: str = "127.0.0.1:8080", **headers: str) -> web.Request:
    """A request object with these `Authorization` headers, from this peer."""
    pairs = [("Host", host), *(("Authorization", value) for value in authorization)]
    pairs += [(name.replace("_", "-"), value) for name, value in headers.items()]
    return make_mocked_request("GET", "/api/me", headers=CIMultiDict(pairs), transport=_Transport((peer, 4711)))


def without_values(detail: str) -> str:
    """The detail of a refusal without the values that it compares: `: 'a', not 'b'`."""
    return re.sub(r": .+, not .+", "", detail)


def bearer(token: str, **more: Any) -> web.Request:
    """A request with this token."""
    return request(f"Bearer {token}", **more)
