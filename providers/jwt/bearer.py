"""The token that a request shows in its Authorization header, and its digest, made once for all who ask."""

from __future__ import annotations

import hashlib
from typing import Final

from aiohttp import hdrs, web

_SHOWN: Final = web.RequestKey("jwt.shown", tuple[str, bytes])


def bearer(request: web.Request) -> str | None:
    """The token after `Bearer` (RFC 9110 11.1: the scheme in any case) and exactly one space; None without one."""
    values = request.headers.getall(hdrs.AUTHORIZATION, ())
    if len(values) != 1:
        return None  # the gate refuses two; neither is ours to choose
    scheme, _, token = values[0].partition(" ")
    return token if scheme.lower() == "bearer" and token else None


def digest_of(token: str) -> bytes:
    """What stands for a token where it must not be remembered: its SHA-256."""
    # "surrogatepass": a header may hold any bytes, and looking it up must not be able to fail.
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()


def digest_in(request: web.Request, token: str) -> bytes:
    """The same, for a token that `request` shows. What `keep_digest` has left is taken off the request, and not made again."""
    shown = request.pop(_SHOWN, None)
    return shown[1] if shown is not None and shown[0] == token else digest_of(token)


def keep_digest(request: web.Request, token: str, digest: bytes) -> None:
    """Leave a digest on the request for whoever is asked about the same token next: gone before a handler runs."""
    request[_SHOWN] = (token, digest)
