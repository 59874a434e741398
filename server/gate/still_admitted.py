"""Checks whether a caller's access has ended while a request waited for its turn or for its body."""

from __future__ import annotations

from typing import Any

from aiohttp import web

from ..auth.identity import IDENTITY, Identity
from ..auth.revocation import Revocations
from ..http.calls_tools import NESTED
from ..http.errors import Unauthorized
from ..http.streaming import TICKET
from .identification import Identification


class StillAdmitted:
    """The part of admission that is repeated: the revocations and, for an API key, its provider."""

    def __init__(self, revocations: Revocations, identification: Identification) -> None:
        self._revocations = revocations
        self._recall, self._identify = identification.recall, identification.identify

    async def check(self, request: web.Request, identity: Identity) -> None:
        """Raise Unauthorized if access has ended since the request was admitted; Unavailable if that is unknown."""
        if self._revocations.denies(identity):
            raise Unauthorized("session-revoked")
        # Only its provider knows whether a key has ended. A request with a ticket, or of a tool call, contains no key.
        if identity.token_type != "api_key" or TICKET in request or NESTED in request:
            return
        if self._recall(request) is not identity:
            now = await self._identify(request, 1)
            if _rights(now) != _rights(identity):
                raise Unauthorized("session-revoked")

    async def check_late_body(self, request: web.Request) -> None:
        """As `check`, for a request whose body arrived after its head. Does nothing without a known caller."""
        identity = request.get(IDENTITY)
        if identity is not None:
            await self.check(request, identity)


def _rights(identity: Identity) -> tuple[Any, ...]:
    return identity.user_id, identity.org_id, identity.org_role, identity.org_permissions, identity.scopes
