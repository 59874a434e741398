"""The path below which clients find this API (`path_prefix`): taken from requests, and put before the paths in responses."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Final
from urllib.parse import urlsplit

from aiohttp import hdrs, web
from aiohttp.http_parser import RawRequestMessage
from multidict import CIMultiDict
from yarl import URL

from ..settings.setting import ConfigError
from .resource import WELL_KNOWN
from .response import JsonResponse
from .targets import origin_form

OUTSIDE: Final = web.RequestKey("outside", bool)
"""Set on a request whose target is not below the prefix that the server removes: no route matches it."""
_PREFIX: Final = re.compile(r"(?:/(?!\.{1,2}(?:/|\Z))[A-Za-z0-9._~-]+)+\Z")
_LONGEST: Final = 256
_HEADERS: Final = (hdrs.LOCATION, hdrs.CONTENT_LOCATION)
# An absolute path (RFC 3986 4.2); `//host` is another host.
_PATH: Final = re.compile(r"/(?!/)")
_LINK: Final = re.compile(r"<\s*(?=/(?!/))")  # RFC 8288 3: the target is the URI reference in <>
_LINES: Final = re.compile(rb"^((?:content-)?location: )(?=/(?!/))", re.IGNORECASE | re.MULTILINE)
_LINK_LINE: Final = re.compile(rb"^link: .*$", re.IGNORECASE | re.MULTILINE)


class PathPrefix:
    """One prefix, such as `/gatepost`. It comes from the setting alone, never from a header such as X-Forwarded-Prefix."""

    def __init__(self, prefix: str, strip: bool) -> None:
        """`strip`: requests arrive with the prefix, and the server removes it. Otherwise the proxy has removed it."""
        self.prefix: Final = prefix
        self.strips: Final = strip
        self._bytes = prefix.encode()

    def inside(self, target: str) -> str | None:
        """Returns a request target without the prefix, in origin form; None if it is not below the prefix.

        The prefix is compared with the raw target, character by character: an escaped spelling of it is another path.
        The metadata of `resource.url` is at the root of the host (RFC 9728 3.1): that target is returned as it is.
        """
        target = origin_form(target)
        path = target.partition("?")[0]
        if path == WELL_KNOWN or path.startswith(f"{WELL_KNOWN}/"):
            return target
        rest = target.removeprefix(self.prefix)
        if rest == target or (rest and rest[0] not in "/?"):
            return None
        return rest if rest.startswith("/") else f"/{rest}"

    def maker(self, make: Callable[..., web.Request]) -> Callable[..., web.Request]:
        """Returns a factory of requests: `make`, which gets each message without the prefix."""

        def made(message: RawRequestMessage, *args: Any) -> web.Request:
            target = self.inside(message.path)
            if target is None:
                request = make(message, *args)
                request[OUTSIDE] = True
                return request
            path, mark, query = target.partition("?")
            url = URL.build(path=path, query_string=query, encoded=True)
            return make(message._replace(path=path + mark + query, url=url), *args)

        return made if self.strips else make

    def mark(self, response: web.StreamResponse) -> None:
        """Put the prefix before every absolute path in `Location`, `Content-Location` and `Link`. Once for each response."""
        if isinstance(response, JsonResponse) and response.dictionary is None:
            response.replace_lines(self._in_lines)
            return
        headers: CIMultiDict[str] = response.headers
        for name in _HEADERS:
            if _PATH.match(headers.get(name, "")):
                headers[name] = self.prefix + headers[name]
        if hdrs.LINK in headers:
            links = [self._in_link(value) for value in headers.popall(hdrs.LINK)]
            headers.extend((hdrs.LINK, value) for value in links)

    def _in_lines(self, lines: bytes) -> bytes:
        lines = _LINES.sub(rb"\g<1>" + self._bytes, lines)
        return _LINK_LINE.sub(lambda line: self._in_link(line[0].decode()).encode(), lines)

    def _in_link(self, value: str) -> str:
        return _LINK.sub(f"<{self.prefix}", value)


def path_prefix_of(get: Callable[[str], Any]) -> PathPrefix | None:
    """The prefix of the settings `path_prefix` and `strip_path_prefix`; None without one. `get` returns a setting by key.

    Raises ConfigError for a prefix that is not a plain path, and where `resource.url` says another one.
    """
    prefix = (get("path_prefix") or "").rstrip("/")
    if not prefix:
        if get("strip_path_prefix"):
            raise ConfigError("strip_path_prefix: there is no path_prefix to strip")
        return None
    if not _PREFIX.match(prefix) or len(prefix) > _LONGEST:
        raise ConfigError(f"path_prefix: must be a path such as /gatepost, of letters, digits and -._~, not {prefix!r}")
    url = get("resource.url")
    if url and (path := urlsplit(url).path.rstrip("/")) != prefix:
        raise ConfigError(
            f"path_prefix: {prefix!r} is not the path of resource.url ({path or '/'!r}); clients see only one of them"
        )
    return PathPrefix(prefix, get("strip_path_prefix"))
