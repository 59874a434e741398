"""A certified OpenID provider on loopback: npm `oidc-provider` in a process of Node, which signs users in without a browser.

    async with oidc_provider() as provider:                          # or a fixture; skips where it is not installed
        token = await provider.user_token("alice", scope="todos:read")
        token = await provider.client_token(scope="todos:read")
        headers = {"Authorization": f"Bearer {token}"}
        await provider.log_out("alice")                              # tells the clients that have a backchannel_logout_uri

Its clients: `app` (public; code and PKCE, refresh tokens), `service` (client credentials), `api` (a resource server: introspection).
`opaque` and `opaque-service` are `app` and `service` whose access tokens are opaque; those of the others are JWTs. More clients:
`await provider.register(redirect_uris=[...])`, by dynamic registration. The audience of a token is the `resource` asked for.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import re
import secrets
import shutil
import subprocess
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote_plus

import pytest
from aiohttp import ClientSession, CookieJar, encode_basic_auth
from yarl import URL

from .. import ROOT

MODULES = ROOT / ".cache" / "oidc"
RESOURCE = "https://api.acme.example"
SCOPES = ("todos:read", "todos:write", "org:invoices:read")
REDIRECT = "http://127.0.0.1:1/callback"
# Characters that HTTP Basic keeps only if both sides encode them as forms do (RFC 6749 2.3.1).
SECRETS = {"service": "canary-service", "opaque-service": "canary-opaque", "api": "canary: %+&=/~"}
LIFETIME = 300

_PUBLIC = {"token_endpoint_auth_method": "none", "grant_types": ["authorization_code", "refresh_token"], "redirect_uris": [REDIRECT]}
_MACHINE = {"grant_types": ["client_credentials"], "response_types": [], "redirect_uris": []}
CLIENTS: tuple[dict[str, Any], ...] = (
    {"client_id": "app", **_PUBLIC},
    {"client_id": "opaque", **_PUBLIC},
    {"client_id": "service", "client_secret": SECRETS["service"], **_MACHINE},
    {"client_id": "opaque-service", "client_secret": SECRETS["opaque-service"], **_MACHINE},
    {"client_id": "api", "client_secret": SECRETS["api"], **_MACHINE, "grant_types": []},
)


class OidcProvider:
    """A running provider. `issuer` is its URL; `metadata` is its discovery document."""

    def __init__(self, issuer: str, metadata: Mapping[str, Any], session: ClientSession) -> None:
        self.issuer, self.metadata, self._session = issuer, metadata, session
        self._browsers: dict[str, ClientSession] = {}
        self._id_tokens: dict[str, str] = {}

    def browser(self, user: str) -> ClientSession:
        """The cookies of one user at the provider."""
        if user not in self._browsers:
            self._browsers[user] = ClientSession(cookie_jar=CookieJar(unsafe=True))  # unsafe: cookies of an address
        return self._browsers[user]

    async def user_tokens(
        self, user: str, *, client: str = "app", scope: str = "", resource: str | None = RESOURCE,
        headers: Mapping[str, str] | None = None, redirect_uri: str = REDIRECT, secret: str | None = None,
    ) -> dict[str, Any]:  # fmt: skip
        """The token response to `user`, who signs in to `client` (code and PKCE). `headers` go to the token endpoint: a `DPoP`."""
        verifier = secrets.token_urlsafe(32)
        challenge = base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).rstrip(b"=").decode()
        more = {} if resource is None else {"resource": resource}
        asked = {"client_id": client, "response_type": "code", "redirect_uri": redirect_uri, "scope": f"openid {scope}".strip(),
                 "code_challenge": challenge, "code_challenge_method": "S256", "state": "s", "login_hint": user, **more}  # fmt: skip
        answer = await self.follow(user, URL(self.metadata["authorization_endpoint"]).with_query(asked), redirect_uri)
        form = {"grant_type": "authorization_code", "code": answer["code"], "redirect_uri": redirect_uri, "code_verifier": verifier}
        tokens = await self.token_request({**form, **more}, client, secret, headers)
        self._id_tokens[user] = tokens["id_token"]
        return tokens

    async def user_token(self, user: str, **more: Any) -> str:
        """An access token of `user`; the arguments are those of `user_tokens`."""
        return str((await self.user_tokens(user, **more))["access_token"])

    async def client_token(
        self, *, client: str = "service", scope: str = "", resource: str | None = RESOURCE, headers: Mapping[str, str] | None = None
    ) -> str:
        """An access token that `client` gets for itself."""
        form = {"grant_type": "client_credentials", "scope": scope} | ({} if resource is None else {"resource": resource})
        return str((await self.token_request(form, client, SECRETS[client], headers))["access_token"])

    async def follow(self, user: str, url: URL, redirect_uri: str = REDIRECT) -> dict[str, str]:
        """The parameters with which the provider sends `user` back to `redirect_uri`, after the request `url` to sign in.

        The URL needs a `login_hint`: it says who signs in.
        """
        for _ in range(10):
            async with self.browser(user).get(url, allow_redirects=False) as answer:
                assert answer.status in (302, 303), f"{answer.status}: {await answer.text()}"
                url = url.join(URL(answer.headers["Location"]))
            if str(url).startswith(redirect_uri):
                assert "error" not in url.query, dict(url.query)
                return dict(url.query)
        raise AssertionError("the provider redirects without end")

    async def token_request(
        self, form: Mapping[str, str], client: str, secret: str | None = None, headers: Mapping[str, str] | None = None
    ) -> dict[str, Any]:
        """The token endpoint's answer."""
        basic = {} if secret is None else {"Authorization": encode_basic_auth(quote_plus(client), quote_plus(secret))}
        data = {**form, **({"client_id": client} if secret is None else {})}
        async with self._session.post(self.metadata["token_endpoint"], data=data, headers={**basic, **(headers or {})}) as answer:
            said = await answer.json()
            assert answer.status == 200, said
            return dict(said)

    async def register(self, **metadata: Any) -> dict[str, Any]:
        """A new client by dynamic registration (RFC 7591): its metadata, `client_id` among them."""
        given = {"token_endpoint_auth_method": "none", "redirect_uris": [REDIRECT], **metadata}
        async with self._session.post(self.metadata["registration_endpoint"], json=given) as answer:
            said = await answer.json()
            assert answer.status == 201, said
            return dict(said)

    async def revoke(self, token: str, client: str = "app") -> None:
        """Revoke an opaque token (RFC 7009), as the public client `client`."""
        async with self._session.post(self.metadata["revocation_endpoint"], data={"token": token, "client_id": client}) as answer:
            assert answer.status == 200, await answer.text()

    async def log_out(self, user: str) -> None:
        """Sign `user` out of the provider: it sends logout tokens to the clients that the user signed in to."""
        browser = self.browser(user)
        asked = URL(self.metadata["end_session_endpoint"]).with_query(id_token_hint=self._id_tokens.pop(user))
        async with browser.get(asked) as answer:
            page = await answer.text()
            assert answer.status == 200, page
        form = {name: match[1] for name in ("xsrf",) if (match := re.search(rf'name="{name}" value="([^"]+)"', page))}
        confirm = self.metadata["end_session_endpoint"] + "/confirm"
        async with browser.post(confirm, data={**form, "logout": "yes"}, allow_redirects=False) as answer:
            assert answer.status in (302, 303), await answer.text()

    async def close(self) -> None:
        for browser in self._browsers.values():
            await browser.close()


