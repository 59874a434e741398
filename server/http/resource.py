"""The public address of this API (`resource.url`), and the URLs that OAuth 2.0 Protected Resource Metadata derives from it."""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import urlsplit

from ..settings.setting import ConfigError

WELL_KNOWN: Final = "/.well-known/oauth-protected-resource"
"""RFC 9728 3: what precedes the path of a resource in the URL of its metadata."""
LONGEST_PATH: Final = 512
"""A challenge names the resource at the request's path up to this length (characters); beyond it, the whole API."""
_LOOPBACK: Final = frozenset({"127.0.0.1", "localhost", "::1"})
_PATH: Final = re.compile(r"(?:/[A-Za-z0-9_~!$&'()*+,;=:@.%-]*)+\Z")


class Resource:
    """One API as an OAuth 2.0 protected resource. Its URLs come from the setting alone, never from a request's `Host`."""

    def __init__(self, url: str) -> None:
        """`url` is the setting `resource.url`. Raises ValueError unless it is an https URL (http for this machine only)."""
        try:
            parts = urlsplit(url)
            host, _ = parts.hostname, parts.port
        except ValueError:
            raise ValueError("is not a URL") from None
        plain = url.isascii() and url.isprintable() and not set(' "\\<>@?#') & set(url)
        if not host or not plain or not (url.startswith("https://") or (parts.scheme == "http" and host in _LOOPBACK)):
            raise ValueError(
                "must be a URL that starts with https:// (http:// only for this machine), without user, query, fragment"
            )
        if parts.path and not _PATH.match(parts.path):
            raise ValueError("has a path that is not one of a URL")
        self.url: Final = url
        """As the operator wrote it."""
        self.origin: Final = f"{parts.scheme}://{parts.netloc}"
        self._base = parts.path.rstrip("/")
        self._root = self.origin + WELL_KNOWN + self._base

    def at(self, path: str) -> str | None:
        """The resource whose metadata is at `WELL_KNOWN` and `path` (escaped; "" for none); None if it is not of this API."""
        if path in ("", "/") or path == self._base:
            return self.url
        return self.origin + path if path.startswith(f"{self._base}/") else None

    def metadata_url(self, path: str) -> str:
        """The URL of the metadata of the resource at `path` of this API (escaped, without query; as a client requests it).

        RFC 9728 3.3: the `resource` in it must be the URL that the client used.
        """
        if len(path) > LONGEST_PATH or path == "/" or not _PATH.match(path):
            return self._root
        return self._root + path


def resource_of(url: str | None) -> Resource | None:
    """The resource of the setting `resource.url`, or None where it is not set. Raises ConfigError for a URL of another form."""
    try:
        return Resource(url) if url else None
    except ValueError as error:
        raise ConfigError(f"resource.url: {error}") from None
