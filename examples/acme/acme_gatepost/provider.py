"""`Authorization: Bearer acme_...`: an opaque token, of which only Acme knows whose it is."""

from __future__ import annotations

import hashlib
import json
import time
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from aiohttp import web

from server import CredentialRejected, House, Identity, Unavailable

PREFIX = "acme_"
LONGEST_TOKEN = 512
MOST_REMEMBERED = 10_000


class AcmeProvider:
    """Asks Acme once, and remembers the answer for a while under a hash of the token."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        for needed in ("url", "secret"):
            if not settings[needed]:
                raise ValueError(f"the setting acme.{needed} is missing")
        self._url: str = settings["url"]
        self._secret: str = settings["secret"]
        self._seconds: int = settings["cache_seconds"]
        self._house: House | None = None
        self._known: OrderedDict[bytes, tuple[float, Identity]] = OrderedDict()

    async def open(self, house: House) -> None:
        """Raises ValueError in production for a URL over which the tokens would travel in the clear."""
        if house.env == "production" and urlsplit(self._url).scheme != "https":
            raise ValueError("acme.url must begin with https:// in production")
        self._house = house

    async def authenticate(self, request: web.Request) -> Identity | None:
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not token.startswith(PREFIX):
            return None
        if len(token) > LONGEST_TOKEN:
            raise CredentialRejected(detail="longer than any token of Acme's")
        digest = hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()
        expires, identity = self._known.get(digest, (0.0, None))
        if identity is None or expires <= time.monotonic():
            identity = await self._ask(token)
            self._remember(digest, identity)
        return identity

    async def _ask(self, token: str) -> Identity:
        """Whose token it is. Raises CredentialRejected, Unavailable."""
        if self._house is None:
            raise Unavailable("the provider is not open")
        answer = await self._house.fetch(
            self._url,
            method="POST",
            headers={"Authorization": f"Bearer {self._secret}", "Content-Type": "application/json"},
            body=json.dumps({"token": token}).encode(),
            max_bytes=16_384,
            timeout=3,
        )
        if answer.status == 404:
            raise CredentialRejected(detail="Acme does not know the token")
        if answer.status != 200:
            raise Unavailable(f"Acme answered with status {answer.status}")
        try:
            said = json.loads(answer.body)
            # Acme's ids have a space of their own: no other provider can speak for the same user.
            return Identity(
                provider="acme",
                user_id=f"acme:{said['user']}",
                org_id=f"acme:{said['organisation']}" if said.get("organisation") else None,
                org_role=said.get("role"),
            )
        except (ValueError, KeyError, TypeError, AttributeError):
            raise Unavailable("Acme's answer cannot be read") from None

    def _remember(self, digest: bytes, identity: Identity) -> None:
        self._known[digest] = (time.monotonic() + self._seconds, identity)
        self._known.move_to_end(digest)
        if len(self._known) > MOST_REMEMBERED:
            self._known.popitem(last=False)
