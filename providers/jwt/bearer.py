"""The bearer token in a request's Authorization header, and its digest, which is computed once for all providers."""

from __future__ import annotations

import hashlib
from typing import Final

from aiohttp import hdrs, web

_SHOWN: Final = web.RequestKey("jwt.shown", tuple[str, bytes, object])


def bearer(request: web.Request) -> str | None:
    """Returns the token after `Bearer` (RFC 9110 11.1: the scheme in any case) and exactly one space; None without one."""
    values = request.headers.getall(hdrs.AUTHORIZATION, ())
    if len(values) != 1:
        return None  # the gate refuses two headers; a provider must not choose one
    value = values[0]
    if value.startswith("Bearer "):  # as nearly every client writes it
        return value[7:] or None
    scheme, _, token = value.partition(" ")
    return token if scheme.lower() == "bearer" and token else None


def digest_of(token: str) -> bytes:
    """Returns the token's SHA-256 (32 bytes), which is stored in place of the token."""
    # "surrogatepass": a header may hold any bytes, and the digest must never fail.
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()


def digest_in(request: web.Request, token: str) -> tuple[bytes, object]:
    """As `digest_of`, for the token of `request`. Uses the digest that `keep_digest` stored, and removes it.

    The second value is the `by` of `keep_digest`; None where nothing was stored for this token.
    """
    shown = request.pop(_SHOWN, None)
    return shown[1:] if shown is not None and shown[0] == token else (digest_of(token), None)


def keep_digest(request: web.Request, token: str, digest: bytes, by: object = None) -> None:
    """Store the token's digest on the request for the next provider that is asked about the token.

    `by` is the provider that has just looked the digest up in its caches, and not found it. `digest_in` removes both, so that
    they are gone before a handler runs.
    """
    request[_SHOWN] = (token, digest, by)
