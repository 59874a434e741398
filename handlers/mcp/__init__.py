"""Offers agents the routes described with `tool=`, as tools of the Model Context Protocol (revision 2026-07-28).

Each message is one request, without a handshake or a session. A tool call is a request to the tool's route: the gate decides on
it as on any other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Annotated, Any, Final

import msgspec
from aiohttp import hdrs, web
from pydantic import WithJsonSchema

from server import (
    ApiError,
    answer,
    body,
    call_tool,
    calls_tools,
    describe,
    hookimpl,
    is_foreign_origin,
    openapi_document,
    requires,
    tools_of,
)

from .messages import (
    INVALID_PARAMS,
    INVALID_REQUEST,
    LEGACY,
    META_SERVER,
    METHOD_NOT_FOUND,
    PARSE_ERROR,
    SUPPORTED,
    Message,
    RpcError,
    id_of,
    read_message,
)
from .results import result_of, tool_as_json

routes = web.RouteTableDef()

EVERY_TYPE: Final = ("access_token", "api_key", "clerk_api_key", "m2m_token", "oauth_token", "session_token")
"""The route of each tool decides which of these it accepts."""
_KEPT: Final = (hdrs.RETRY_AFTER, "Idempotency-Replayed")
_LIST_MS: Final = 60_000  # how long a client may reuse a list of tools; each call is checked anyway
_DISCOVERY_MS: Final = 3_600_000

_SCHEMA: Final = {
    "type": "object",
    "properties": {
        "jsonrpc": {"type": "string", "const": "2.0"},
        "id": {"type": ["string", "integer"]},
        "method": {"type": "string"},
        "params": {"type": "object"},
    },
    "required": ["jsonrpc", "method"],
}
Rpc = Annotated[Any, WithJsonSchema(_SCHEMA)]
RpcAnswer = Annotated[Any, WithJsonSchema({"type": "object", "required": ["jsonrpc"]})]


@routes.post("/api/mcp")
@requires(accepts=EVERY_TYPE)
@calls_tools
@describe(
    body=Rpc,
    answers={200: RpcAnswer, 202: None},
    refusals={
        400: "The message is malformed, or its headers do not match it; a JSON-RPC error.",
        403: "The request comes from a foreign web page, or the token lacks a scope of the tool; a JSON-RPC error.",
        404: "There is no such method; a JSON-RPC error.",
    },
    summary="Send a message of the Model Context Protocol",
    text="Offers the API's tools to agents: `server/discover`, `tools/list` and `tools/call`. The revision is 2026-07-28.",
    operation_id="send_mcp_message",
)
async def mcp(request: web.Request) -> web.Response:
    data: Any = None
    try:
        if is_foreign_origin(request):
            raise RpcError(INVALID_REQUEST, "Forbidden: the request comes from a foreign origin", status=403)
        data = await _body(request)
        message = read_message(data, request.headers)
        if message.id is None:
            return web.Response(status=202)
        return await _respond(request, message)
    except RpcError as error:
        fault = {"code": error.code, "message": error.message} | ({} if error.data is None else {"data": error.data})
        repeated = id_of(data)
        made = {"jsonrpc": "2.0", **({} if repeated is None else {"id": repeated}), "error": fault}
        return answer(made, error.status, error.headers, for_log=error.message)


async def _body(request: web.Request) -> Any:
    try:
        return await body(request, Rpc)
    except ApiError as error:
        code = PARSE_ERROR if error.status == 400 else INVALID_REQUEST
        members = {name: value for name, value in (("reason", error.reason), ("fields", error.fields)) if value is not None}
        status = 400 if error.status == 422 else error.status
        raise RpcError(code, str(error), status=status, data=members or None, headers=error.headers) from None


async def _respond(request: web.Request, message: Message) -> web.Response:
    method = (_METHODS if message.modern else _LEGACY_METHODS).get(message.method)
    if message.method == "tools/call":
        result, headers = await _call(request, message)
    elif method is not None:
        result, headers = method(request, message), {}
    else:
        raise RpcError(METHOD_NOT_FOUND, "Method not found", status=404 if message.modern else 200)
    if message.modern:
        result = {"resultType": "complete", **result, "_meta": {META_SERVER: _server(request)["info"]}}
    return answer(msgspec.json.encode({"jsonrpc": "2.0", "id": message.id, "result": result}), 200, headers)


async def _call(request: web.Request, message: Message) -> tuple[dict[str, Any], dict[str, str]]:
    """Returns the result of `tools/call`, and further headers of the response."""
    name, arguments = message.params.get("name"), message.params.get("arguments")
    if not isinstance(name, str):
        raise RpcError(INVALID_PARAMS, "Invalid params: name must be a string")
    if arguments is not None and not isinstance(arguments, dict):
        raise RpcError(INVALID_PARAMS, "Invalid params: arguments must be an object")
    try:
        response = await call_tool(request, name, arguments or {})
    except LookupError:
        raise RpcError(INVALID_PARAMS, "Unknown tool", status=200) from None
    _refuse_credential(request, name, response)
    headers = {header: response.headers[header] for header in _KEPT if header in response.headers}
    return result_of(response, modern=message.modern), headers


def _refuse_credential(request: web.Request, name: str, response: web.Response) -> None:
    """Raise RpcError if another credential would help, with the challenge that tells the client's library which one.

    That is so for a scope that the token lacks, and for a credential that has ended since the request began. Any other refusal
    is part of the result, for the agent to read.
    """
    challenge = response.headers.get(hdrs.WWW_AUTHENTICATE, "")
    lacks_scope = response.status == 403 and 'error="insufficient_scope"' in challenge
    ended = response.status == 401 and challenge != "" and any(tool.name == name for tool in tools_of(request))
    if lacks_scope or ended:
        words = "Forbidden: the token lacks a scope of this tool" if lacks_scope else "Unauthorized: the credential has ended"
        raise RpcError(INVALID_REQUEST, words, status=response.status, headers={hdrs.WWW_AUTHENTICATE: challenge})


def _discover(request: web.Request, message: Message) -> dict[str, Any]:
    server = _server(request)
    made = {"supportedVersions": SUPPORTED, "capabilities": {"tools": {}}, "serverInfo": server["info"], **server["more"]}
    return {**made, "ttlMs": _DISCOVERY_MS, "cacheScope": "private"}


def _initialize(request: web.Request, message: Message) -> dict[str, Any]:
    """The handshake of earlier revisions; no state is kept."""
    asked, server = message.params.get("protocolVersion"), _server(request)
    version = asked if asked in LEGACY else LEGACY[0]
    return {"protocolVersion": version, "capabilities": {"tools": {}}, "serverInfo": server["info"], **server["more"]}


def _list(request: web.Request, message: Message) -> dict[str, Any]:
    if message.params.get("cursor") is not None:
        raise RpcError(INVALID_PARAMS, "Invalid params: the list has one page, so there is no such cursor")
    made: dict[str, Any] = {"tools": [tool_as_json(tool, modern=message.modern) for tool in tools_of(request)]}
    return {**made, "ttlMs": _LIST_MS, "cacheScope": "private"} if message.modern else made


def _ping(request: web.Request, message: Message) -> dict[str, Any]:
    return {}


_Method = Callable[[web.Request, Message], dict[str, Any]]
_METHODS: Final[Mapping[str, _Method]] = {"server/discover": _discover, "tools/list": _list}
_LEGACY_METHODS: Final[Mapping[str, _Method]] = {"initialize": _initialize, "ping": _ping, "tools/list": _list}


def _server(request: web.Request) -> Mapping[str, Any]:
    return _read_server(openapi_document(request).json)


@lru_cache(maxsize=4)
def _read_server(document: bytes) -> Mapping[str, Any]:
    """Name, version and instructions, from the OpenAPI document: `[openapi] title, version, description`."""
    info = msgspec.json.decode(document)["info"]
    more = {"instructions": info["description"]} if info.get("description") else {}
    return {"info": {"name": info["title"], "version": info["version"]}, "more": more}


@hookimpl
def register_handlers() -> web.RouteTableDef:
    return routes