@asynccontextmanager
async def oidc_provider(
    *, clients: tuple[dict[str, Any], ...] = (), scopes: tuple[str, ...] = SCOPES, seconds: int = LIFETIME, port: int = 0,
    resource: str = RESOURCE, opaque: tuple[str, ...] = (), algorithm: str = "RS256", claims: Mapping[str, Any] | None = None,
    dpop_nonces: bool = False,
) -> AsyncIterator[OidcProvider]:  # fmt: skip
    """Start a provider; it is stopped at the end.

    clients      more clients (RFC 7591 metadata with a `client_id`), or others in the place of CLIENTS with the same id
    scopes       the scopes that every resource has; seconds: the lifetime of access tokens
    resource     the resource where a request names none
    opaque       more client ids or resources whose tokens are opaque
    claims       further claims of every access token
    dpop_nonces  whether its token endpoint demands nonces in DPoP proofs
    """
    node = shutil.which("node")
    if node is None or not (MODULES / "node_modules" / "oidc-provider").exists():
        pytest.skip("oidc-provider is not installed: make client-tools")
    listed = {client["client_id"]: client for client in (*CLIENTS, *clients)}
    options = {
        "clients": list(listed.values()), "scopes": scopes, "seconds": seconds, "port": port, "resource": resource,
        "opaque": ["opaque", "opaque-service", *opaque], "algorithm": algorithm, "claims": claims or {}, "dpop_nonces": dpop_nonces,
    }  # fmt: skip
    program = Path(__file__).parent / "provider.mjs"
    process = await asyncio.create_subprocess_exec(
        node, "--no-warnings", str(program), str(MODULES), json.dumps(options), stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        line = await asyncio.wait_for(process.stdout.readline(), 60)
        assert line, "oidc-provider did not start"
        issuer = json.loads(line)["issuer"]
        async with ClientSession() as session:
            async with session.get(f"{issuer}/.well-known/openid-configuration") as answer:
                metadata = await answer.json()
            provider = OidcProvider(issuer, metadata, session)
            try:
                yield provider
            finally:
                await provider.close()
    finally:
        process.stdin.close()
        try:
            await asyncio.wait_for(process.wait(), 5)
        except TimeoutError:
            process.kill()
            await process.wait()
