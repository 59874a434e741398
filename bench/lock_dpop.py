"""A token that is bound to a key, with a proof for each request, beside a bearer token of the same issuer. Part of locks.py."""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
import secrets
import time
from collections.abc import Iterable
from typing import Any

import jwt
from aiohttp import web
from aiohttp.test_utils import make_mocked_request
from cryptography.hazmat.primitives.asymmetric import ec
from inproc import Step, cheapest
from jwt.algorithms import ECAlgorithm
from stage import Stage

from providers.oidc.dpop_proof import thumbprint_of
from providers.oidc.provider import OidcProvider
from server import Answer
from server.rate_limits.counters import Counters
from server.rate_limits.first_uses import FirstUses

_ISSUER, _AUDIENCE, _API = "https://login.example.com", "https://api.example.com", "https://api.example.com"


class Keys:
    """The issuer's key and the client's, both ES256, and what they sign."""

    def __init__(self) -> None:
        self.issuer, self.client = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
        public = ECAlgorithm.to_jwk(self.client.public_key(), as_dict=True)
        self.jwk = {name: public[name] for name in ("kty", "crv", "x", "y")}
        self.set = json.dumps({"keys": [ECAlgorithm.to_jwk(self.issuer.public_key(), as_dict=True) | {"kid": "k", "use": "sig"}]})

    def token(self, *, bound: bool) -> str:
        now = int(time.time())
        claims = {"iss": _ISSUER, "aud": _AUDIENCE, "sub": "alice", "jti": secrets.token_hex(8), "iat": now, "exp": now + 3600}
        more = {"cnf": {"jkt": thumbprint_of(self.jwk)}} if bound else {}
        return jwt.encode(claims | more, self.issuer, "ES256", headers={"typ": "at+jwt", "kid": "k"})

    def request(self, token: str, *, bound: bool) -> web.Request:
        headers = {"Authorization": f"{'DPoP' if bound else 'Bearer'} {token}"}
        if bound:
            ath = base64.urlsafe_b64encode(hashlib.sha256(token.encode()).digest()).rstrip(b"=").decode()
            proof = {"jti": secrets.token_hex(8), "htm": "GET", "htu": f"{_API}/api/me", "iat": int(time.time()), "ath": ath}
            headers["DPoP"] = jwt.encode(proof, self.client, "ES256", headers={"typ": "dpop+jwt", "jwk": self.jwk})
        return make_mocked_request("GET", "/api/me", headers=headers)


class _House:
    """What the provider needs of the server."""

    env, resource_url = "test", _API

    def __init__(self, keys: str) -> None:
        self._answer = Answer(200, keys.encode(), {})
        self.first_use = FirstUses(Counters()).first

    async def fetch(self, url: str, **more: Any) -> Answer:
        return self._answer


async def prices(stage: Stage) -> list[dict[str, Any]]:
    """The provider's answer, for a token that is known and for a new one, in CPU microseconds."""
    keys = Keys()
    repetitions, batch = min(stage.args.repetitions, 20), max(1, stage.args.batch // 10)
    total = repetitions * batch

    house: Any = _House(keys.set)
    table = {"issuer": _ISSUER, "audience": _AUDIENCE, "jwks_uri": f"{_ISSUER}/keys", "dpop": "accept", "dpop_seconds": 300}
    provider = OidcProvider({"issuers": [table]})
    await provider.open(house)
    try:
        steps = {}
        for bound in (False, True):
            name = "a token that is bound to a key, with its proof (DPoP)" if bound else "a bearer token of another issuer"
            token = keys.token(bound=bound)
            steps[f"{name}: known"] = asked(provider, (keys.request(token, bound=bound) for _ in range(total + 1)))
            fresh = (keys.request(keys.token(bound=bound), bound=bound) for _ in range(total))
            steps[f"{name}: new"] = asked(provider, fresh)
        us = await cheapest(steps, repetitions, batch)
    finally:
        await provider.close()
    return [{"lock": f"(the provider for {name})", "server_us": value[0], "postgres_us": None} for name, value in us.items()]


def asked(provider: OidcProvider, requests: Iterable[web.Request]) -> Step:
    """A step that identifies the next request as the gate does: from memory, else by verifying."""
    turn = itertools.cycle(list(requests))

    async def step() -> None:
        request = next(turn)
        if provider.recall(request) is None:
            assert await provider.authenticate(request) is not None

    return step
