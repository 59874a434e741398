"""`POST /api/stream-tickets`: creates a ticket for a live answer that the caller may open."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from aiohttp import web
from pydantic import BaseModel, ConfigDict, Field
from yarl import URL

from ..auth.access import check, requires
from ..auth.identity import TOKEN_TYPES, identity_of
from ..http.answers import answer
from ..http.bodies import body
from ..http.describe import describe, mark_secret
from ..http.errors import Unprocessable
from ..http.path_prefix import PathPrefix
from ..http.streaming import streams
from ..http.targets import malformed
from ..routing.table import RouteRule
from .tickets import Tickets

PATH: Final = "/api/stream-tickets"
_LONGEST: Final = 2000


class TicketFor(BaseModel):
    """The request for a ticket."""

    model_config = ConfigDict(extra="forbid")
    path: str = Field(
        description="The path of an event stream or a WebSocket, without a query: `/api/data/events`.", max_length=_LONGEST
    )


class StreamTicket(BaseModel):
    """A ticket, which is shown only once."""

    ticket: str = Field(description="Add it to the path as `?ticket=`. It opens this path once.")
    expires_in: int = Field(description="Seconds for which it is good: 30, or until the credential ends.")


@dataclass(frozen=True, slots=True)
class TicketOffice:
    """What the handler needs: the tickets and the routes."""

    tickets: Tickets
    rules: Mapping[web.AbstractRoute, RouteRule]
    router: web.UrlDispatcher
    prefix: PathPrefix | None = None


OFFICE: Final = web.AppKey("ticket_office", TicketOffice)


@dataclass(frozen=True, slots=True)
class _Target:
    """What aiohttp's router reads of a request."""

    rel_url: URL
    method: str = "GET"


@describe(
    body=TicketFor,
    answers={201: StreamTicket},
    refusals={403: "The caller could not open it.", 422: "Not the path of a live answer."},
    summary="A ticket for a live answer",
    operation_id="create_stream_ticket",
    tags=["streams"],
)
@requires(accepts=sorted(TOKEN_TYPES), allow_pending=True)
async def create_ticket(request: web.Request) -> web.StreamResponse:
    """For `EventSource` and `WebSocket` of a browser, which send no header: `GET PATH?ticket=…`, once, within 30 seconds.

    The stream is the caller's who asked for the ticket, and ends when the credential does that asked for it.
    """
    asked = await body(request, TicketFor)
    office, identity = request.app[OFFICE], identity_of(request)
    path, rule, match = await _live_route(office, asked.path)
    check(rule.access, identity, match)
    ticket, seconds = await office.tickets.issue(identity, path)
    return answer({"ticket": ticket, "expires_in": seconds}, 201)


mark_secret(create_ticket)


def ticket_routes(offered: Iterable[web.RouteDef]) -> list[web.RouteDef]:
    """Returns the route that creates tickets if any of these routes streams; otherwise none."""
    return [web.post(PATH, create_ticket)] if any(streams(route.handler) for route in offered) else []


async def _live_route(office: TicketOffice, target: str) -> tuple[str, RouteRule, web.UrlMappingMatchInfo]:
    """Returns the path as the router reads it, and its route. Raises Unprocessable for any other path than a live answer's."""
    if office.prefix is not None:
        target = office.prefix.inside(target) or target  # a page knows the path as it is in its address
    if target.startswith("/") and "?" not in target and not malformed(target):
        url = URL.build(path=target, encoded=True)
        given: Any = _Target(url)
        match = await office.router.resolve(given)
        rule = office.rules.get(match.route)
        if rule is not None and rule.streams and (rule.optional or not rule.public):
            return url.path_safe, rule, match
    raise Unprocessable([{"field": "path", "message": "must be the path of an event stream or a WebSocket, without a query"}])
