"""Tries the hosts of a Postgres URL in turn within one time limit, and pauses between attempts while none is reachable.

asyncpg's own list of hosts has one limit for all of them together, so a first host that drops packets would use up the time
of the one that serves. This module imports no database library: it is given the function that opens one connection.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, Generic, TypeVar
from urllib.parse import parse_qs, urlsplit, urlunsplit
from weakref import WeakKeyDictionary

from .urls import trusts_system_roots, usable

C = TypeVar("C")
FIRST_PAUSE: Final = 0.05
LONGEST_PAUSE: Final = 0.5
NEW_SECONDS: Final = 1.0


class Hosts(Generic[C]):
    """Opens connections to a host that serves, trying the one that served last first."""

    def __init__(
        self,
        connect: Callable[..., Awaitable[C]],
        arguments: Mapping[str, Any],
        seconds: float,
        *,
        elsewhere: Callable[[Exception], bool],
        renewed: Callable[[], str | None] = lambda: None,
    ) -> None:
        """`connect(**arguments, timeout=...)` opens one; `seconds` is for all hosts together; `elsewhere(error)` is true if
        another host may succeed after this error; `renewed()` returns the URL as it is now, after the server has refused its
        role or password. Raises UrlMistake for a mistake in the URL `dsn` that can be named."""
        self._connect, self._seconds, self._may_try_another = connect, seconds, elsewhere
        self._arguments, self._renewed = dict(arguments), renewed
        self._hosts = self._of(arguments.get("dsn"))
        self._opened_at: WeakKeyDictionary[C, float] = WeakKeyDictionary()
        self._failed = False
        self._trying = False
        self._pause = FIRST_PAUSE
        self._not_before = 0.0

    async def open(self) -> C:
        """Returns a new connection. Raises what `connect` raises, and ConnectionError at once after a recent failure.

        While the database is unreachable there is one attempt at a time, with pauses of 0.05 to 0.5 seconds: other callers
        fail at once, and a Postgres that is starting up is not overloaded.
        """
        if self._failed and (self._trying or time.monotonic() < self._not_before):
            raise ConnectionError("the database could not be reached a moment ago")
        self._trying, began = True, time.monotonic()
        try:
            connection = await self._with_renewal()
        except BaseException as error:
            # A caller that gave up early (its client disconnected) says nothing about the database.
            if isinstance(error, Exception) or time.monotonic() - began > self._seconds / 4:
                self._note_failure()
            raise
        finally:
            self._trying = False
        self._failed, self._pause = False, FIRST_PAUSE
        self._opened_at[connection] = time.monotonic()
        return connection

    def is_new(self, connection: C) -> bool:
        """Whether it was opened within the last second: opening another one now would find no better host."""
        return time.monotonic() - self._opened_at.get(connection, 0.0) < NEW_SECONDS

    def _of(self, dsn: str | None) -> list[dict[str, Any]]:
        """The arguments for each host of the URL `dsn`. Raises UrlMistake."""
        if not dsn:  # a socket: what the environment says of TLS is meant for other connections
            return [{"ssl": False, "target_session_attrs": "any", **self._arguments}]
        arguments = self._arguments | ({"ssl": True} if trusts_system_roots(dsn) else {})
        return [{**arguments, "dsn": one} for one in split(usable(dsn))]

    def _renew(self, error: Exception) -> bool:
        """Use the URL as it is now. Whether there is another one than that whose role or password was refused."""
        if not (getattr(error, "sqlstate", None) or "").startswith("28"):
            return False
        dsn = self._renewed()
        if dsn is None or dsn == self._arguments.get("dsn"):
            return False
        self._arguments["dsn"], self._hosts = dsn, self._of(dsn)
        return True

    async def _with_renewal(self) -> C:
        try:
            return await self._in_turn()
        except Exception as error:
            if not self._renew(error):
                raise
        return await self._in_turn()

    async def _in_turn(self) -> C:
        share = self._seconds / len(self._hosts)
        *others, last = tuple(self._hosts)
        for arguments in others:
            try:
                return await self._connect(**arguments, timeout=share)
            except Exception as error:
                if not self._may_try_another(error):
                    raise
            self._hosts.remove(arguments)  # from now on the next host is tried first, and this one last
            self._hosts.append(arguments)
        return await self._connect(**last, timeout=share)

    def _note_failure(self) -> None:
        if self._failed:
            self._pause = min(self._pause * 2, LONGEST_PAUSE)
        self._failed = True
        self._not_before = time.monotonic() + self._pause


def split(dsn: str) -> list[str]:
    """Returns a URL for each host of `dsn`; only `dsn` if it has one host, or if asyncpg must see all hosts to choose."""
    try:
        parts = urlsplit(dsn)
        query = parse_qs(parts.query)
    except ValueError:
        return [dsn]  # not a URL: connecting reports it
    login, at, where = parts.netloc.rpartition("@")
    hosts = where.split(",")
    if len(hosts) == 1 or query.get("target_session_attrs") == ["prefer-standby"]:
        return [dsn]
    return [urlunsplit(parts._replace(netloc=f"{login}{at}{host}")) for host in hosts]


def of_primary(dsn: str) -> dict[str, Any]:
    """asyncpg's arguments for `dsn` where only the primary will do: a standby among several hosts is passed over, unless
    the URL itself says which host it means."""
    several = len(split(dsn)) > 1 and "target_session_attrs" not in dsn
    return {"dsn": dsn, "target_session_attrs": "primary"} if several else {"dsn": dsn}
