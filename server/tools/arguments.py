"""Turns the arguments of a tool into a request to its route: path, query, body and a header."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import quote, urlencode

from aiohttp import hdrs

from ..http.bodies import field_path
from ..http.errors import ApiError, Unprocessable
from ..openapi.operation import PARAMETER
from .schema import BODY, IF_MATCH
from .table import ToolRoute

_TAG: Final = re.compile(r"[!-~]{1,1024}\Z")  # visible ASCII, so nothing that could begin another header


@dataclass(slots=True)
class Prepared:
    """The request to a route. `fault`: the error in the arguments, or None; `path`: the path parameters."""

    target: str
    path: dict[str, str]
    body: bytes | None = None
    headers: dict[str, str] = field(default_factory=dict)
    fault: ApiError | None = None


def prepare(tool: ToolRoute, given: Mapping[str, Any], org_id: str | None) -> Prepared:
    """Returns the request to the tool's route with these arguments. `org_id` is the caller's active organisation."""
    bad: list[dict[str, str]] = []
    inputs, left = tool.inputs, dict(given)
    path: dict[str, str] = {}
    for name in inputs.path:
        value = left.pop(name, None)
        if value is None and name == inputs.organization and name not in given:
            value = org_id
        if isinstance(value, str) and value:
            path[name] = value
        elif isinstance(value, int) and not isinstance(value, bool):
            path[name] = str(value)
        else:
            bad.append(_bad(name, "must be a text that is not empty" if name in given else "Field required"))
    query: list[tuple[str, str]] = []
    for name in inputs.query:
        _put(name, left.pop(name, None), query, bad)
    headers: dict[str, str] = {}
    if inputs.if_match and (tag := left.pop(IF_MATCH, None)) is not None:
        if isinstance(tag, str) and _TAG.match(tag):
            headers[hdrs.IF_MATCH] = tag
        else:
            bad.append(_bad(IF_MATCH, "must be an ETag"))
    body = _body(tool, left, bad)
    template = PARAMETER.sub(lambda found: quote(path.get(found[1], "-"), safe=""), tool.rule.template)
    target = f"{template}?{urlencode(query, quote_via=quote)}" if query else template
    return Prepared(target, path, body, headers, Unprocessable(bad) if bad else None)


def _body(tool: ToolRoute, left: dict[str, Any], bad: list[dict[str, str]]) -> bytes | None:
    """Returns the body, made of the remaining arguments; None for no body."""
    members = tool.inputs.members
    if members:
        return json.dumps(left).encode() if left or not tool.body_optional else None
    given = BODY in left
    body = left.pop(BODY, None) if members is False else None
    bad += [_bad(name, "is no argument of this tool") for name in left]
    if members is None or (not given and tool.body_optional):
        return None
    if not given:
        bad.append(_bad(BODY, "Field required"))
    return json.dumps(body).encode()


def _put(name: str, value: Any, query: list[tuple[str, str]], bad: list[dict[str, str]]) -> None:
    """Add a parameter to the query. None leaves it out, since no text in a URL means null."""
    for one in value if isinstance(value, list) else [value]:
        if isinstance(one, str):
            query.append((name, one))
        elif isinstance(one, bool):
            query.append((name, "true" if one else "false"))
        elif isinstance(one, int) or (isinstance(one, float) and math.isfinite(one)):
            query.append((name, str(one)))
        elif one is not None:
            bad.append(_bad(name, "must be a text, a number, true or false, or a list of these"))


def _bad(name: str, message: str) -> dict[str, str]:
    return {"field": field_path([name]), "message": message}
