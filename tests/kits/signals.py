"""An issuer's side of sign-outs: logout tokens and security events, signed by another library, and how they are sent."""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import Mapping
from typing import Any

from kits import oidc
from kits.oidc import AUDIENCE, Issuer
from tests.conftest import Client, Got

LOGOUT, SSF = "/api/webhooks/oidc", "/api/webhooks/ssf"
EVENT = "http://schemas.openid.net/event/backchannel-logout"
SCHEMAS = "https://schemas.openid.net/secevent/"
REVOKED = SCHEMAS + "caep/event-type/session-revoked"
DISABLED = SCHEMAS + "risc/event-type/account-disabled"
VERIFICATION = SCHEMAS + "ssf/event-type/verification"


def table(*issuers: Issuer, **members: Any) -> dict[str, Any]:
    """The settings of a server with these issuers, in the namespaces n0, n1, ...; `members` are those of all of them."""
    several = [{"issuer": one.url, "audience": AUDIENCE, "namespace": f"n{at}", **members} for at, one in enumerate(issuers)]
    return {"providers": ["oidc", "api_key"], "oidc.issuers": several}


def _signed(issuer: Issuer, typ: Any, head: Mapping[str, Any] | None, signer: Any, claims: Mapping[str, Any]) -> str:
    header = oidc.without({"alg": "RS256", "kid": "RS256", "typ": typ, **(head or {})})
    own = issuer.keys.get(header.get("kid", ""), oidc.key(header["alg"]))
    return oidc.sign(header, json.dumps(oidc.without(claims)), signer or own)


def logout_token(issuer: Issuer, head: Mapping[str, Any] | None = None, signer: Any = None, **members: Any) -> str:
    """A logout token of `alice`'s; `members` replace or add claims, DROP removes one."""
    now = int(time.time())
    usual = {"iss": issuer.url, "aud": AUDIENCE, "sub": "alice", "iat": now, "exp": now + 120, "jti": secrets.token_hex(8)}
    return _signed(issuer, "logout+jwt", head, signer, {**usual, "events": {EVENT: {}}, **members})


def security_event(
    issuer: Issuer, events: Mapping[str, Any] | None = None, head: Mapping[str, Any] | None = None, signer: Any = None, **members: Any
) -> str:
    """A security event token about `alice`; without `events`, all her sessions are revoked."""
    usual = {"iss": issuer.url, "aud": AUDIENCE, "iat": int(time.time()), "jti": secrets.token_hex(8), "sub_id": iss_sub(issuer)}
    return _signed(issuer, "secevent+jwt", head, signer, {**usual, "events": {REVOKED: {}} if events is None else events, **members})


def iss_sub(issuer: Issuer, sub: str = "alice") -> dict[str, str]:
    return {"format": "iss_sub", "iss": issuer.url, "sub": sub}


async def log_out(client: Client, token: str, **headers: str) -> Got:
    return await client.post(LOGOUT, headers, data={"logout_token": token})


async def push(client: Client, token: str, **headers: str) -> Got:
    return await client.post(SSF, {"Content-Type": "application/secevent+jwt", **headers}, data=token.encode())


async def asked(client: Client, token: str) -> int | str:
    """200, or the reason of the refusal."""
    got = await client.get("/api/me", {"Authorization": f"Bearer {token}"})
    return got.json().get("reason", got.status)


async def ends(client: Client, *tokens: str, seconds: float = 10) -> float:
    """Wait until all these tokens are refused; how long it took."""
    begun = time.monotonic()
    async with asyncio.timeout(seconds):
        for token in tokens:
            while (said := await asked(client, token)) == 200:
                await asyncio.sleep(0.02)
            assert said == "session-revoked"
    return time.monotonic() - begun
