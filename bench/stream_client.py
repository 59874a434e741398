"""The client of bench/streams.py: a process of its own that holds many event streams open and takes the time of each event.

`python bench/stream_client.py JOB` where JOB is a MessagePack file of a Watch. It answers each line of JSON that it reads with
another one, and ends with its input:

    {"open": NUMBER}                 opens that many more streams
    {"arrived": null}                how many events have arrived that were not reported
    {"report": {NAME: TIME, ...}}    the latencies of the events with these names, which began at these times; forgets the others
    {"ends": TIME}                   how many streams have ended, why, and how long after this time

All times are of the machine's monotonic clock, so that those of several processes can be compared.
"""

from __future__ import annotations

import json
import re
import select
import socket
import sys
import time
from array import array
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
from stats import percentile

EVENT = re.compile(rb'"name":\s*"(\d+)"')
END = re.compile(rb'event: end\r?\n(?:[a-z]+: [^\n]*\n)*?data: \{"reason":\s*"([a-z-]+)"\}')
OPENING = 32  # streams that are being opened at once
LONGEST = 120.0  # seconds for opening them
TAIL = 4096


class Watch(msgspec.Struct):
    """Where the streams are, and the request that opens each."""

    port: int
    requests: list[bytes]


class Streams:
    """Open streams, what arrived on them, and how they ended."""

    def __init__(self, job: Watch) -> None:
        self._port = job.port
        self._requests = iter(job.requests)
        self._poll = select.epoll()
        self._sockets: dict[int, socket.socket] = {}
        self._tails: dict[int, bytes] = {}
        self._arrivals: dict[bytes, array[float]] = {}
        self._reasons: dict[int, str] = {}
        self._ended: list[tuple[float, str]] = []

    def run(self) -> None:
        """Take what arrives and answer questions until the input ends."""
        self._poll.register(0, select.EPOLLIN)
        while True:
            for fd, _ in self._poll.poll():
                if fd:
                    self._take(fd)
                    continue
                line = sys.stdin.buffer.raw.readline()  # type: ignore[attr-defined]  # unbuffered: epoll must see what is left
                if not line:
                    return
                ((word, value),) = json.loads(line).items()
                print(json.dumps(getattr(self, word)(value)), flush=True)

    def open(self, number: int) -> dict[str, Any]:
        """Open them, a few at a time; returns how many got which status, and the seconds that it took."""
        began, waiting, statuses, left = time.monotonic(), set[int](), Counter[str](), number
        while (waiting or left) and time.monotonic() < began + LONGEST:
            while left and len(waiting) < OPENING:
                left -= 1
                waiting.add(self._connect(next(self._requests)))
            for fd, _ in self._poll.poll(1):
                if fd not in waiting:
                    if fd:
                        self._take(fd)
                    continue
                head = self._tails[fd] = self._tails[fd] + self._sockets[fd].recv(65536)
                if b"\r\n\r\n" in head or not head:
                    waiting.discard(fd)
                    statuses[head[9:12].decode() or "closed"] += 1
        return {"statuses": statuses, "seconds": time.monotonic() - began}

    def _connect(self, request: bytes) -> int:
        one = socket.create_connection(("127.0.0.1", self._port), timeout=30)
        one.sendall(request)
        one.setblocking(False)
        fd = one.fileno()
        self._sockets[fd], self._tails[fd] = one, b""
        self._poll.register(fd, select.EPOLLIN)
        return fd

    def _take(self, fd: int) -> None:
        """Note what has arrived on one stream, and when."""
        try:
            data = self._sockets[fd].recv(65536)
        except ConnectionError:
            data = b""
        now = time.monotonic()
        if not data:
            self._poll.unregister(fd)
            self._sockets.pop(fd).close()
            self._ended.append((now, self._reasons.pop(fd, "none")))
            return
        text = self._tails[fd] + data
        last = 0
        for found in EVENT.finditer(text):
            self._arrivals.setdefault(found[1], array("d")).append(now)
            last = found.end()
        if (end := END.search(text, last)) is not None:
            self._reasons[fd] = end[1].decode()
        last = max(last, text.rfind(b"\n\n"), text.rfind(b"\r\n\r\n"))
        self._tails[fd] = text[last:][-TAIL:]

    def arrived(self, _: None) -> int:
        return sum(map(len, self._arrivals.values()))

    def report(self, began: dict[str, float]) -> dict[str, Any]:
        """`arrived`, and the p50, p99 and max of the latencies in seconds. All other events are forgotten."""
        late = sorted(at - since for name, since in began.items() for at in self._arrivals.get(name.encode(), ()))
        self._arrivals.clear()
        if not late:
            return {"arrived": 0}
        return {"arrived": len(late), "p50": percentile(late, 0.5), "p99": percentile(late, 0.99), "max": late[-1]}

    def ends(self, since: float) -> dict[str, Any]:
        """`ended`, `open`, the `reasons`, and `seconds` from `since` to the last end."""
        last = max((at for at, _ in self._ended), default=since)
        reasons = Counter(reason for _, reason in self._ended)
        return {"ended": len(self._ended), "open": len(self._sockets), "seconds": last - since, "reasons": reasons}


if __name__ == "__main__":
    Streams(msgspec.msgpack.decode(Path(sys.argv[1]).read_bytes(), type=Watch)).run()
