"""An opaque token whose issuer is asked (RFC 7662), known and new. Part of locks.py.

The issuer answers at once and costs nothing here: the price is this server's own. Add the issuer's time to a new token's.
"""

from __future__ import annotations

import json
import secrets
import time
from typing import Any

from aiohttp import web
from aiohttp.test_utils import make_mocked_request
from inproc import cheapest
from lock_dpop import Keys, asked
from stage import Stage

from providers.oidc.provider import OidcProvider
from server import Answer

_ISSUER, _AUDIENCE = "https://login.example.com", "https://api.example.com"


class _House:
    """What the provider needs of the server. `said` is the issuer's answer about every token."""

    env, resource_url = "test", None

    def __init__(self, said: bytes) -> None:
        self._said, self._keys = said, Keys().set.encode()

    async def fetch(self, url: str, **more: Any) -> Answer:
        return Answer(200, self._said if more.get("method") == "POST" else self._keys, {})


async def prices(stage: Stage) -> list[dict[str, Any]]:
    """The provider's answer, for a token that is known and for a new one, in CPU microseconds."""
    repetitions, batch = min(stage.args.repetitions, 20), max(1, stage.args.batch // 10)
    now = int(time.time())
    about = {"active": True, "iss": _ISSUER, "aud": _AUDIENCE, "sub": "alice", "client_id": "app", "scope": "data:read"}
    said = json.dumps(about | {"token_type": "Bearer", "iat": now, "exp": now + 3600}).encode()

    introspection = {"client_id": "api", "client_secret": "bench", "cache_seconds": 60, "endpoint": f"{_ISSUER}/introspect"}
    table = {"issuer": _ISSUER, "audience": _AUDIENCE, "jwks_uri": f"{_ISSUER}/keys", "introspection": introspection}
    provider = OidcProvider({"issuers": [table]})
    house: Any = _House(said)
    await provider.open(house)
    try:
        name = "an opaque token, its issuer's time apart"
        one = _request()
        steps = {f"{name}: known": asked(provider, [one]), f"{name}: new": asked(provider, (_request() for _ in range(repetitions * batch)))}
        us = await cheapest(steps, repetitions, batch)
    finally:
        await provider.close()
    return [{"lock": f"(the provider for {name})", "server_us": value[0], "postgres_us": None} for name, value in us.items()]


def _request() -> web.Request:
    return make_mocked_request("GET", "/api/me", headers={"Authorization": f"Bearer {secrets.token_urlsafe(32)}"})
