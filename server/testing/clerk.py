"""A Clerk on loopback for tests: signed session tokens, the key set that verifies them, and the Backend API.

async with LoopbackClerk() as clerk:
    app = build(Settings(environ={}, given={"env": "test", **clerk.settings()}))
    headers = {"Authorization": f"Bearer {clerk.token('user_1', org_id='org_1', org_role='org:admin')}"}
"""

from __future__ import annotations

import asyncio
import hashlib
import secrets
import time
from base64 import b64encode, urlsafe_b64encode
from collections import Counter
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any, Final

import jwt
from aiohttp import web
from aiohttp.test_utils import TestServer
from cryptography.hazmat.primitives.asymmetric import rsa
from jwt.algorithms import RSAAlgorithm

KID: Final = "ins_loopback"
CATEGORY: Final = "cl_B7d4PD111AAA"
M2M_CATEGORY: Final = "cl_B7d4PD333AAA"
SECRET_KEY: Final = "sk_test_loopback"
_KINDS: Final[Mapping[str, tuple[str, str, str, str]]] = {
    "api_key": ("ak_", "api_key", "/api_keys/verify", "secret"),
    "m2m_token": ("mt_", "machine_to_machine_token", "/m2m_tokens/verify", "token"),
    "oauth_token": ("oat_", "clerk_idp_oauth_access_token", "/oauth_applications/access_tokens/verify", "access_token"),
}


