"""Decides which issuer, if any, is asked about a token that is not a JWT."""

from __future__ import annotations

import json
import re
from binascii import Error as NotBase64
from collections.abc import Iterable
from typing import Final

from ..jwt import jws
from ..jwt.strict_json import Malformed
from .introspection_settings import API_KEY_PREFIX
from .issuer import Issuer

# RFC 7235 2.1: a token68, which is what a bearer token is (RFC 6750 2.1).
_SHAPE: Final = re.compile(r"[A-Za-z0-9._~+/-]{1,4096}={0,2}")
# Credentials of other providers, and this server's tickets for live answers (server/streams/tickets.py). An issuer sees one of
# these only if its `prefix` says that it is the issuer's.
_FOREIGN: Final = re.compile(r"ak_|mt_|oat_|st_[A-Za-z0-9_-]{43}\Z")


class OpaqueTokens:
    """The issuers that introspect opaque tokens, by the prefixes of their tokens."""

    def __init__(self, issuers: Iterable[Issuer]) -> None:
        listed = [(one.settings.introspection.prefix, one) for one in issuers if one.settings.introspection is not None]
        self._issuers = sorted(listed, key=lambda pair: -len(pair[0]))

    def __bool__(self) -> bool:
        """Does any issuer introspect tokens?"""
        return bool(self._issuers)

    def issuer_of(self, token: str) -> Issuer | None:
        """Returns the issuer with the longest matching prefix; None for a token that no issuer is asked about.

        That is whatever is no bearer token, an API key, a ticket, another provider's token, and anything with the header of a
        JWT: a JWT is verified here or not at all.
        """
        if not _SHAPE.fullmatch(token) or token.startswith(API_KEY_PREFIX) or is_structured(token):
            return None
        for prefix, issuer in self._issuers:
            if token.startswith(prefix):
                return issuer if prefix or not _FOREIGN.match(token) else None
        return None


def is_structured(token: str) -> bool:
    """Does it look like a JWS or a JWE: segments, of which the first is a JSON object?"""
    head, dot, _ = token.partition(".")
    if not dot or not head:
        return False
    try:
        return isinstance(json.loads(jws.decode(head)), dict)
    except (Malformed, NotBase64, ValueError, RecursionError):
        return False
