"""The public interface of tools: lists those that a request's caller may call, and calls them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from aiohttp import hdrs, web

from ..auth.identity import identity_of
from ..gate.dispatcher import Dispatcher
from ..gate.idempotency import KEY
from ..gate.nested import NestedDispatcher, nested_request
from ..http.calls_tools import NESTED, may_call_tools
from ..http.errors import ApiError, BadRequest, NotFound
from ..http.targets import malformed
from ..routing.resolver import Resolver
from ..routing.table import RouteTable
from .arguments import Prepared, prepare
from .table import Tool, ToolRoute, tools_in


class Tools:
    """The tools of one server, and how they are called."""

    def __init__(self, table: RouteTable, lookup: Resolver, dispatcher: Dispatcher, get: Callable[[str], Any]) -> None:
        """`get` reads a setting. Raises ConfigError for routes that cannot be tools."""
        self.by_name = tools_in(table)
        self._lookup, self._dispatcher = lookup, NestedDispatcher(dispatcher)
        self._target_bytes = get("limits.head_bytes")  # of path and query together, as for a client's request

    async def call(self, request: web.Request, tool: ToolRoute, arguments: Mapping[str, Any]) -> web.Response:
        """Returns the response of the tool's route. Raises Unauthorized if `request` has no caller."""
        identity = identity_of(request)
        prepared = prepare(tool, arguments, identity.org_id)
        method, template = tool.tool.method, tool.rule.template
        headers = dict(prepared.headers)
        if method == hdrs.METH_POST and KEY in request.headers:
            headers[KEY] = ", ".join(request.headers.getall(KEY))  # two headers become one malformed key, which is refused
        fault = prepared.fault or self._unsound(prepared)
        nested = nested_request(request, method, template if fault is not None else prepared.target, headers, prepared.body)
        match = web.UrlMappingMatchInfo(dict(prepared.path), tool.route)
        if fault is None:
            found = self._lookup.at_once(nested)
            if found is None:  # not `or`: a match without parameters is an empty dictionary
                found = await self._lookup.resolve(nested)
            if found.route is tool.route:
                match = found
            else:  # an argument has changed the path into another route's
                fault = NotFound()
        if match.route is tool.route and not match._frozen:
            match.add_app(request.app)
            match.freeze()
        return await self._dispatcher.handle_for(request, nested, match, fault)

    def _unsound(self, prepared: Prepared) -> ApiError | None:
        """Returns the error for a path and query that a client could not send either: an argument must stay one value."""
        if len(prepared.target) > self._target_bytes or malformed(prepared.target):
            return BadRequest(for_log="target-malformed")
        return None


TOOLS: Final = web.AppKey("tools", Tools)


def tools_of(request: web.Request) -> Sequence[Tool]:
    """The tools that the caller of this request may call now, sorted by name.

    A tool is a route described with `tool=`. Its access decides, as in the gate, but nothing is counted or recorded. Raises
    Unauthorized (401) if the request has no caller.
    """
    identity = identity_of(request)
    return [one.tool for one in request.app[TOOLS].by_name.values() if one.is_for(identity)]


async def call_tool(request: web.Request, name: str, arguments: Mapping[str, Any]) -> web.Response:
    """Call a tool for the caller of this request. Returns the response of its route, which may be an error; it is not sent.

    The call passes the gate as a request to that route: its access, its limits, revocation, idempotency, audit, log and
    metrics are the route's, and the database shows the caller's rows. The caller is not identified again, and counts once in
    `limits.caller` and `limits.concurrency`. Request id and client address are those of this request. The route's handler
    sees only the headers that describe the client (`User-Agent`, tracing, forwarding) and, for a POST, `Idempotency-Key`; no
    credential and no cookie. A 422 lists bad arguments.

    name        the tool's name. Raises LookupError for an unknown one
    arguments   JSON values by name, for the path, the query and the body, as in the tool's `input_schema`

    Raises TypeError if the handler has no `@calls_tools`, and Unauthorized (401) if the request has no caller.
    """
    if NESTED in request or not may_call_tools(request.match_info.handler):
        raise TypeError("only a handler with @calls_tools may call tools")
    tools = request.app[TOOLS]
    return await tools.call(request, tools.by_name[name], arguments)
