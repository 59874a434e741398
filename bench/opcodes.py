"""Bytecode instructions and Python calls per request, which no other work on the machine changes: `python bench/opcodes.py`.

The real application in this process (bench/inproc.py) with production's settings; aiohttp's and asyncio's own Python code is
counted too, C code is not. Denials are not logged meanwhile: how many lines a second has is a matter of the clock.

`me` of bench/limit.py is counted beside them, `me` while streams are open, and what one event of a broadcast costs: a row that
many streams receive, each of a user of its own.
"""

from __future__ import annotations

import argparse
import asyncio
import copy
import statistics
import sys
from collections import Counter
from types import CodeType, FrameType, SimpleNamespace
from typing import Any

import inproc
import limit
import lock_gate
import uvloop
from aiohttp import web
from inproc import Client
from issuer import garbage, request
from stage import Stage, arguments, fill
from stream_stage import DirectWriter, requests

from server.streams.live_changes import CHANGES
from server.telemetry import decisions

_USERS, _STREAMS, _EVENTS = 20, 64, 4
_OURS = (__file__, inproc.__file__)
_ME = "/api/me"


class Count:
    """What was executed, by function."""

    def __init__(self) -> None:
        self.instructions: Counter[CodeType] = Counter()
        self.calls: Counter[CodeType] = Counter()

    def __call__(self, frame: FrameType, event: str, argument: Any) -> Any:
        """To be given to sys.settrace."""
        code = frame.f_code
        if code.co_filename in _OURS:
            return None
        self.calls[code] += 1
        frame.f_trace_opcodes, frame.f_trace_lines = True, False

        def local(frame: FrameType, event: str, argument: Any) -> Any:
            if event == "opcode":
                self.instructions[code] += 1
            return local

        return local


class _Stream(Client):
    """A client that receives events after the head of its stream."""

    def next(self) -> asyncio.Future[bytes]:
        """Done when something is written."""
        wrote = self._socket.wrote = self._loop.create_future()
        return wrote


def main(words: list[str] | None = None) -> int:
    """Count, and print one line for each case, and the functions with the most instructions."""
    parser = arguments(__doc__)
    parser.add_argument("--top", type=int, default=0, help="so many functions of each case")
    args = parser.parse_args(words)
    args.repetitions = 1
    with Stage(args) as stage:
        fill(stage, _USERS, 1)
        uvloop.run(_counted(stage, args))
        _print("me of limit", uvloop.run(_of_limit()), args.top)
        beside, event = uvloop.run(_of_streams(stage))
        _print("me beside streams", beside, args.top)
        _print("event of a broadcast", [event], args.top, _STREAMS * _EVENTS)
    return 0


async def _counted(stage: Stage, args: argparse.Namespace) -> None:
    issuer, known = stage.issuer, [request(_ME, stage.issuer.token(n)) for n in range(_USERS)]
    forged = [request(_ME, issuer.forged(n)) for n in range(_USERS)]
    junk = [request(_ME, garbage(n)) for n in range(18)]
    new = [request(_ME, issuer.token(n)) for n in range(_USERS)]
    cases = {
        "me": (known, b"200"), "no token": ([request(_ME)] * _USERS, b"401"), "health": ([request("/api/health")] * _USERS, b"200"),
        "forged token": (forged, b"401"), "garbage": (junk, b"401"),
    }  # fmt: skip
    decisions._Bound.allows = lambda self: False  # type: ignore[method-assign]
    async with lock_gate.application(stage) as (_, client):
        for _ in range(3):
            for sent, status in cases.values():
                for one in sent:
                    await client.must(one, status)
        for name, (sent, status) in {**cases, "new token": (new, b"200")}.items():
            _print(name, [await _count(client, one, status) for one in sent], args.top)


async def _count(client: Client, one: bytes, status: bytes, count: Count | None = None) -> Count:
    count = count or Count()
    wrote = client._socket.wrote = asyncio.get_running_loop().create_future()
    sys.settrace(count)
    client._protocol.data_received(one)
    answer = await wrote
    await asyncio.sleep(0)
    sys.settrace(None)
    assert answer[9:12] == status, answer[:300]
    return count


async def _of_limit() -> list[Count]:
    """The same as `me`, of the bare server. Each connection is counted from its beginning: its task is in one frame."""
    app = web.Application()
    app.add_routes([web.get(_ME, limit.me)])
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    count = Count()
    sys.settrace(count)
    client = Client(runner)
    await asyncio.sleep(0)
    sys.settrace(None)
    counts = []
    for _ in range(_USERS):
        counts.append(copy.copy(await _count(client, request(_ME, number=1), b"200", count)))
        count.instructions, count.calls = Counter(), Counter()
    await runner.cleanup()
    return counts[1:]


async def _of_streams(stage: Stage) -> tuple[list[Count], Count]:
    """(`me` while streams are open, some rows that each stream receives: inserted in another thread, which is not counted)."""
    known = [request(_ME, stage.issuer.token(n)) for n in range(_USERS)]
    async with lock_gate.application(stage) as (app, first):
        await app[CHANGES].feed.wait()
        clients = [_Stream(SimpleNamespace(server=first._protocol._manager)) for _ in range(_STREAMS)]
        for client, opening in zip(clients, requests(stage, "gatepost", _STREAMS), strict=True):
            await client.must(opening, b"200")
        for one in 3 * known:
            await first.must(one, b"200")
        beside = [await _count(first, one, b"200") for one in known]
        writer = await asyncio.to_thread(DirectWriter, stage)
        count = Count()
        for number in range(2 + _EVENTS):  # the first two prepare statements, and are not counted
            arrived = [client.next() for client in clients]
            sys.settrace(count if number >= 2 else None)
            await asyncio.to_thread(writer.add, str(number))
            for one in arrived:
                await one
            sys.settrace(None)
        await asyncio.to_thread(writer.close)
        for client in clients:
            client.close()
        return beside, count


def _print(name: str, counts: list[Count], top: int, events: int = 1) -> None:
    """The median of the requests: a timer of the server may have run beside some of them. `events`: how many there were in each."""
    total = statistics.median(sum(count.instructions.values()) for count in counts) / events
    calls = statistics.median(sum(count.calls.values()) for count in counts) / events
    print(f"{name}: {total:,.0f} bytecode instructions, {calls:.0f} calls")
    each = {code: statistics.median(count.instructions[code] for count in counts) / events for count in counts for code in count.calls}
    for code, number in sorted(each.items(), key=lambda one: -one[1])[:top]:
        print(f"  {number:5.0f}  {code.co_filename.rpartition('site-packages/')[2]}:{code.co_firstlineno} {code.co_qualname}")


if __name__ == "__main__":
    sys.exit(main())
