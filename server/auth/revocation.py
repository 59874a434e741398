"""Revoked sessions, users and keys whose tokens have not expired: a set in memory, checked on every request.

`revocation_feed` keeps it fresh. While a worker's feed is older than the allowed staleness, requests that depend on the set
get a 503. The set is bounded: by the schema, in which one tenant has a bounded number of rows,
and by `MOST_ENTRIES` here.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from aiohttp import web

from ..http.errors import Unavailable
from ..telemetry.log import LOG, log_failure
from .identity import Identity
from .names import with_org_prefix

MOST_ENTRIES: Final = 500_000
"""Beyond this number the older half is replaced by one rule: every credential issued until now is refused."""
SUBJECT: Final = "subject"
"""The key in `Identity.derived` of the token's subject, as revocations name it: where it is not the user, or where no session
is known, so that an issuer that ends a session by its id and its subject ends this token too."""
_DEPENDENT: Final = frozenset({"session_token", "access_token"})
"""The token types that an event may end at any moment: with a stale set they are a 503."""


REVOCATION_FAILURES: Final = web.AppKey("revocation_failures", Counter)
"""How often a revocation could not be recorded, by its kind."""


def revocation_failed(request: web.Request, kind: str, error: BaseException) -> None:
    """Raise the alarm where an end of access could not be recorded: an `error` in the log, and a metric.

    `kind` is what was to end, such as `session` or `api_key`. The caller of this then raises `Unavailable`, so that the end is
    asked for again.
    """
    request.app[REVOCATION_FAILURES][kind] += 1
    log_failure("access could not be ended: it goes on until this is repeated", error, kind=kind)


class Revocations:
    """Revoked sessions, tokens, users, memberships, organisations, roles and keys, and how fresh that knowledge is.

    A subject is revoked for credentials issued at or before a moment (Unix seconds); infinity: for all of them.
    """

    def __init__(self, *, max_staleness: float, clock: Callable[[], float] = time.monotonic, most: int = MOST_ENTRIES) -> None:
        """`max_staleness` in seconds; `most` entries are held."""
        self._max_staleness = max_staleness
        self._clock = clock
        self._most = most
        self._entries: dict[tuple[str, str], float] = {}
        self._ends: dict[tuple[str, str], float] = {}
        self._tokens: set[str] = set()  # the subjects of the kind `jti`, so that a request pays for it only if there are any
        self._all_before = -math.inf
        self._read_at = -math.inf
        self.listeners: list[Callable[[set[tuple[str, str]]], None]] = []
        """Called after each reading that brought something, with its (kind, subject) pairs; none: any may have been read."""

    @property
    def age(self) -> float:
        """Seconds since the table was last read; infinity before the first time."""
        return self._clock() - self._read_at

    @property
    def stale(self) -> bool:
        return self.age > self._max_staleness

    def __len__(self) -> int:
        return len(self._entries)

    def replace(self, rows: Iterable[Mapping[str, Any]], read_at: float) -> None:
        """Replace all entries by the table as of `read_at` (by the clock, before the query was sent)."""
        fresh = self.successor()
        fresh.add(rows, read_at)
        self.become(fresh)

    def successor(self) -> Revocations:
        """Returns an empty set with the same bounds, for `become`: it is filled while this one is still in use."""
        return Revocations(max_staleness=self._max_staleness, clock=self._clock, most=self._most)

    def become(self, other: Revocations) -> None:
        """Replace all entries by those of `other`, and be as fresh as it is. Nothing may add to `other` afterwards."""
        self._entries, self._ends, self._tokens = other._entries, other._ends, other._tokens
        self._all_before, self._read_at = max(self._all_before, other._all_before), other._read_at
        if self._entries:
            self._tell(set(self._entries) if other._all_before == -math.inf else set())

    def add(self, rows: Iterable[Mapping[str, Any]], read_at: float | None, now: float = 0.0) -> None:
        """Add the rows written since the last reading.

        `read_at` is by the clock, before the query was sent; None while more rows of the same reading are to come.
        `now` is the time of the reading (Unix seconds).
        """
        read: set[tuple[str, str]] = set()
        for row in rows:
            subject = row["kind"], row["subject"]
            read.add(subject)
            self._entries[subject] = _moment(row["issued_before"])
            self._ends[subject] = _moment(row["expires_at"])
            if row["kind"] == "jti":
                self._tokens.add(row["subject"])
        if read_at is not None:
            self._read_at = read_at
        if len(self._entries) > self._most:
            self._drop_older_half(now)
            self._tell(set())
        elif read:
            self._tell(read)

    def _drop_older_half(self, now: float) -> None:
        LOG.error("more revocations than can be held: credentials issued until now are refused")
        self._all_before = max(self._all_before, now)
        kept = list(self._entries)[-(self._most // 2) :]
        self._entries = {subject: self._entries[subject] for subject in kept}
        self._ends = {subject: self._ends[subject] for subject in kept}
        self._tokens = {name for kind, name in kept if kind == "jti"}

    def _tell(self, read: set[tuple[str, str]]) -> None:
        for listener in self.listeners:
            listener(read)

    def forget(self, now: float) -> None:
        """Remove the entries that have expired at `now` (Unix seconds)."""
        for subject in [subject for subject, ends in self._ends.items() if ends <= now]:
            del self._entries[subject], self._ends[subject]
            if subject[0] == "jti":
                self._tokens.discard(subject[1])

    def revoked(self, kind: str, subject: str, issued_at: float | None) -> bool:
        """Whether the subject is revoked for a credential of `issued_at` (Unix seconds; None: every revocation applies)."""
        before = max(self._entries.get((kind, subject), -math.inf), self._all_before)
        return before != -math.inf and (issued_at is None or issued_at <= before)

    def denies(self, identity: Identity) -> bool:
        """Whether the caller's session, token, user, impersonator, organisation, membership or role is revoked.

        Raises Unavailable if stale.
        """
        if identity.token_type in _DEPENDENT and self._clock() - self._read_at > self._max_staleness:
            raise Unavailable("the revocation feed is stale")
        if not self._entries and self._all_before == -math.inf:
            return False
        issued, user, org = identity.issued_at, identity.user_id, identity.org_id
        if identity.session_id is not None and ("session", identity.session_id) in self._entries:
            return True
        if self._tokens and identity.token_id in self._tokens:
            return True
        if user is not None:
            if self.revoked("user", user, issued):
                return True
        elif (program := identity.program) is not None and self.revoked("user", program, issued):
            return True  # the command `revoke` names it like a user
        if identity.impersonator is not None and self.revoked("user", identity.impersonator, issued):
            return True
        if identity.token_type == "access_token" and SUBJECT in identity.derived and self._subject_ended(identity):
            return True
        if org is None:
            return False
        if self.revoked("organization", org, issued) or (user and self.revoked("membership", f"{user} {org}", issued)):
            return True
        role = identity.org_role  # a credential may have it without its prefix; a revocation names it in full
        return isinstance(role, str) and self.revoked("role", with_org_prefix(role), issued)

    def _subject_ended(self, identity: Identity) -> bool:
        subject, issued = identity.derived[SUBJECT], identity.issued_at
        ended = identity.session_id is None and self.revoked("subject", subject, issued)
        return ended or self.revoked("user", subject, issued)


def _moment(value: Any) -> float:
    return math.inf if value is None else float(value.timestamp())
