"""Identifies the caller of a request: asks the providers in the operator's order, one await at a time."""

from __future__ import annotations

import re
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Final, TypeAlias

from aiohttp import hdrs, web
from multidict import MultiMapping, istr

from ..auth.identity import Identity
from ..auth.rejected import CredentialRejected
from ..http.errors import BadRequest, ServiceUnavailable, Unauthorized, Unavailable
from ..http.streaming import TICKET
from ..http.ticket_parameter import take_ticket
from ..plugins.providers import LoadedProvider, credential_headers
from ..telemetry.log import log_failure
from ..telemetry.metrics import Metrics
from .deadline import within
from .unknown_credentials import why_unknown

_SLUG: Final = re.compile(r"[a-z]+(?:-[a-z]+){0,6}\Z")
_ADDED_BY_BROWSERS: Final = frozenset({"basic", "digest", "negotiate", "ntlm"})
"""The schemes of `Authorization` for which a browser keeps a login, and sends it with requests of any page."""

Redeem: TypeAlias = Callable[[str | None, str], Coroutine[Any, Any, Identity | None]]
"""(ticket, path) -> the caller whom this ticket represents on this path, once; None for any other ticket."""


async def no_tickets(ticket: str | None, path: str) -> Identity | None:
    """Accept no ticket: used if no route streams."""
    return None


class NoCredential(Unauthorized):
    """The request shows no credential at all: no provider takes anything of it as its own."""

    def __init__(self) -> None:
        super().__init__("credential-missing")


class _Rejected(Unauthorized):
    """A provider has rejected the credential. The text for the log is made when it is asked for: few refusals are logged."""

    def __init__(self, provider: str, rejected: CredentialRejected) -> None:
        self._provider, self._rejected = provider, rejected
        super().__init__(_slug(rejected.reason), own=rejected.challenge, headers=rejected.headers)

    @property
    def for_log(self) -> str:
        """The provider, and the cause."""
        return f"{self._provider}: {self._rejected.detail}"

    @for_log.setter
    def for_log(self, text: str) -> None:
        """It follows from the rejection."""


