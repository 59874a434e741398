"""Tools, and the responses of their routes, in the form of the Model Context Protocol."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import parse_qs

import msgspec
from aiohttp import hdrs, web

from server import Tool

_JSON: Final = re.compile(r"application/(?:json|[a-z0-9.+-]+\+json)\Z")
_NEXT: Final = re.compile(r'<([^>]*)>; rel="next"')


def tool_as_json(tool: Tool, *, modern: bool) -> dict[str, Any]:
    """Returns a tool in the form of `tools/list`. Before 2026-07-28 a result could only be an object."""
    made: dict[str, Any] = {
        "name": tool.name,
        "description": tool.description,
        "inputSchema": tool.input_schema,
        "annotations": {
            "readOnlyHint": tool.method == "GET",
            "destructiveHint": tool.method in ("PUT", "PATCH", "DELETE"),
            "idempotentHint": tool.method in ("GET", "PUT", "DELETE"),
            "openWorldHint": False,
        },
    }
    if tool.output_schema is not None and (modern or tool.output_schema.get("type") == "object"):
        made["outputSchema"] = tool.output_schema
    return made


def result_of(response: web.Response, *, modern: bool) -> dict[str, Any]:
    """Returns the result of a call: the response's JSON and again as text, or only its text. An error is `isError`."""
    raw = response.body if isinstance(response.body, bytes) else bytes(memoryview(response.body or b""))  # type: ignore[arg-type]
    content = [_text(raw.decode("utf-8", "replace") or f"{response.status} {response.reason}")]
    result: dict[str, Any] = {"content": content, "isError": response.status >= 400}
    if response.status < 400:
        fits = modern or raw.lstrip()[:1] == b"{"
        if fits and _JSON.match(response.content_type) and _is_json(raw):
            result["structuredContent"] = msgspec.Raw(raw)
        content += map(_text, _more(response.headers))
    return result


def _more(headers: Mapping[str, str]) -> list[str]:
    """Returns the headers in words: the cursor of the next page, the ETag, and the location of a new row."""
    found = []
    following = _NEXT.search(headers.get(hdrs.LINK, ""))
    if following is not None and (cursors := parse_qs(following[1].partition("?")[2]).get("cursor")):
        found.append(f"There are more. For the next page, call again with the same arguments and cursor={cursors[0]}")
    found += [f"{name}: {headers[name]}" for name in ("ETag", "Location") if name in headers]
    return found


def _is_json(raw: bytes) -> bool:
    """Is it valid JSON? It becomes part of the message unchanged, and handlers can send any text."""
    try:
        msgspec.json.decode(raw)
    except msgspec.DecodeError:
        return False
    return True


def _text(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}
