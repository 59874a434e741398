"""The gate: every request passes here, and none goes on until it is known who is calling and whether they may.

It decides on the route that the router chose and on the access declared there, never on the text of a path.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from typing import Final

from aiohttp import hdrs, web

from .access import IDENTITY, OPENED, REQUEST_ID, check
from .deadline import within
from .errors import ApiError, BadRequest, Forbidden, ServiceUnavailable, Unauthorized
from .gate_plan import Plan
from .hookspecs import Provider
from .identity import CredentialRejected, Identity, Unavailable
from .metrics import Metrics
from .observe import Decision, Listener, log_failure
from .revocation import Revocations

_API_KEY: Final = "X-API-Key"
_SLUG: Final = re.compile(r"[a-z]+(?:-[a-z]+){0,6}\Z")
_HANDLERS_WORD: Final = Forbidden("handler")


class Gate:
    """Asks the providers in the operator's order, one await at a time."""

    def __init__(
        self,
        plans: Mapping[web.AbstractRoute, Plan],
        providers: Sequence[tuple[str, Provider]],
        *,
        provider_seconds: float,
        revocations: Revocations,
        metrics: Metrics,
        denied: Sequence[Listener],
    ) -> None:
        """`denied` are told of every request that is turned away."""
        self._plans = dict(plans)
        self._providers = list(providers)
        self._seconds = provider_seconds
        self._revocations = revocations
        self._told = metrics.authentications
        self._denied = denied

    async def admit(self, request: web.Request, match: web.UrlMappingMatchInfo) -> web.StreamResponse:
        """The answer of the handler that `match` leads to, if this caller may have it. Raises what stands in the way."""
        plan = self._plans.get(match.route)
        if plan is not None and plan.public:
            request[OPENED] = True  # the credentials of a public route are never read
            return await match.handler(request)
        started = time.perf_counter()
        identity: Identity | None = None
        try:
            identity = await self._identify(request)
            if self._revocations.denies(identity):
                raise Unauthorized("session-revoked")
            if plan is None:  # no such path or method; were it anything else, a route that we do not know stays shut
                raise match.http_exception or web.HTTPNotFound
            check(plan.access, identity, match)
        except (ApiError, web.HTTPException) as error:
            self._tell(request, plan, identity, error, started)
            raise
        request[IDENTITY] = identity
        try:
            response = await match.handler(request)
        except (Forbidden, web.HTTPForbidden) as error:
            self._tell(request, plan, identity, error if isinstance(error, Forbidden) else _HANDLERS_WORD, started)
            raise
        if response.status == 403:
            self._tell(request, plan, identity, _HANDLERS_WORD, started)
        return response

    def plan_of(self, request: web.Request) -> Plan | None:
        """The plan of the route that this request took; None where it took none (a preflight, an unknown path)."""
        match = request._match_info
        return self._plans.get(match.route) if match is not None else None

    async def _identify(self, request: web.Request) -> Identity:
        headers = request.headers
        shown = len(headers.getall(hdrs.AUTHORIZATION, ())) + len(headers.getall(_API_KEY, ()))
        if shown > 1:
            raise BadRequest("credentials-ambiguous")
        for name, provider in self._providers:
            identity = await self._ask(name, provider, request)
            if identity is not None:
                self._told[name, "known"] += 1
                return identity
        self._told["none", "rejected" if shown else "missing"] += 1
        if shown:
            raise Unauthorized("credential-rejected", "no provider takes this kind of credential")
        raise Unauthorized("credential-missing")

    async def _ask(self, name: str, provider: Provider, request: web.Request) -> Identity | None:
        """One provider's answer. Whatever is not one of the three answers is an outage, never the next one's turn."""
        try:
            identity = await within(self._seconds, provider.authenticate(request))
            if identity is None or isinstance(identity, Identity):
                return identity
            raise TypeError(f"authenticate returned a {type(identity).__name__}")
        except CredentialRejected as rejected:
            self._told[name, "rejected"] += 1
            raise Unauthorized(_slug(rejected.reason), f"{name}: {rejected.detail}") from None
        except Unavailable as outage:
            self._told[name, "unavailable"] += 1
            log_failure("provider unavailable", outage, provider=name, why=str(outage))
            raise ServiceUnavailable(outage.retry_after) from None
        except Exception as error:
            self._told[name, "unavailable"] += 1
            log_failure("provider failed", error, provider=name)
            raise ServiceUnavailable from None

    def _tell(
        self,
        request: web.Request,
        plan: Plan | None,
        identity: Identity | None,
        error: ApiError | web.HTTPException,
        started: float,
    ) -> None:
        outcome = {401: "unauthorized", 403: "forbidden"}.get(error.status, str(error.status))
        decision = Decision(
            request.get(REQUEST_ID, ""),
            request.method,
            plan.template if plan else "(none)",
            identity.provider if identity else None,
            identity.user_id if identity else None,
            identity.org_id if identity else None,
            outcome,
            error.reason if isinstance(error, Unauthorized | Forbidden | BadRequest) else None,
            error.detail if isinstance(error, Unauthorized) else "",
            time.perf_counter() - started,
            identity.audited_as if identity else None,
        )
        for listener in self._denied:
            listener(decision)


def _slug(reason: object) -> str:
    """A plugin's reason, if it is a slug at all."""
    return reason if isinstance(reason, str) and _SLUG.match(reason) else "credential-rejected"
