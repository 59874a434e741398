"""The gate: every request passes here, and none goes on until it is known who is calling and whether they may.

It decides on the route that the router chose and on the access declared there, never on the text of a path.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from typing import Final

from aiohttp import hdrs, web

from ..auth.access import check
from ..auth.caller import caller_key
from ..auth.identity import IDENTITY, CredentialRejected, Identity
from ..auth.revocation import Revocations
from ..http.client_address import ClientAddress
from ..http.errors import ApiError, BadRequest, Forbidden, ServiceUnavailable, TooManyRequests, Unauthorized, Unavailable
from ..http.stamp import OPENED
from ..plugins.providers import LoadedProvider, credential_headers
from ..rate_limits.addresses import AddressLimit
from ..rate_limits.callers import LEASE, CallerLimit
from ..rate_limits.concurrency import Concurrency
from ..routing.table import RouteRule
from ..telemetry.decisions import DenialListener
from ..telemetry.log import log_failure
from ..telemetry.metrics import Metrics
from .deadline import within
from .denials import denial
from .idempotency import KEY, once

_SLUG: Final = re.compile(r"[a-z]+(?:-[a-z]+){0,6}\Z")
_HANDLERS_WORD: Final = Forbidden("handler")


class Gate:
    """Asks the providers in the operator's order, one await at a time."""

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
        caller_limit: CallerLimit | None = None,
        address_limit: AddressLimit | None = None,
    ) -> None:
        """`denied` are told of every request that is turned away."""
        self._rules = dict(rules)
        self._asked = list(providers)
        self._credentials = credential_headers(providers)
        self._seconds = provider_seconds
        self._revocations = revocations
        self._told, self._limited = metrics.authentications, metrics.limited
        self._denied, self._concurrency = denied, concurrency
        self._addresses, self._caller_limit, self._address_limit = addresses, caller_limit, address_limit

    async def admit(self, request: web.Request, match: web.UrlMappingMatchInfo) -> web.StreamResponse:
        """The answer of the handler that `match` leads to, if this caller may have it. Raises what stands in the way."""
        rule = self._rules.get(match.route)
        if rule is not None and rule.public:
            request[OPENED] = True  # the credentials of a public route are never read
            return await match.handler(request)
        started = time.perf_counter()
        identity: Identity | None = None
        try:
            shown = self._shown(request)
            limit = self._address_limit
            if limit is None or not limit.refusals:
                identity = self._recall(request)
            else:
                identity = limit.recall(request, self._addresses.of(request), self._recall)
            if identity is None:
                identity = await self._identify(request, shown)
                if limit is not None:
                    limit.remember(request.headers)
            if self._revocations.denies(identity):
                raise Unauthorized("session-revoked")
            if self._caller_limit is not None:
                request[LEASE] = self._caller_limit.take(identity) or await self._caller_limit.ask(identity)
            if rule is None:  # no such path or method; were it anything else, a route that we do not know stays shut
                raise match.http_exception or web.HTTPNotFound
            check(rule.access, identity, match)
            caller = caller_key(identity)
            if not self._concurrency.enter(caller):
                await self._wait_for_turn(identity, caller)
        except (ApiError, web.HTTPException) as error:
            if isinstance(error, TooManyRequests):
                self._limited["address" if identity is None else error.reason or "caller"] += 1
            if self._address_limit is not None and isinstance(error, Unauthorized) and error.reason != "credential-missing":
                self._address_limit.refused(request.headers, self._addresses.of(request))
            self._tell(request, rule, identity, error, started)
            raise
        request[IDENTITY] = identity
        try:
            if request.method == hdrs.METH_POST and KEY in request.headers:
                response = await once(request, match.handler, rule.template)
            else:
                response = await match.handler(request)
        except (Forbidden, web.HTTPForbidden) as error:
            self._tell(request, rule, identity, error if isinstance(error, Forbidden) else _HANDLERS_WORD, started)
            raise
        finally:
            self._concurrency.leave(caller)
        if response.status == 403:
            self._tell(request, rule, identity, _HANDLERS_WORD, started)
        return response

    async def _wait_for_turn(self, identity: Identity, caller: str) -> None:
        await self._concurrency.wait(caller)
        try:
            if self._revocations.denies(identity):  # access may have ended while the request waited
                raise Unauthorized("session-revoked")
        except BaseException:
            self._concurrency.leave(caller)
            raise

    def rule_of(self, request: web.Request) -> RouteRule | None:
        """The plan of the route that this request took; None where it took none (a preflight, an unknown path)."""
        match = request._match_info
        return self._rules.get(match.route) if match is not None else None

    def _shown(self, request: web.Request) -> int:
        """How many credentials the headers show: 0 or 1. Raises the 400 for two."""
        headers = request.headers
        shown = 0
        for name in self._credentials:
            if name in headers:
                values = headers.getall(name)
                shown += len(values)
                if "" in values and name != hdrs.AUTHORIZATION:
                    shown -= values.count("")  # a proxy or a client that has no key may send the header all the same
        if shown > 1:
            raise BadRequest("credentials-ambiguous")
        return shown

    def _recall(self, request: web.Request) -> Identity | None:
        """The caller, where the first provider that may know these headers knows them from memory. Nobody is passed over."""
        headers = request.headers
        for one in self._asked:
            if one.may_know(headers):
                if one.recall is None:
                    return None
                try:
                    found = one.recall(request)
                except CredentialRejected as rejected:
                    raise self._rejected(one.name, rejected) from None
                except Exception:
                    return None  # `authenticate` is asked, and will tell what is wrong
                if not isinstance(found, Identity):
                    return None
                self._told[one.known] += 1
                return found
        return None

    async def _identify(self, request: web.Request, shown: int) -> Identity:
        for one in self._asked:
            if not one.may_know(request.headers):
                continue
            identity = await self._ask(one, request)
            if identity is not None:
                self._told[one.known] += 1
                return identity
        self._told["none", "rejected" if shown else "missing"] += 1
        if shown:
            raise Unauthorized("credential-rejected", "no provider takes this kind of credential")
        raise Unauthorized("credential-missing")

    def _rejected(self, name: str, rejected: CredentialRejected) -> Unauthorized:
        self._told[name, "rejected"] += 1
        return Unauthorized(_slug(rejected.reason), f"{name}: {rejected.detail}")

    async def _ask(self, one: LoadedProvider, request: web.Request) -> Identity | None:
        """One provider's answer. Whatever is not one of the three answers is an outage, never the next one's turn."""
        try:
            identity = await within(self._seconds, one.authenticate(request))
            if identity is None or isinstance(identity, Identity):
                return identity
            raise TypeError(f"authenticate returned a {type(identity).__name__}")
        except CredentialRejected as rejected:
            raise self._rejected(one.name, rejected) from None
        except Unavailable as outage:
            self._told[one.name, "unavailable"] += 1
            log_failure("provider unavailable", outage, provider=one.name, why=str(outage))
            raise ServiceUnavailable(outage.retry_after) from None
        except Exception as error:
            self._told[one.name, "unavailable"] += 1
            log_failure("provider failed", error, provider=one.name)
            raise ServiceUnavailable from None

    def _tell(
        self,
        request: web.Request,
        rule: RouteRule | None,
        identity: Identity | None,
        error: ApiError | web.HTTPException,
        started: float,
    ) -> None:
        listeners = [one for one in self._denied if one.hears(known=identity is not None, status=error.status)]
        if not listeners:
            return
        decision = denial(request, rule, identity, error, started, self._addresses)
        for listener in listeners:
            listener(decision)


def _slug(reason: object) -> str:
    """A plugin's reason, if it is a slug at all."""
    return reason if isinstance(reason, str) and _SLUG.match(reason) else "credential-rejected"
