"""Credentials of the cluster's drill that have ended: they are tried at every server, and judged whether that held in time."""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import aiohttp

if TYPE_CHECKING:
    from cluster_canary import Canary

FAILED = (aiohttp.ClientError, ConnectionError, OSError, TimeoutError)


@dataclass
class Ended:
    """A credential that was ended: when that was acknowledged, and where and when requests with it were accepted after that."""

    kind: str
    credential: str
    at: float
    accepted: list[tuple[float, str]] = field(default_factory=list)
    """(when the request was sent, the server)."""
    feeds: list[str] = field(default_factory=list)
    """How old the revocations of a server were that accepted it more than a second later, as its metrics say."""
    refused: bool = False


class Load(Protocol):
    """What is read of the drill's load: the servers, what has ended, and whether the drill is over."""

    servers: list[str]
    ended: list[Ended]
    stopping: bool


async def use(session: aiohttp.ClientSession, server: str, credential: str) -> int:
    with contextlib.suppress(*FAILED):
        async with session.get(f"{server}/api/me", headers={"Authorization": f"Bearer {credential}"}) as answer:
            await answer.read()
            return answer.status
    return 0


async def watch(load: Load, session: aiohttp.ClientSession, one: Ended) -> None:
    """Ask every server until all refuse, for at most five seconds; they are asked again at the end of the drill."""
    load.ended.append(one)
    while not load.stopping and time.monotonic() < one.at + 5:
        if await look(load, session, one):
            return
        await asyncio.sleep(0.05)


async def look(load: Load, session: aiohttp.ClientSession, one: Ended) -> bool:
    """Use an ended credential at every server, note when it was accepted; whether all refused it."""
    sent = time.monotonic()
    statuses = await asyncio.gather(*(use(session, server, one.credential) for server in load.servers))
    for server in (server for server, status in zip(load.servers, statuses, strict=True) if status == 200):
        one.accepted.append((sent, server))
        if sent > one.at + 1:
            one.feeds.append(await _feed(session, server))
    one.refused = set(statuses) == {401}
    return one.refused


async def _feed(session: aiohttp.ClientSession, server: str) -> str:
    """What the server's metrics say of the age of its revocations."""
    with contextlib.suppress(*FAILED):
        async with session.get(f"{server.rpartition(':')[0]}:9090/metrics") as answer:
            return " ".join(re.findall(r"^gatepost_revocation_lag_seconds\S* \S+", await answer.text(), re.MULTILINE))
    return ""


def too_late(one: Ended, canary: Canary, since: float, writable: float) -> str | None:
    """What is known of the last request that should have been refused, or None: it was sent later than a second, and what this
    machine was late itself, after the end was acknowledged and writes worked (again, at `writable`, after a failure at `since`)."""
    for sent, server in reversed(one.accepted):
        begin = one.at if sent < since or one.at > writable else writable
        allowed = 1 + canary.late(begin, sent)
        if sent > begin + allowed:
            return (f"{one.kind}: ended {one.at - since:.2f} s after the failure, accepted by {server} {sent - since:.2f} s after it, "
                    f"writes worked after {writable - since:.2f} s, allowed {allowed:.2f} s; refused at last: {one.refused}; "
                    + "; ".join(one.feeds[-3:]))  # fmt: skip
    return None
