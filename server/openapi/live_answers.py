"""What the OpenAPI document says of live answers: event streams and WebSockets."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, Field

from ..http.describe import Description
from .components import header_refs
from .schemas import Schemas

EVENT_STREAM: Final = "text/event-stream"
_EVENTS: Final = (
    "Server-sent events, until the client closes the connection or its access ends. The schema is that of each event's `data`. "
    "Two events are the server's own: `resync` (changes may have been missed: read the list again), and `end`, the last one, "
    "which says in `reason` why the stream ended."
)
_SOCKET: Final = (
    "The connection is a WebSocket until the client closes it or its access ends; the close frame holds the reason."
)
_EXTENDED_CONNECT: Final = "The same where a proxy speaks HTTP/2 with the client (RFC 8441)."


class StreamNotice(BaseModel):
    """The data of the server's own events: `end` has `reason`, `resync` has nothing."""

    model_config = ConfigDict(extra="forbid")
    # A default_factory: the member may be missing, and is never null.
    reason: str = Field(default_factory=str, description="Why the stream ended, as a code for programs.")


def add_live(where: str, said: Description, schemas: Schemas, plugin: str) -> None:
    """Add the types of a live answer to `schemas`; nothing for any other handler."""
    if said.events is not None:
        schemas.add(where, said.events, "serialization", plugin)
        schemas.add(where, StreamNotice, "serialization")


def live_responses(said: Description, schemas: Schemas, plugin: str) -> dict[str, dict[str, Any]]:
    """The successes of an event stream (200) or of a WebSocket (101), by status; {} for any other handler.

    OpenAPI 3.1 has no member for the items of a stream (`itemSchema` is of 3.2): `schema` describes the data of one event,
    as generators of clients expect it.
    """
    headers = header_refs(*said.headers)
    if said.socket:
        return {
            "101": {"description": _SOCKET, "headers": headers},
            "200": {"description": _EXTENDED_CONNECT, "headers": headers},
        }
    if said.events is None:
        return {}
    data = schemas.of(said.events, "serialization", plugin)
    own = schemas.of(StreamNotice, "serialization")
    schema = {"anyOf": [*(data["anyOf"] if data.keys() == {"anyOf"} else [data]), own]}
    return {"200": {"description": _EVENTS, "headers": headers, "content": {EVENT_STREAM: {"schema": schema}}}}


def live_parameters(said: Description, known: bool) -> Iterable[str]:
    """The names of the parameters of a live answer. `known`: the route can have a known caller."""
    if said.events is not None:
        yield "Last-Event-ID"
    if said.streams and known:
        yield "ticket"


def live_refusals(said: Description) -> set[int]:
    """The statuses that follow from a live answer: too many of one caller, too many in all, no WebSocket asked for."""
    return ({429, 503} if said.streams else set()) | ({426} if said.socket else set())
