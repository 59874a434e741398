"""The gate: every request passes here, and its handler runs only when the caller is known and the access allows it.

It decides on the route that the router chose and on the access declared there, never on the text of a path.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import TypeAlias

from aiohttp import hdrs, web

from ..auth.access import check
from ..auth.caller import caller_key
from ..auth.identity import IDENTITY, Identity
from ..auth.origin import demand_origin
from ..auth.revocation import Revocations
from ..http.client_address import ClientAddress
from ..http.errors import ApiError, Forbidden, TooManyRequests, Unauthorized
from ..http.stamp import OPENED
from ..http.streaming import TICKET
from ..http.ticket_parameter import has_ticket
from ..plugins.providers import LoadedProvider
from ..rate_limits.addresses import AddressLimit
from ..rate_limits.callers import LEASE, CallerLimit
from ..rate_limits.concurrency import Concurrency, Turns
from ..rate_limits.routes import RouteLimit
from ..routing.table import RouteRule
from ..telemetry.decisions import DenialListener
from ..telemetry.metrics import Metrics
from .denials import BY_HANDLER, denial
from .idempotency import respond
from .identification import Identification, NoCredential, Redeem, no_tickets
from .refusals import REPORTED
from .slow_clients import releaser
from .still_admitted import StillAdmitted

Refusal: TypeAlias = ApiError | web.HTTPException


class Gate:
    """Admits requests. `rules` has the rule of each route; `challenges` are those of the providers, for every 401."""

    def __init__(
        self,
        rules: Mapping[web.AbstractRoute, RouteRule],
        providers: Sequence[LoadedProvider],
        *,
        provider_seconds: float,
        revocations: Revocations,
        metrics: Metrics,
        denied: Sequence[DenialListener],
        addresses: ClientAddress,
        concurrency: Concurrency,
        route_limits: Mapping[web.AbstractRoute, RouteLimit],
        caller_limit: CallerLimit | None = None,
        address_limit: AddressLimit | None = None,
        redeem: Redeem = no_tickets,
    ) -> None:
        """`denied` receive every request that is refused. `route_limits` has the routes with limits of their own.

        `redeem(ticket, path)` returns the caller whom a ticket for a live answer represents.
        """
        self.rules, self._route_limits = dict(rules), route_limits
        identification = Identification(providers, provider_seconds, metrics, redeem)
        self._shown, self._may_be_shown = identification.shown, identification.may_be_shown
        self._recall, self._identify = identification.recall, identification.identify
        self._nothing_is_read, self._shown_by_choice = identification.nothing_is_read, identification.shown_by_choice
        self._by_ticket = identification.by_ticket
        self.challenges, self.still_admitted = identification.challenges, StillAdmitted(revocations, identification)
        self._parties = {one.name: frozenset(one.authorized_parties) for one in providers}
        self._revocations = revocations
        self._authentications, self._limited = metrics.authentications, metrics.limited
        self._denied, self._concurrency, self.release = denied, concurrency, releaser(concurrency)
        self._addresses, self._caller_limit, self._address_limit = addresses, caller_limit, address_limit

    async def admit(self, request: web.Request, match: web.UrlMappingMatchInfo, started: float) -> web.StreamResponse:
        """The response of the route's handler, if this caller may call it. Raises the refusal (ApiError, HTTPException).

        `started`: when the request was received, by time.perf_counter.
        """
        rule = self.rules.get(match._route)
        live = rule is not None and rule.streams
        if rule is not None and rule.public and not (rule.optional and self._may_be_known(request, live)):
            if rule.bounds is not None:
                return await self._within_bounds(request, match, rule, started)
            request[OPENED] = True  # the credentials of a public route are never read
            return await match.handler(request)
        identity: Identity | None = None
        try:
            shown = self._shown(request)
            limit = self._address_limit
            if not shown and not live and self._nothing_is_read(request._headers):
                raise NoCredential
            if live and has_ticket(request):
                identity = await self._by_ticket(request, shown, self._check_address)
            elif limit is None or not limit.full:
                identity = self._recall(request)
            else:
                identity = limit.recall(request, self._addresses.of(request), self._recall)
            if identity is None:
                identity = await self._identify(request, shown)
                if limit is not None:
                    limit.remember(request.headers)
            if self._revocations.denies(identity):
                raise Unauthorized("session-revoked")
            if live:
                self.check_origin(request, identity)
            caller = caller_key(identity)
            if self._caller_limit is not None:
                request._state[LEASE] = self._caller_limit.take(caller) or await self._caller_limit.ask(caller)
            if rule is None:  # no such path or method; a route without a rule cannot exist, and would stay locked
                raise match.http_exception or web.HTTPNotFound
            turns = self._concurrency if rule.bounds is None else await self._route_limits[match.route].count(request, caller)
            check(rule.access, identity, match)
            if not turns.enter(caller):
                await self._wait_for_turn(turns, request, identity, caller)
        except (ApiError, web.HTTPException) as error:
            if rule is None or not rule.optional or not isinstance(error, NoCredential):
                self._refused(request, rule, identity, error, started)
                raise
        if identity is None:  # the caller is optional, and no credential was sent
            return await self._within_bounds(request, match, rule, started)
        request._state[IDENTITY] = identity
        try:
            return await respond(request, match, rule)
        finally:
            turns.leave(caller)

    async def _within_bounds(
        self, request: web.Request, match: web.UrlMappingMatchInfo, rule: RouteRule, started: float
    ) -> web.StreamResponse:
        """The answer of a public route to a client without a credential, within the route's own limits, if it has any."""
        begun = None
        if rule.bounds is not None:
            try:
                begun = await self._route_limits[match.route].enter(request)
            except TooManyRequests as error:
                self._limited[error.reason or "rate"] += 1
                self._notify(request, rule, None, error, started)
                raise
        request[OPENED] = True
        try:
            return await match.handler(request)
        finally:
            if begun is not None:
                turns, client = begun
                turns.leave(client)

    def _may_be_known(self, request: web.Request, live: bool) -> bool:
        """Does a request for a route whose caller is optional show anything that could be a credential?"""
        return self._may_be_shown(request.headers) or (live and has_ticket(request))

    def _check_address(self, request: web.Request) -> None:
        """Raise the 429 for an address with too many refused credentials: a ticket is good once, so none is known to be."""
        if self._address_limit is not None and self._address_limit.full:
            self._address_limit.demand(self._addresses.of(request))

    async def _wait_for_turn(self, turns: Concurrency | Turns, request: web.Request, identity: Identity, caller: str) -> None:
        await turns.wait(caller)
        try:
            await self.still_admitted.check(request, identity)
        except BaseException:
            turns.leave(caller)
            raise

    def _refused(
        self, request: web.Request, rule: RouteRule | None, identity: Identity | None, error: Refusal, started: float
    ) -> None:
        """Count a refused request, and report it to the listeners."""
        if isinstance(error, NoCredential):
            self._authentications["none", "missing"] += 1
        elif isinstance(error, TooManyRequests):
            self._limited["address" if identity is None else error.reason or "caller"] += 1
        elif self._address_limit is not None and isinstance(error, Unauthorized) and error.reason != "credential-missing":
            self._address_limit.refused(request.headers, self._addresses.of(request))
        self._notify(request, rule, identity, error, started)

    def report(self, request: web.Request, error: Refusal, started: float) -> None:
        """Report the 403 of a handler to a known caller. Does nothing for other errors, and for one that has been reported."""
        if error.status == 403 and REPORTED not in request and (identity := request.get(IDENTITY)) is not None:
            self._notify(
                request, self.rule_of(request), identity, error if isinstance(error, Forbidden) else BY_HANDLER, started
            )

    def refuse(self, request: web.Request, error: ApiError) -> None:
        """Count and report a refusal by the limits of live answers, after the gate has admitted the request."""
        if isinstance(error, TooManyRequests):
            self._limited[error.reason or "caller"] += 1
        self._notify(request, self.rule_of(request), request.get(IDENTITY), error, time.perf_counter())

    def rule_of(self, request: web.Request) -> RouteRule | None:
        """The rule of the route that this request matched; None for a preflight and an unknown path or method."""
        match = request._match_info
        return self.rules.get(match._route) if match is not None else None

    def check_origin(self, request: web.Request, identity: Identity) -> None:
        """Raise Unauthorized for a live answer whose caller a cookie may identify, and whose page is no authorized party's."""
        if hdrs.COOKIE in request.headers and TICKET not in request and not self._shown_by_choice(request.headers):
            demand_origin(request, self._parties.get(identity.provider, ()))

    def template_of(self, request: web.Request) -> str:
        """The template of the route that this request matched, or `(none)`."""
        rule = self.rule_of(request)
        return rule.template if rule is not None else "(none)"

    def _notify(
        self, request: web.Request, rule: RouteRule | None, identity: Identity | None, error: Refusal, started: float
    ) -> None:
        """Pass a refusal to the listeners that record its kind: the log of denials, and the audit log."""
        decision = None
        request._state[REPORTED] = True
        for listener in self._denied:
            if listener.hears(known=identity is not None, status=error.status):
                decision = decision or denial(request, rule, identity, error, started, self._addresses)
                listener(decision)
