"""Log lines that a client can cause are limited, and the number of omitted lines is logged."""

from __future__ import annotations

import asyncio
import logging
import subprocess
import sys

import pytest
from kits import ROOT

from server.telemetry.line_limit import LineLimit


def line(message: str = "request refused", **fields: object) -> logging.LogRecord:
    record = logging.LogRecord("gatepost", logging.INFO, "", 0, message, (), None)
    record.fields = fields
    return record


def test_the_same_line_is_limited_and_the_next_says_how_many_are_missing() -> None:
    now = [0.0]
    limit = LineLimit(most=3, seconds=10, clock=lambda: now[0])
    assert [limit.filter(line()) for _ in range(8)] == [True] * 3 + [False] * 5
    assert limit.filter(line("another line"))
    now[0] = 10.0
    after = line(status=400)
    assert limit.filter(after)
    assert after.fields == {"status": 400, "left_out": 5}  # type: ignore[attr-defined]
    plain = line(status=400)
    assert limit.filter(plain)
    assert plain.fields == {"status": 400}  # type: ignore[attr-defined]


@pytest.mark.parametrize("message", ["request", "denied"])
def test_lines_with_a_limit_of_their_own_or_none_are_not_counted(message: str) -> None:
    limit = LineLimit(most=3)
    assert all(limit.filter(line(message)) for _ in range(50))


def test_the_number_of_different_lines_is_bounded() -> None:
    limit = LineLimit(most=1)
    assert sum(limit.filter(line(f"message {number}")) for number in range(5000)) == 1000


SERVER = """
import asyncio, sys
sys.path[:0] = ["tests"]
from kits.app import build_app, serving
from server.telemetry.log import start_logging

async def main():
    start_logging("json")
    async with serving(build_app()) as port:
        print(port, flush=True)
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)

asyncio.run(main())
"""


async def test_a_flood_of_malformed_heads_writes_few_lines() -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", SERVER, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    port = int(await process.stdout.readline())
    for _ in range(600):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"nonsense\r\n\r\n")
        assert b" 400 " in await reader.read()
        writer.close()
    _, error = await process.communicate(b"\n")
    assert 0 < error.count(b'"request refused"') <= 300
