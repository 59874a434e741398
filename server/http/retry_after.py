"""When a client may try again: every response of 429 or 503 has `Retry-After` (RFC 9110 10.2.3)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from aiohttp import web

from .response import JsonResponse

RETRIED: Final = frozenset({429, 503})
"""The statuses whose responses always have `Retry-After`; 1 second if nothing else is known."""


def with_retry_after(headers: Mapping[str, str] | None) -> Mapping[str, str]:
    """Returns these headers, with `Retry-After: 1` if they do not have it."""
    given = headers or {}
    return given if any(name.lower() == "retry-after" for name in given) else {**given, "Retry-After": "1"}


def set_retry_after(response: web.StreamResponse) -> None:
    """Add `Retry-After: 1` to a 429 or 503 that does not have the header."""
    if response.prepared:
        return
    if type(response) is not JsonResponse or response.dictionary is not None:
        response.headers.setdefault("Retry-After", "1")
    elif not response.has_line("Retry-After"):
        response.add(b"Retry-After: 1\r\n")
