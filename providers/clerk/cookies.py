"""Reads session tokens from cookies by Clerk's rules for a browser on the app's own origin; never redirects.

The token itself is verified like one in the header. This module decides which of the cookies counts, whether a cookie may
authenticate the request at all, and whether the token is as new as the browser's last sign-in or sign-out.
"""

from __future__ import annotations

import hashlib
import logging
import re
from base64 import urlsafe_b64encode
from collections.abc import Iterable, Mapping
from typing import Any, Final, NamedTuple
from urllib.parse import unquote

import msgspec
from aiohttp import hdrs, web

from server import CredentialRejected, Identity

from ..jwt import jws
from ..jwt.strict_json import Malformed
from .settings import ClerkSettings

log = logging.getLogger("gatepost.clerk")
SESSION: Final = "__session"
CLIENT_UAT: Final = "__client_uat"
DEV_BROWSER: Final = "__clerk_db_jwt"
_SAFE: Final = frozenset({hdrs.METH_GET, hdrs.METH_HEAD})
_UAT: Final = re.compile(r"[0-9]{1,13}")
_BAD_ESCAPE: Final = re.compile(r"%(?![0-9A-Fa-f]{2})")


class CookieToken(NamedTuple):
    """The session token that counts, and when the browser's session last changed (Unix seconds)."""

    token: str
    client_uat: int


class _Unverified(msgspec.Struct):
    """Claims of a token before verification, used only to choose between two cookies."""

    iss: Any = None
    iat: Any = None
    exp: Any = None


_decoder: Final = msgspec.json.Decoder(_Unverified)


class CookieReader:
    """Reads the cookies of one Clerk instance."""

    def __init__(self, settings: ClerkSettings) -> None:
        self._settings = settings
        key = settings.publishable_key
        self._suffix = f"_{suffix(key)}" if key is not None else None
        self._development = (key or settings.secret_key or "").startswith(("pk_test_", "sk_test_"))
        plain = (SESSION, CLIENT_UAT, DEV_BROWSER)
        self._names = frozenset(plain) | {name + self._suffix for name in plain if self._suffix is not None}
        self._warned = False

    def read(self, request: web.Request, now: float) -> CookieToken | None:
        """Returns the token to verify; None without a session cookie of this instance. `now` is in Unix seconds.

        Raises CredentialRejected if Clerk's rules refuse the combination of cookies; the detail is Clerk's name for the
        reason.
        """
        if hdrs.COOKIE not in request.headers:
            return None
        jar = parse(request.headers.getall(hdrs.COOKIE), self._names)
        suffixed = self._suffix or ""
        if not jar.get(SESSION) and not jar.get(SESSION + suffixed):
            if jar:
                log.debug("Clerk's cookies without a session: client-uat-but-no-session-token, or signed out")
            return None
        self._check_method(request)
        chosen = suffixed if suffixed and self._uses_suffixed(jar, suffixed, now) else ""
        if self._development and not (jar.get(DEV_BROWSER + chosen) or request.query.get(DEV_BROWSER)):
            raise _refused("dev-browser-missing")
        token, uat = jar.get(SESSION + chosen), _seconds(jar.get(CLIENT_UAT + chosen))
        if not token:
            raise _refused("client-uat-but-no-session-token" if uat else "session-token-and-uat-missing")
        if not uat:
            raise _refused("session-token-but-no-client-uat")
        return CookieToken(token, uat)

    def check(self, cookie: CookieToken, identity: Identity) -> None:
        """Check what a verified token from a cookie must also fulfil; call it on every request.

        Raises CredentialRejected.
        """
        if identity.claims is None or "azp" not in identity.claims:
            # A page on a sibling subdomain can plant its own instance's cookie; azp reveals it (the lenient
            # setting is for header tokens, which no browser sends by itself).
            if self._settings.authorized_parties:
                raise CredentialRejected("token-authorized-party", "azp is missing in a cookie's token")
            self._warn_once()
        if identity.issued_at is None:
            raise CredentialRejected("token-claims", "iat is missing in a cookie's token")
        if identity.issued_at < cookie.client_uat:
            raise CredentialRejected("session-revoked", "session-token-iat-before-client-uat")

    def _check_method(self, request: web.Request) -> None:
        """A browser sends cookies with other sites' requests too, so a request that may change data needs a known Origin."""
        if request.method in _SAFE:
            return
        origins = request.headers.getall(hdrs.ORIGIN, ())
        if len(origins) != 1 or origins[0] not in self._settings.authorized_parties:
            raise _refused("a cookie serves this method only with the Origin of an authorized party")

    def _uses_suffixed(self, jar: Mapping[str, str], suffix: str, now: float) -> bool:
        """Clerk's order of precedence between the plain cookies and the suffixed; the first rule that applies."""
        session, uat = jar.get(SESSION), jar.get(CLIENT_UAT)
        other_session, other_uat = jar.get(SESSION + suffix), jar.get(CLIENT_UAT + suffix)
        plain, other = _unverified(session), _unverified(other_session)
        if session and (plain is None or not plain.iss):
            return False
        if plain is not None and self._is_foreign(plain.iss):
            return True
        if not other_uat and not other_session:
            return False
        if other_uat != "0" and uat != "0" and _number(plain, "iat") > _number(other, "iat"):
            return False
        if other_uat == "0" and uat != "0":
            return False
        # Only the development instances' own script sets the suffixed uat, and an older script does not.
        if self._development and uat == "0" and other_uat != "0" and other is not None and _number(other, "exp") <= now:
            return False
        return bool(other_uat)

    def _is_foreign(self, issuer: object) -> bool:
        return not isinstance(issuer, str) or (bool(self._settings.issuers) and issuer not in self._settings.issuers)

    def _warn_once(self) -> None:
        if not self._warned:
            self._warned = True
            log.warning("a cookie's token names no azp; set CLERK_AUTHORIZED_PARTIES so that such tokens are refused")


