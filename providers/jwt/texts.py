"""Reads texts of other services: URLs in a setting or a discovery document, and the header `Retry-After`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final
from urllib.parse import urlsplit

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
