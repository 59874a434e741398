"""Completes the challenge of a refusal (`WWW-Authenticate`), so that any client learns where to get a token."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from aiohttp import hdrs, web

from ..http.errors import ApiError, Unauthorized
from ..http.resource import Resource
from ..routing.table import RouteRule

_OURS: Final = frozenset({"bearer", "dpop"})
"""The schemes for tokens: RFC 6750 3 and RFC 9449 7.1 have the same parameters."""
_DPOP: Final = re.compile(r'(?:\A|, )DPoP ([a-z_]+="[^"]*"(?:, [a-z_]+="[^"]*")*)', re.IGNORECASE)


class Challenges:
    """Adds `scope` (RFC 6750 3) and `resource_metadata` (RFC 9728 5.1) to the challenges of refusals."""

    def __init__(self, resource: Resource, beside: str) -> None:
        """`beside` are the providers' challenges, which every 401 has after `Bearer`; "" for none."""
        self._resource = resource
        self._beside = f", {beside}" if beside else ""

    def complete(self, request: web.Request, response: web.StreamResponse, rule: RouteRule | None) -> None:
        """Complete the challenge of a 401 or 403. A response without a challenge is left unchanged."""
        challenge = response.headers.get(hdrs.WWW_AUTHENTICATE)
        if challenge is None or challenge.partition(" ")[0].rstrip(",").lower() not in _OURS:
            return
        beside = self._beside if self._beside and challenge.endswith(self._beside) else ""
        metadata = self._resource.metadata_url(request.raw_path.partition("?")[0])
        # A 403 for missing scopes names them itself.
        scopes = rule.access.scopes if response.status == 401 and rule is not None else ()
        response.headers[hdrs.WWW_AUTHENTICATE] = _completed(challenge.removesuffix(beside), scopes, metadata) + beside


def add_providers(request: web.Request, error: ApiError, challenges: str) -> None:
    """Add the providers' challenges to an Unauthorized, unless it has a provider's own.

    If the request's token was sent under the scheme `DPoP`, the challenge of that scheme states the error (RFC 9449 7.1).
    """
    if not challenges:
        return
    if isinstance(error, Unauthorized) and not error.has_own_challenge:
        error.add_challenge(challenges)
    challenge = (error.headers or {}).get(hdrs.WWW_AUTHENTICATE, "")
    if challenge.startswith("Bearer ") and request.headers.get(hdrs.AUTHORIZATION, "").partition(" ")[0].lower() == "dpop":
        error.headers = {**(error.headers or {}), hdrs.WWW_AUTHENTICATE: _under_dpop(challenge, challenges)}


def with_providers(response: web.Response, challenges: str) -> web.Response:
    """Returns the response, with the providers' challenges if its own is a bare `Bearer`: that of a handler's 401."""
    if challenges and response.headers.get(hdrs.WWW_AUTHENTICATE) == "Bearer":
        response.headers[hdrs.WWW_AUTHENTICATE] = f"Bearer, {challenges}"
    return response


def _under_dpop(challenge: str, challenges: str) -> str:
    """Returns the challenge of a refusal under the scheme `DPoP` instead of `Bearer`, if one of `challenges` has it."""
    own = _DPOP.search(challenges)
    if own is None:
        return challenge
    return f"DPoP {challenge.removeprefix('Bearer ').removesuffix(f', {challenges}')}, {own[1]}"


def _completed(challenge: str, scopes: Iterable[str], metadata: str) -> str:
    """Returns a challenge with both parameters. A parameter that a handler has set itself is kept."""
    parameters = []
    if scopes and "scope=" not in challenge:
        parameters.append(f'scope="{" ".join(scopes)}"')
    if "resource_metadata=" not in challenge:
        parameters.append(f'resource_metadata="{metadata}"')
    if not parameters:
        return challenge
    scheme, _, rest = challenge.partition(" ")
    return f"{scheme} {', '.join([*filter(None, [rest]), *parameters])}"