def suffix(publishable_key: str) -> str:
    """Returns what Clerk appends to an instance's cookie names: 8 base64url characters of the publishable key's SHA-1."""
    digest = hashlib.sha1(publishable_key.encode(), usedforsecurity=False).digest()
    return urlsafe_b64encode(digest).decode()[:8]


def parse(headers: Iterable[str], names: frozenset[str]) -> dict[str, str]:
    """Returns the values of the cookies with these exact names. Only values are percent-decoded, once, after splitting.

    Raises CredentialRejected for a repeated name (a site that can set a cookie for a parent domain could otherwise choose
    which one counts) and for malformed percent-encoding.
    """
    found: dict[str, str] = {}
    for pair in (pair for header in headers for pair in header.split(";")):
        name, equals, value = pair.partition("=")
        name = name.strip(" \t")
        if not equals or name not in names:
            continue
        if name in found:
            raise _refused("two cookies of the same name")
        found[name] = _decoded(value.strip(" \t"))
    return found


def _decoded(value: str) -> str:
    if "%" not in value:
        return value
    try:
        if not _BAD_ESCAPE.search(value):
            return unquote(value, errors="strict")
    except UnicodeDecodeError:
        pass
    raise _refused("a cookie with malformed percent-encoding")


def _seconds(value: str | None) -> int:
    """Returns `__client_uat` in Unix seconds; 0 (signed out) if it is missing or not digits."""
    return int(value) if value is not None and _UAT.fullmatch(value) else 0


def _unverified(token: str | None) -> _Unverified | None:
    segments = jws.split(token) if token else None
    if segments is None:
        return None
    try:
        return _decoder.decode(jws.decode(segments.payload))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, Malformed):
        return None


def _number(claims: _Unverified | None, name: str) -> float:
    value: Any = getattr(claims, name, None)
    return float(value) if type(value) in (int, float) and abs(value) < jws.MAX_DATE else 0.0


def _refused(detail: str) -> CredentialRejected:
    return CredentialRejected("credential-rejected", detail)
