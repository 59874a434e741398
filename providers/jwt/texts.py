"""Checks whether a URL in a setting or a discovery document may be fetched."""

from __future__ import annotations

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
