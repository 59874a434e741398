"""An OpenID Connect issuer on loopback. joserfc makes its keys and signs its tokens: nothing of ours has a part in them."""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from functools import cache
from typing import Any

from aiohttp import web
from aiohttp.test_utils import TestServer
from joserfc import jws
from joserfc.jwk import ECKey, OKPKey, RSAKey

AUDIENCE = "https://api.acme.example"
CURVES = {"ES256": "P-256", "ES384": "P-384", "ES512": "P-521"}
ALGORITHMS = ["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA", "Ed25519"]


class _Drop:
    def __repr__(self) -> str:
        return "absent"


DROP: Any = _Drop()


def key(alg: str, name: str = "own") -> Any:
    """A private key for `alg`, made once per name."""
    return _key(alg, name)


@cache
def _key(alg: str, name: str) -> Any:
    if alg.startswith("ES"):
        return ECKey.generate_key(CURVES[alg])
    return OKPKey.generate_key("Ed25519") if alg in ("EdDSA", "Ed25519") else RSAKey.generate_key(2048)


def sign(head: Mapping[str, Any], payload: str | bytes, signer: Any) -> str:
    """A token of this very payload."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # joserfc calls EdDSA deprecated (RFC 9864); issuers use it
        return str(jws.serialize_compact(dict(head), payload, signer, algorithms=[head["alg"]]))


def without(members: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in members.items() if value is not DROP}


class Issuer:
    """Set `keys` (kid: key), `odd` (members as they are), `document`, `status`, `location`, `now`; read `seen`.

    Its introspection endpoint answers as `introspect` says; by default about what `opaque` has made.
    """

    def __init__(self) -> None:
        self.keys: dict[str, Any] = {alg: key(alg) for alg in ("RS256", "ES256")}
        self.odd: list[Any] = []
        self.document: dict[str, Any] = {}
        self.raw: bytes | None = None
        self.status = 200
        self.location = ""
        self.redirected = ("openid-configuration", "keys")
        self.seen: list[str] = []
        self.url = ""
        self.now: int | None = None
        self.tokens: dict[str, Any] = {}
        self.introspect: Callable[[web.Request, str], Any] = self.about
        self.asked: list[tuple[str, Mapping[str, str]]] = []

    async def answer(self, request: web.Request) -> web.Response:
        self.seen.append(request.path)
        redirected = bool(self.location) and request.path.endswith(self.redirected)
        # A redirect has the very body that is asked for: it must not be read either.
        status, headers = (302, {"Location": self.location}) if redirected else (self.status, {})
        if request.path.endswith("/.well-known/openid-configuration"):
            base = self.url.rstrip("/")
            usual = {"issuer": self.url, "jwks_uri": f"{base}/keys", "introspection_endpoint": f"{base}/introspect"}
            said = without({**usual, **self.document})
            return web.json_response(said, status=status, headers=headers)
        members = [{**one.as_dict(private=False), "kid": kid, "use": "sig"} for kid, one in self.keys.items()]
        body = self.raw if self.raw is not None else json.dumps({"keys": [*self.odd, *members]}).encode()
        return web.Response(body=body, status=status, headers=headers, content_type="application/json")

    def about(self, request: web.Request, token: str) -> Any:
        """The answer of RFC 7662 about a token: `tokens` has the members of those that are active."""
        return {"active": True, **self.tokens[token]} if token in self.tokens else {"active": False}

    async def introspected(self, request: web.Request) -> web.StreamResponse:
        """`introspect(request, token)` returns a response, an awaitable for one, or the JSON; `asked` has (token, headers)."""
        form = await request.post()
        self.asked.append((str(form["token"]), dict(request.headers)))
        said = self.introspect(request, str(form["token"]))
        said = await said if isinstance(said, Awaitable) else said
        return said if isinstance(said, web.StreamResponse) else web.json_response(said)

    def opaque(self, token: str, **members: Any) -> str:
        """Make `token` an active opaque token; `members` replace or add to a usual answer, DROP takes away."""
        usual = {"client_id": "app", "token_type": "Bearer", "scope": "todos:read"}
        self.tokens[token] = without({**self.claims(), **usual, **members})
        return token

    def claims(self, **members: Any) -> dict[str, Any]:
        """An access token's claims (RFC 9068 2.2); `members` replace or add, DROP takes away."""
        now = int(time.time()) if self.now is None else self.now
        usual = {"iss": self.url, "aud": AUDIENCE, "sub": "alice", "client_id": "app", "jti": "1", "iat": now, "exp": now + 300}
        return without({**usual, **members})

    def token(self, head: Mapping[str, Any] | None = None, signer: Any = None, **members: Any) -> str:
        """A signed access token. `head` replaces or adds to the header; the kid is the algorithm's name."""
        alg = (head or {}).get("alg", "RS256")
        header = without({"alg": alg, "kid": alg, "typ": "at+jwt", **(head or {})})
        return sign(header, json.dumps(self.claims(**members)), signer or self.keys.get(header.get("kid", ""), key(alg)))


@asynccontextmanager
async def serve(path: str = "", port: int = 0) -> AsyncIterator[Issuer]:
    """A running issuer; its identifier is the origin and `path`."""
    issuer = Issuer()
    app = web.Application()
    app.router.add_get("/{path:.*}", issuer.answer)
    app.router.add_post(path + "/introspect", issuer.introspected)
    server = TestServer(app, port=port or None)
    await server.start_server()
    issuer.url = str(server.make_url("")).rstrip("/") + path
    try:
        yield issuer
    finally:
        await server.close()