class LoopbackClerk:
    """A development instance of Clerk, as a server that verifies tokens sees it.

    mode           how the Backend API answers about machine tokens: `ok`, `500`, `429`, `slow`, `garbage`, `bad key`
    slow_seconds   how long it takes in the mode `slow`
    retry_after    the header Retry-After in the mode `429`
    calls          how many requests each path got
    seen           (headers, body) of each request about a machine token
    """

    def __init__(self, *, party: str = "http://localhost:3000", key: rsa.RSAPrivateKey | None = None) -> None:
        """`party` is the origin in the claim `azp` of tokens; `key` signs them (default: one key per process)."""
        self.party = party
        self.mode = "ok"
        self.slow_seconds = 6.0
        self.retry_after = "7"
        self.calls: Counter[str] = Counter()
        self.seen: list[tuple[Mapping[str, str], Any]] = []
        self.answers: dict[str, dict[str, Any]] = {}
        self.secret_key = SECRET_KEY
        self.machine_secret_key: str | None = None
        self.key = key if key is not None else _usual_key()
        self._server: TestServer | None = None

    async def __aenter__(self) -> LoopbackClerk:
        app = web.Application()
        for path in ("/v1/jwks", "/.well-known/jwks.json"):
            app.router.add_get(path, self._jwks)
        for kind in _KINDS:
            app.router.add_post(_KINDS[kind][2], self._verify)
        self._server = TestServer(app, host="127.0.0.1")
        await self._server.start_server(shutdown_timeout=0.1)
        return self

    async def __aexit__(self, *error: object) -> None:
        if self._server is not None:
            await self._server.close()

    @property
    def url(self) -> str:
        """The origin of its Frontend and Backend API, and the issuer of its tokens."""
        assert self._server is not None, "use it in `async with`"
        return str(self._server.make_url("")).rstrip("/")

    @property
    def publishable_key(self) -> str:
        """`pk_test_` and the host in base64, as Clerk writes it."""
        host = self.url.removeprefix("http://")
        return "pk_test_" + b64encode(f"{host}$".encode()).decode().rstrip("=")

    def settings(self) -> dict[str, Any]:
        """The settings with which a server trusts this instance, by their names in the file."""
        given: dict[str, Any] = {
            "providers": ["clerk"],
            "clerk.secret_key": self.secret_key,
            "clerk.publishable_key": self.publishable_key,
            "clerk.api_url": self.url,
            "clerk.authorized_parties": [self.party],
        }
        return given | ({"clerk.machine_secret_key": self.machine_secret_key} if self.machine_secret_key else {})

    def token(
        self,
        user_id: str = "user_1",
        *,
        org_id: str | None = None,
        org_role: str = "org:member",
        org_permissions: Iterable[str] = (),
        ttl: float = 3600,
        now: float | None = None,
        category: str = CATEGORY,
        **claims: Any,
    ) -> str:
        """A signed session token (Clerk's version 2). `ttl` is in seconds, `now` in Unix seconds.

        `claims` replace or add claims (`fva=[0, -1]`, `sts="pending"`); None removes one.
        """
        at = int(time.time() if now is None else now)
        payload: dict[str, Any] = {"iss": self.url, "azp": self.party, "sub": user_id, "sid": f"sess_{user_id}", "v": 2}
        payload |= {"iat": at, "nbf": at - 10, "exp": at + int(ttl), "jti": secrets.token_hex(10)}
        if org_id is not None:
            payload["fea"], packed = _packed(org_permissions)
            payload["o"] = {"id": org_id, "rol": org_role.removeprefix("org:"), **packed}
        payload = {name: value for name, value in (payload | claims).items() if value is not None}
        return jwt.encode(payload, self.key, algorithm="RS256", headers={"kid": KID, "cat": category})

    def cookies(self, token: str, *, client_uat: int = 1, suffixed: bool = True) -> dict[str, str]:
        """The `Cookie` header of a browser with this session.

        `client_uat` is in Unix seconds; with `suffixed` each cookie is sent under Clerk's suffixed name too.
        """
        digest = hashlib.sha1(self.publishable_key.encode(), usedforsecurity=False).digest()
        names = ["", "_" + urlsafe_b64encode(digest).decode()[:8]] if suffixed else [""]
        values = {"__session": token, "__client_uat": str(client_uat), "__clerk_db_jwt": "dvb_1"}
        return {"Cookie": "; ".join(f"{name}{end}={value}" for end in names for name, value in values.items())}

    def machine_token(self, subject: str, /, kind: str = "api_key", **changes: Any) -> str:
        """A new opaque token that the Backend API confirms for `subject`. `kind`: `api_key`, `m2m_token` or `oauth_token`.

        `changes` replace or add members of the API's answer; None removes one.
        """
        prefix, object_, _path, _member = _KINDS[kind]
        token, at = prefix + secrets.token_hex(24), int(time.time() * 1000)
        answer: dict[str, Any] = {"object": object_, "id": prefix + secrets.token_hex(16), "subject": subject, "scopes": []}
        answer |= {"revoked": False, "revocation_reason": None, "expired": False, "expiration": None}
        answer |= {"created_at": at, "updated_at": at, **changes}
        self.answers[token] = {name: value for name, value in answer.items() if changes.get(name, "") is not None}
        return token

    def machine_jwt(
        self,
        subject: str,
        /,
        kind: str = "oauth_token",
        *,
        ttl: float = 3600,
        now: float | None = None,
        header: Mapping[str, Any] | None = None,
        **claims: Any,
    ) -> str:
        """A signed machine token that is a JWT. `kind`: `oauth_token` (of a user) or `m2m_token` (of a machine, `mch_...`).

        `ttl` is in seconds, `now` in Unix seconds. `claims` replace or add claims (`org_id="org_1"`, `scope="todos:read"`), and
        `header` replaces or adds members of the header; None removes one.
        """
        at, oauth = int(time.time() if now is None else now), kind == "oauth_token"
        payload: dict[str, Any] = {"iss": self.url, "sub": subject, "iat": at, "nbf": at, "exp": at + int(ttl)}
        payload |= {"jti": f"oat_{secrets.token_hex(16)}", "client_id": "client_1"} if oauth else {"jti": secrets.token_hex(16)}
        head: dict[str, Any] = {"kid": KID, **({"typ": "at+jwt"} if oauth else {"cat": M2M_CATEGORY}), **(header or {})}
        payload = {name: value for name, value in (payload | claims).items() if value is not None}
        return jwt.encode(payload, self.key, algorithm="RS256", headers={k: v for k, v in head.items() if v is not None})

    async def _jwks(self, request: web.Request) -> web.Response:
        self.calls[request.path] += 1
        public = RSAAlgorithm.to_jwk(self.key.public_key(), as_dict=True)
        members = {name: public[name] for name in ("kty", "n", "e")}
        return web.json_response({"keys": [{**members, "kid": KID, "use": "sig", "alg": "RS256"}]})

    async def _verify(self, request: web.Request) -> web.Response:
        self.calls[request.path] += 1
        body = await request.json()
        self.seen.append((dict(request.headers), body))
        if (trouble := await self._trouble()) is not None:
            return trouble
        member = next(kind[3] for kind in _KINDS.values() if kind[2] == request.path)
        machine = request.path == _KINDS["m2m_token"][2] and self.machine_secret_key
        if request.headers.get("Authorization") != f"Bearer {machine or self.secret_key}":
            return _error(401, "clerk_key_invalid")
        if list(body) != [member]:
            return _error(400, "form_param_unknown")
        answer = self.answers.get(body[member])
        return _error(404, "resource_not_found") if answer is None else web.json_response(answer)

    async def _trouble(self) -> web.Response | None:
        if self.mode == "slow":
            await asyncio.sleep(self.slow_seconds)
        if self.mode == "garbage":
            return web.Response(text="<html>oops", content_type="text/html")
        if self.mode == "429":
            return _error(429, "too_many_requests", {"Retry-After": self.retry_after})
        if self.mode == "bad key":
            return _error(401, "clerk_key_invalid")
        return _error(int(self.mode), "internal_clerk_error") if self.mode.isdigit() else None


@cache
def _usual_key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


def _error(status: int, code: str, headers: Mapping[str, str] | None = None) -> web.Response:
    errors = [{"code": code, "message": code, "long_message": code}]
    return web.json_response({"errors": errors, "clerk_trace_id": "t_1"}, status=status, headers=headers)


def _packed(permissions: Iterable[str]) -> tuple[str | None, dict[str, str]]:
    """The claim `fea`, and the members `per` and `fpm` of `o`, for permissions such as `org:invoices:read`."""
    pairs = dict.fromkeys(tuple(permission.removeprefix("org:").rsplit(":", 1)) for permission in permissions)
    if not pairs:
        return None, {}
    features, verbs = list(dict.fromkeys(pair[0] for pair in pairs)), list(dict.fromkeys(pair[1] for pair in pairs))
    masks = (sum(1 << verbs.index(verb) for feature, verb in pairs if feature == name) for name in features)
    return ",".join(f"o:{name}" for name in features), {"per": ",".join(verbs), "fpm": ",".join(map(str, masks))}
