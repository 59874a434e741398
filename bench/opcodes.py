"""Bytecode instructions and Python calls per request, which no other work on the machine changes: `python bench/opcodes.py`.

The real application in this process (bench/inproc.py) with production's settings; aiohttp's and asyncio's own Python code is
counted too, C code is not. Denials are not logged meanwhile: how many lines a second has is a matter of the clock.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
from collections import Counter
from types import CodeType, FrameType
from typing import Any

import inproc
import lock_gate
import uvloop
from inproc import Client
from issuer import garbage, request
from stage import Stage, arguments, fill

from server.telemetry import decisions

_USERS = 20
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


def main(words: list[str] | None = None) -> int:
    """Count, and print one line for each case, and the functions with the most instructions."""
    parser = arguments(__doc__)
    parser.add_argument("--top", type=int, default=0, help="so many functions of each case")
    args = parser.parse_args(words)
    args.repetitions = 1
    with Stage(args) as stage:
        fill(stage, _USERS, 1)
        uvloop.run(_counted(stage, args))
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


async def _count(client: Client, one: bytes, status: bytes) -> Count:
    count = Count()
    wrote = client._socket.wrote = asyncio.get_running_loop().create_future()
    sys.settrace(count)
    client._protocol.data_received(one)
    answer = await wrote
    await asyncio.sleep(0)
    sys.settrace(None)
    assert answer[9:12] == status, answer[:300]
    return count


def _print(name: str, counts: list[Count], top: int) -> None:
    """The median of the requests: a timer of the server may have run beside some of them."""
    total = statistics.median(sum(count.instructions.values()) for count in counts)
    calls = statistics.median(sum(count.calls.values()) for count in counts)
    print(f"{name}: {total:,.0f} bytecode instructions, {calls:.0f} calls")
    each = {code: statistics.median(count.instructions[code] for count in counts) for count in counts for code in count.calls}
    for code, number in sorted(each.items(), key=lambda one: -one[1])[:top]:
        print(f"  {number:5.0f}  {code.co_filename.rpartition('site-packages/')[2]}:{code.co_firstlineno} {code.co_qualname}")


if __name__ == "__main__":
    sys.exit(main())
