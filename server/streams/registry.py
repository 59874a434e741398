"""All live answers of one process: opened within the bounds, and ended when the access that opened them ends."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Final, Protocol

from aiohttp import web

from ..auth.caller import caller_key
from ..auth.identity import IDENTITY, Identity
from ..auth.revocation import Revocations
from ..database.request_transaction import JOINED
from ..http.calls_tools import NESTED
from ..http.errors import ApiError, BadRequest, ServiceUnavailable, Unauthorized, Unavailable
from ..telemetry.log import log_failure
from .clock import Clock
from .ends import DRAINING, GONE, SESSION_REVOKED, End, expired
from .lease import Lease, log_end
from .places import Places
from .recheck import Recheck, subjects_of
from .settings import StreamBounds
from .watching import Watching

_LIVE: Final = web.RequestKey("live", bool)
_KEYS: Final = "keys"
"""The kind of a revocation that reports a change to any of an owner's keys."""
_INDEXED: Final = frozenset({"session", "jti", "user", "subject", "organization", "membership", "role"})


class Admission(Protocol):
    """What the registry needs of the gate (server.gate.admission.Gate)."""

    @property
    def release(self) -> Callable[[web.Request], Callable[[], None]]:
        """Stops counting a request among those in progress of its caller; returns the function that counts it again."""

    def check_origin(self, request: web.Request, identity: Identity) -> None:
        """Raise Unauthorized for a cookie without the `Origin` of an authorized party."""

    def refuse(self, request: web.Request, error: ApiError) -> None:
        """Count and log a refusal by a bound."""

    def template_of(self, request: web.Request) -> str:
        """The template of the route that this request matched."""


class Streams:
    """The open live answers. `opened` counts them by kind, `ended` by reason."""

    def __init__(
        self,
        bounds: StreamBounds,
        revocations: Revocations,
        recheck: Recheck,
        admission: Admission,
        client_of: Callable[[web.Request], str | None],
    ) -> None:
        self.bounds, self._revocations = bounds, revocations
        self._admission, self._client_of = admission, client_of
        self.opened: Counter[str] = Counter()
        self.ended: Counter[str] = Counter()
        self.draining = False
        self._places = Places(bounds)
        self._by_subject: dict[tuple[str, str], set[Lease]] = {}
        self._watching = Watching(recheck, self.end, lambda lease, moment: self._clock.expire_at(lease, moment))
        self._clock = Clock(bounds, self.end, self._watching.look, self._end_unknowable)
        self.wrote = self._clock.wrote
        revocations.listeners.append(self.revoked)

    @property
    def number(self) -> int:
        """How many live answers are open."""
        return self._clock.number_open

    def open(self, request: web.Request, kind: str) -> Lease:
        """Open a live answer for a request that the gate has admitted. Raises an ApiError or Unavailable if it is refused."""
        identity = request.get(IDENTITY)
        if JOINED in request:  # its transaction, and so its connection, would be held as long as the answer lasts
            raise BadRequest("idempotency-key-unsupported")
        if _LIVE in request:
            raise RuntimeError("a request is answered by one stream or socket")
        if NESTED in request:
            raise TypeError("a tool cannot answer with a stream or a socket")
        if identity is not None:
            self._admission.check_origin(request, identity)  # a second time: the gate may not know that this route streams
            self._check(identity)
        caller = caller_key(identity) if identity is not None else self._client_of(request)
        try:
            if self.draining:
                raise ServiceUnavailable(for_log="draining")
            self._places.check(caller, known=identity is not None, number=self._clock.number)
        except ApiError as error:
            self._admission.refuse(request, error)
            raise
        if request.transport is None:
            raise ServiceUnavailable(for_log="client-gone")
        lease = Lease(request, identity, kind, self._admission.template_of(request), caller, asyncio.get_running_loop().time())
        request[_LIVE] = True
        self._add(lease)
        return lease

    def _check(self, identity: Identity) -> None:
        """Raise Unauthorized if access has ended since the request was admitted."""
        if self._revocations.denies(identity):
            raise Unauthorized("session-revoked")
        if identity.expires_at is not None and identity.expires_at <= time.time():
            raise Unauthorized(expired(identity).reason)

    def _add(self, lease: Lease) -> None:
        self._places.take(lease)
        if lease.identity is not None:
            for subject in subjects_of(lease.identity):
                self._by_subject.setdefault(subject, set()).add(lease)
        lease.release = self._admission.release(lease.request)
        body = lease.request.content if lease.kind == "events" else None
        lease.request.protocol.begin_live(partial(self._lost, lease), body)  # type: ignore[attr-defined]
        self.opened[lease.kind] += 1
        self._clock.add(lease)
        self._watching.add(lease)

    def end(self, lease: Lease, end: End) -> None:
        """End a live answer once: send the client the reason, close the connection, and cancel the handler."""
        if lease.end is not None:
            return
        lease.end = end
        self._forget(lease)
        try:
            lease.finish(end)
        except Exception as error:  # this runs within timers and the feed of revocations, which must go on
            log_failure("a stream could not be ended as it should", error, route=lease.route)
            lease.transport.abort()
        self._clock.ended(lease)

    def _lost(self, lease: Lease) -> None:
        """Take note that the connection has ended."""
        lease.lost = True
        self.end(lease, GONE)

    def left(self, lease: Lease, end: End) -> None:
        """Take note that the handler has left the block, because of `end` if the lease has not ended before."""
        lease.forget()
        if lease.end is None:
            lease.end = end
            self._forget(lease)
        self._clock.left(lease)
        lease.release()

    def _forget(self, lease: Lease) -> None:
        self._places.leave(lease)
        if lease.identity is not None:
            for subject in subjects_of(lease.identity):
                leases = self._by_subject[subject]
                leases.discard(lease)
                if not leases:
                    del self._by_subject[subject]
        self._watching.discard(lease)
        assert lease.end is not None
        self.ended[lease.end.reason] += 1
        log_end(lease, asyncio.get_running_loop().time() - lease.opened_at)

    def drain(self) -> None:
        """End all live answers now, and open no more: the server is about to stop."""
        self.draining = True
        for lease in self._clock.leases():
            self.end(lease, DRAINING)

    async def drain_at_shutdown(self, app: web.Application) -> None:
        """Drain, as a callback for `on_shutdown`, which every runner calls before it waits for requests."""
        self.drain()

    def revoked(self, subjects: set[tuple[str, str]]) -> None:
        """End the live answers that these new revocations concern; an empty set means that any may be new."""
        kinds = {kind for kind, _ in subjects}
        wide = not subjects or not kinds <= _INDEXED | {_KEYS}
        affected = self._clock.leases() if wide else {one for each in subjects for one in self._by_subject.get(each, ())}
        for lease in affected:
            try:
                if lease.identity is not None and self._revocations.denies(lease.identity):
                    self.end(lease, SESSION_REVOKED)
            except Unavailable:
                self.end(lease, DRAINING)
        if wide or _KEYS in kinds:
            self._watching.look_at_keys(subjects)

    def _end_unknowable(self) -> None:
        """While the revocations are too old, end the live answers whose caller's requests would be a 503."""
        if self._revocations.stale:
            self.revoked(set())
