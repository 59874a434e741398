"""Which token types the route of a request takes: so that a provider spends nothing on a credential of another kind."""

from __future__ import annotations

from aiohttp import web

from .access import EVERYDAY_TYPES, access_of


def accepted_types(request: web.Request) -> frozenset[str]:
    """The `accepts` of the matched route; the everyday types where there is no route (an unknown path, a wrong method).

    It is for saving calls only. That the type fits is checked by the gate, whatever a provider makes of this.
    """
    access = access_of(request.match_info.handler)
    return access.accepts if access is not None else EVERYDAY_TYPES
