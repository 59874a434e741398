"""Fetches an issuer's key set and its discovery document, which names the issuer's endpoints (OpenID Connect Discovery 1.0)."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, Final

from server import House, Unavailable

from ..jwt.strict_json import Malformed, read_object
from ..jwt.texts import is_loopback_http, is_safe_url, retry_after
from .settings import IssuerSettings

_WELL_KNOWN: Final = "/.well-known/openid-configuration"
_FETCH_SECONDS: Final = 5.0
_MOST_NAMED: Final = 200  # characters of another service's text that go into the log
_JSON: Final = {"Accept": "application/json"}


class Discovery:
    """What is fetched from one issuer: its keys, and where it introspects tokens (RFC 8414 2) if `introspection` is set."""

    def __init__(self, house: House, settings: IssuerSettings) -> None:
        self._house, self._settings = house, settings
        introspection = settings.introspection
        self._wants_endpoint = introspection is not None and introspection.endpoint is None
        self.introspection_endpoint = introspection.endpoint if introspection is not None else None
        """The URL, as soon as it is known; an outage does not make it unknown again."""
        self._problem = "it has not been discovered yet"

    def not_ready(self) -> str | None:
        """Returns why no opaque token can be introspected now, or None."""
        if not self._wants_endpoint or self.introspection_endpoint is not None:
            return None
        return f"the introspection endpoint of {self._settings.issuer}: {self._problem}"

    async def keys(self) -> bytes:
        """Returns the key set (JSON), from `jwks_uri` or the discovered URL, within 5 seconds. Raises Unavailable."""
        try:
            async with asyncio.timeout(_FETCH_SECONDS):
                return await _get(self._house, await self._jwks_uri())
        except TimeoutError:
            raise Unavailable(f"{self._settings.issuer} took longer than {_FETCH_SECONDS:g} seconds") from None

    async def _jwks_uri(self) -> str:
        configured = self._settings.jwks_uri
        if configured is not None:
            if self._wants_endpoint:
                await self._try_endpoint()
            return configured
        document = await _document(self._house, self._settings.issuer)
        if self._wants_endpoint:
            self._learn_endpoint(document)
        return _url_in(document, "jwks_uri", self._settings.issuer)

    async def _try_endpoint(self) -> None:
        """Look for the endpoint alone: without it the keys are as good as ever."""
        try:
            self._learn_endpoint(await _document(self._house, self._settings.issuer))
        except Unavailable as outage:
            self._problem = str(outage)

    def _learn_endpoint(self, document: Mapping[str, Any]) -> None:
        try:
            self.introspection_endpoint = _url_in(document, "introspection_endpoint", self._settings.issuer)
        except Unavailable as mistake:
            self._problem = str(mistake)


async def _document(house: House, issuer: str) -> Mapping[str, Any]:
    """Returns the issuer's discovery document (OpenID Connect Discovery 1.0, 4). Raises Unavailable."""
    url = issuer.rstrip("/") + _WELL_KNOWN  # 4.1: a final slash of the issuer is removed
    try:
        document = read_object(await _get(house, url), "discovery document")
    except Malformed as error:
        raise Unavailable(f"{url}: {error.detail}") from None
    if document.get("issuer") != issuer:  # 4.3: exactly; otherwise one issuer could impersonate another
        raise Unavailable(f"{url}: the document is another issuer's: {_named(document.get('issuer'), issuer)}")
    return document


def _named(named: object, issuer: str) -> str:
    """Returns the issuer that a document names, and what follows from it for the settings."""
    if not isinstance(named, str) or not 0 < len(named) <= _MOST_NAMED:
        return "it names none"
    if not is_safe_url(named) or "{" in named:  # Entra ID's documents for any tenant have a placeholder
        return f"it names {named!r}, which is no issuer of tokens"
    return f"it names {named!r}; if that is yours, write it exactly so in place of {issuer!r}"


def _url_in(document: Mapping[str, Any], name: str, issuer: str) -> str:
    """Returns the URL that is the document's member `name`. Raises Unavailable for one that must not be used.

    Only the operator may name a URL of this machine for a remote issuer (in the settings), never the issuer.
    """
    url = document.get(name)
    if not isinstance(url, str) or not is_safe_url(url) or (is_loopback_http(url) and not is_loopback_http(issuer)):
        raise Unavailable(f"{issuer}: its {name} is not a URL that starts with https://")
    return url


async def _get(house: House, url: str) -> bytes:
    answer = await house.fetch(url, headers=_JSON, timeout=_FETCH_SECONDS)
    if answer.status != 200:  # redirects are refused too: their target could choose the keys
        raise Unavailable(f"{url} answered {answer.status}", retry_after=retry_after(answer.headers))
    return answer.body