class Identification:
    """Asks the providers. `shown`, then `recall`, then `identify` make one identification."""

    def __init__(
        self, providers: Sequence[LoadedProvider], seconds: float, metrics: Metrics, redeem: Redeem = no_tickets
    ) -> None:
        """`seconds` is the longest time for one provider's answer."""
        self._redeem = redeem
        self._asked = list(providers)
        self._credentials = credential_headers(providers)
        self._seconds, self._authentications = seconds, metrics.authentications
        self.challenges = ", ".join(one.challenge for one in providers if one.challenge)
        """The challenges of the providers, to be sent beside `Bearer`."""
        self._reads_cookies = any(name.lower() == "cookie" for one in providers for name in one.reads or ())
        self._reads_anything = any(one.reads is None for one in providers)
        self._read = tuple({name.lower(): istr(name) for one in providers for name in one.reads or ()}.values())

    def may_be_shown(self, headers: MultiMapping[str]) -> bool:
        """May these headers hold a credential? If not, no provider need be asked."""
        if self._reads_anything or (self._reads_cookies and hdrs.COOKIE in headers):
            return True
        for name in self._credentials:  # noqa: SIM110 - a generator for `any` costs as much as all the rest
            if name in headers:
                return True
        return False

    def nothing_is_read(self, headers: MultiMapping[str]) -> bool:
        """Do these headers hold nothing that any provider reads? Then none need be asked: the request shows no credential."""
        if self._reads_anything:
            return False
        for name in self._read:  # noqa: SIM110 - a generator for `all` costs as much as all the rest
            if name in headers:
                return False
        return True

    def shown_by_choice(self, headers: MultiMapping[str]) -> bool:
        """Does a header hold a credential that no browser adds by itself, as it adds cookies and the schemes of HTTP logins?"""
        return any(
            value and (name != hdrs.AUTHORIZATION or value.partition(" ")[0].lower() not in _ADDED_BY_BROWSERS)
            for name in self._credentials
            for value in headers.getall(name, ())
        )

    def shown(self, request: web.Request) -> int:
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

    def recall(self, request: web.Request) -> Identity | None:
        """The caller, if the first provider that may know these headers recalls one; None: `identify` must be called."""
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
                    return None  # `authenticate` is called, and reports what is wrong
                if not isinstance(found, Identity):
                    return None
                self._authentications[one.known] += 1
                return found
        return None

    async def identify(self, request: web.Request, shown: int) -> Identity:
        """The caller, by the first provider that takes the credential. `shown` is how many credentials the headers show.

        Raises Unauthorized (NoCredential where there is none) or ServiceUnavailable.
        """
        for one in self._asked:
            if not one.may_know(request.headers):
                continue
            identity = await self._ask(one, one.authenticate, request)
            if identity is not None:
                self._authentications[one.known] += 1
                return identity
        if shown:
            self._authentications["none", "rejected"] += 1
            raise Unauthorized("credential-rejected", why_unknown(request.headers, self._asked))
        raise NoCredential

    async def by_ticket(self, request: web.Request, shown: int, check_address: Callable[[web.Request], None]) -> Identity:
        """The caller whom the request's ticket represents, as known now. The ticket leaves the request's target.

        `shown`: as in `identify`. `check_address` raises where the client must wait, before the ticket is looked up.
        Raises BadRequest for another credential beside it, Unauthorized, ServiceUnavailable.
        """
        path, ticket = request.rel_url.path_safe, take_ticket(request)
        if shown:
            raise BadRequest("credentials-ambiguous")
        check_address(request)
        try:
            identity = await within(self._seconds, self._redeem(ticket, path))
        except (Unavailable, TimeoutError) as outage:
            log_failure("a ticket could not be looked up", outage)
            raise ServiceUnavailable(for_log=f"tickets: {str(outage) or 'took too long'}") from None
        provider = next((one for one in self._asked if identity is not None and one.name == identity.provider), None)
        if identity is None or provider is None:
            self._authentications["ticket", "rejected"] += 1
            raise Unauthorized("credential-rejected", "no such ticket for this path")
        if provider.recheck is not None and (identity.key_id is not None or identity.claims is None):
            now = await self._ask(provider, provider.recheck, identity)
            if now is None:
                self._authentications["ticket", "rejected"] += 1
                raise Unauthorized("credential-rejected", f"{provider.name}: it no longer knows the caller of this ticket")
            identity = now
        self._authentications[provider.known] += 1
        request[TICKET] = True
        return identity

    def _rejected(self, name: str, rejected: CredentialRejected) -> Unauthorized:
        self._authentications[name, "rejected"] += 1
        return _Rejected(name, rejected)

    async def _ask(self, one: LoadedProvider, ask: Callable[[Any], Coroutine[Any, Any, Any]], what: object) -> Identity | None:
        """One provider's answer. Anything but the three results is an outage, after which no other provider is asked."""
        try:
            identity = await within(self._seconds, ask(what))
            if identity is None or isinstance(identity, Identity):
                return identity
            raise TypeError(f"authenticate returned a {type(identity).__name__}")
        except CredentialRejected as rejected:
            raise self._rejected(one.name, rejected) from None
        except Unavailable as outage:
            self._authentications[one.name, "unavailable"] += 1
            log_failure("provider unavailable", outage, provider=one.name, why=str(outage))
            raise ServiceUnavailable(outage.retry_after, for_log=f"{one.name}: {outage}") from None
        except Exception as error:
            self._authentications[one.name, "unavailable"] += 1
            log_failure("provider failed", error, provider=one.name)
            raise ServiceUnavailable(for_log=f"{one.name}: {type(error).__name__}") from None


def _slug(reason: object) -> str:
    """A plugin's reason, if it is a slug at all."""
    return reason if isinstance(reason, str) and _SLUG.match(reason) else "credential-rejected"
