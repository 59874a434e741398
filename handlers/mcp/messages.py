"""JSON-RPC messages of the Model Context Protocol: which revision one follows, and whether it is well-formed."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from multidict import MultiMapping

MODERN: Final = "2026-07-28"
"""The revision that is served: without a handshake and without sessions."""
LEGACY: Final = ("2025-11-25", "2025-06-18")
"""Earlier revisions that are served too, newest first: their clients begin with `initialize`."""
SUPPORTED: Final = (MODERN, *LEGACY)

PARSE_ERROR: Final = -32700
INVALID_REQUEST: Final = -32600
METHOD_NOT_FOUND: Final = -32601
INVALID_PARAMS: Final = -32602
HEADER_MISMATCH: Final = -32020
UNSUPPORTED_VERSION: Final = -32022

VERSION: Final = "MCP-Protocol-Version"
METHOD: Final = "Mcp-Method"
NAME: Final = "Mcp-Name"
_PREFIX: Final = "io.modelcontextprotocol/"
META_VERSION: Final = f"{_PREFIX}protocolVersion"
META_CAPABILITIES: Final = f"{_PREFIX}clientCapabilities"
META_CLIENT: Final = f"{_PREFIX}clientInfo"
META_SERVER: Final = f"{_PREFIX}serverInfo"
_NAMED: Final = {"tools/call": "name", "prompts/get": "name", "resources/read": "uri"}
_DATE: Final = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}\Z")
_BASE64: Final = re.compile(r"=\?base64\?(.*)\?=\Z")
_LONGEST: Final = 64


class RpcError(Exception):
    """An error response. `status` is that of HTTP; `headers` are added to the response."""

    def __init__(
        self, code: int, message: str, *, status: int = 400, data: Any = None, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.code, self.message, self.status, self.data, self.headers = code, message, status, data, headers


@dataclass(frozen=True, slots=True)
class Message:
    """A well-formed request, or a notification: it has no `id`, and gets no response. `version` is its revision."""

    id: str | int | None
    method: str
    params: Mapping[str, Any]
    version: str

    @property
    def modern(self) -> bool:
        return self.version == MODERN


def id_of(data: Any) -> str | int | None:
    """Returns the id for an error response; None if there is no valid one."""
    given = data.get("id") if isinstance(data, dict) else None
    return given if isinstance(given, str | int) and not isinstance(given, bool) else None


def read_message(data: Any, headers: MultiMapping[str]) -> Message:
    """Returns the message in a body, checked against the headers that repeat parts of it. Raises RpcError.

    A request that names a revision in `_meta` follows that one; `initialize`, and a request without `_meta`, an earlier one.
    """
    if isinstance(data, list):
        raise RpcError(INVALID_REQUEST, "Invalid Request: a batch is not supported; send one message in each request")
    if not isinstance(data, dict) or data.get("jsonrpc") != "2.0" or not isinstance(data.get("method"), str):
        raise RpcError(INVALID_REQUEST, "Invalid Request: the body is not a JSON-RPC 2.0 request or notification")
    if "id" in data and id_of(data) is None:
        raise RpcError(INVALID_REQUEST, "Invalid Request: id must be a string or an integer")
    method, params = data["method"], data.get("params", {})
    if not isinstance(params, dict):
        raise RpcError(INVALID_PARAMS, "Invalid params: must be an object")
    meta = params.get("_meta", {})
    if not isinstance(meta, dict):
        raise RpcError(INVALID_PARAMS, "Invalid params: _meta must be an object")
    given = _header(headers, VERSION)
    claimed = meta.get(META_VERSION)
    if claimed is None and "id" in data and _is_modern(given):
        if method == "initialize":
            raise RpcError(HEADER_MISMATCH, f"Header mismatch: {MODERN} has no initialize request")
        raise RpcError(INVALID_PARAMS, f"Invalid params: _meta must have {META_VERSION}")
    if claimed is not None and not isinstance(claimed, str):
        raise RpcError(INVALID_PARAMS, f"Invalid params: {META_VERSION} must be a string")
    if claimed is not None and given is not None and given != claimed:
        raise RpcError(HEADER_MISMATCH, f"Header mismatch: {VERSION} is not the version in _meta")
    version = claimed or given or LEGACY[0]
    if version not in SUPPORTED and not (method == "initialize" and claimed is None):
        requested = version[:_LONGEST].encode("utf-8", "replace").decode()  # a header may hold bytes that are no text
        data = {"supported": SUPPORTED, "requested": requested}
        raise RpcError(UNSUPPORTED_VERSION, "Unsupported protocol version", data=data)
    message = Message(data.get("id"), method, params, version)
    if message.modern and "id" in data:
        _check_meta(meta)
        _check_headers(message, given, headers)
    return message


def _check_meta(meta: Mapping[str, Any]) -> None:
    """Raise RpcError if a request lacks what every request of this revision must have."""
    if not isinstance(meta.get(META_CAPABILITIES), dict):
        raise RpcError(INVALID_PARAMS, f"Invalid params: _meta must have {META_CAPABILITIES}, an object")
    client = meta.get(META_CLIENT)
    if client is not None and not (isinstance(client, dict) and isinstance(client.get("name"), str)):
        raise RpcError(INVALID_PARAMS, f"Invalid params: {META_CLIENT} must be an object with a name")


def _check_headers(message: Message, version: str | None, headers: MultiMapping[str]) -> None:
    """Raise RpcError if a required header is missing or differs from the body."""
    if version is None:
        raise RpcError(HEADER_MISMATCH, f"Header mismatch: {VERSION} is missing")
    if _header(headers, METHOD) != message.method:
        raise RpcError(HEADER_MISMATCH, f"Header mismatch: {METHOD} is missing, or is not the method of the body")
    member = _NAMED.get(message.method)
    value = message.params.get(member) if member is not None else None
    if isinstance(value, str) and _decoded(_header(headers, NAME)) != value:
        raise RpcError(HEADER_MISMATCH, f"Header mismatch: {NAME} is missing, or is not params.{member} of the body")


def _header(headers: MultiMapping[str], name: str) -> str | None:
    """Returns the header's value; None if it is missing. Raises RpcError if it is repeated."""
    values = headers.getall(name, ())
    if len(values) > 1:
        raise RpcError(HEADER_MISMATCH, f"Header mismatch: {name} must be sent once")
    return values[0].strip(" \t") if values else None


def _decoded(value: str | None) -> str | None:
    """Returns the decoded value of a header, which may be in base64; None if it cannot be decoded."""
    encoded = _BASE64.match(value) if value is not None else None
    if encoded is None:
        return value
    try:
        return base64.b64decode(encoded[1], validate=True).decode()
    except (binascii.Error, ValueError):
        return None


def _is_modern(version: str | None) -> bool:
    return version is not None and _DATE.match(version) is not None and version >= MODERN
