"""Reads texts of other services: URLs in a setting or a discovery document, the header `Retry-After`, claims for the log."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final
from urllib.parse import urlsplit

_MOST_SHOWN: Final = 200
_MOST_LISTED: Final = 5
_KINDS: Final[Mapping[type, str]] = {bool: "a boolean", int: "a number", float: "a number"}
_LOOPBACK: Final = frozenset({"127.0.0.1", "localhost", "::1"})


def is_safe_url(url: str) -> bool:
    """Whether `url` is https (or http to this machine) with a host, no user, password or fragment (OpenID Discovery 1.0, 3)."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        return False
    if not host or not url.isascii() or not url.isprintable() or " " in url or "\\" in url or "@" in parts.netloc or "#" in url:
        return False
    return url.startswith("https://") or is_loopback_http(url)


def is_loopback_http(url: str) -> bool:
    """Whether `url` is http without TLS to this machine, the only one to which plain http is permitted."""
    return url.startswith("http://") and urlsplit(url).hostname in _LOOPBACK


def retry_after(headers: Mapping[str, str]) -> int:
    """Returns the seconds of the header `Retry-After` (RFC 9110 10.2.3), 1 to 3600; 1 if it is missing or a date."""
    value = next((text.strip() for name, text in headers.items() if name.lower() == "retry-after"), "")
    return min(max(int(value), 1), 3600) if re.fullmatch(r"[0-9]{1,9}", value) else 1


def shown(value: object) -> str:
    """Returns a claim for the log, where it explains a refusal: a printable string or several, at most 200 characters each.

    Only for claims that name applications and kinds of tokens (`aud`, `azp`, `iss`, `typ`), after verification.
    """
    if isinstance(value, (list, tuple, set, frozenset)):
        named = sorted(map(shown, value)) if isinstance(value, (set, frozenset)) else list(map(shown, value[:_MOST_LISTED]))
        more = len(value) - _MOST_LISTED
        return (", ".join(named[:_MOST_LISTED]) or "an empty list") + (f" and {more} more" if more > 0 else "")
    if isinstance(value, str):
        return repr(value) if value.isprintable() and len(value) <= _MOST_SHOWN else "a string that is not shown"
    return "missing" if value is None else _KINDS.get(type(value), "an object")
