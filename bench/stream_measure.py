"""What bench/streams.py measures of one server: memory of idle streams, cost and delay of events, ends, others beside them."""

from __future__ import annotations

import contextlib
import itertools
import statistics
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import machine
from issuer import request
from machine import Child
from stage import Stage
from stats import ratio
from stream_stage import ORG, TEN, Client, DirectWriter, Writer, requests, tenant_of, watching

LONGEST = 30.0  # seconds that an event, or an end, is waited for
_names = itertools.count(1_000_000)


def memory_kib(pid: int) -> dict[str, float]:
    """Resident (`rss`) and proportional (`pss`) memory of the whole tree, in KiB."""
    found = {"rss": 0.0, "pss": 0.0}
    for one in machine.tree(pid):
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{one}/smaps_rollup").read_text().splitlines():
                if (name := line.partition(":")[0].lower()) in found:
                    found[name] += float(line.split()[1])
    return found


def grown(
    stage: Stage, server: str, child: Child, writer: Writer, opening: Sequence[bytes], sizes: Sequence[int], events: int, shape: str
) -> Iterator[dict[str, Any]]:
    """More and more streams on one server; at each size: memory per stream, and what events cost that go to all of them
    (`broadcast`), or to the TEN of one organisation (`tenants`)."""
    warm_up(stage, child, writer, requests(stage, server.partition(",")[0], 100))
    with watching(stage, child, opening) as client:
        before, opened = memory_kib(child.pid), 0
        for size in sizes:
            seconds = client.open(size - opened)
            opened = size
            time.sleep(1)
            held = memory_kib(child.pid)
            row = {"server": server, "shape": shape, "streams": size, "opening_ms": seconds * 1e3,
                   **{f"{name}_kib": (held[name] - before[name]) / size for name in held}}  # fmt: skip
            yield row | delivered(stage, child, client, writer, size, events, shape)


def warm_up(stage: Stage, child: Child, writer: Writer, opening: Sequence[bytes]) -> None:
    """Open and close a few streams, so that what a server needs once is not counted for the streams that follow."""
    with watching(stage, child, opening) as client:
        client.open(len(opening))
        write(client, writer, len(opening), 3)
    time.sleep(1)


def delivered(
    stage: Stage, child: Child, client: Client, writer: Writer, streams: int, events: int, shape: str = "broadcast"
) -> dict[str, Any]:
    """Events one after the other: their delay in milliseconds, and CPU microseconds for each one delivered."""
    tenants = [ORG]
    if shape == "tenants":
        tenants, streams, events = [tenant_of(at) for at in range(0, streams, TEN)], TEN, events * TEN
    postgres = [stage.postgres.pid] if stage.postgres.pid is not None else []
    write(client, writer, streams, len(tenants[:50]), tenants)
    before, database = machine.cpu_now([child.pid]), machine.cpu_now(postgres)
    busy, began = machine.busy_seconds(), time.monotonic()
    committed = write(client, writer, streams, events, tenants)
    took = time.monotonic() - began
    spent = machine.cpu_between(before, machine.cpu_now([child.pid]))
    in_postgres = machine.cpu_between(database, machine.cpu_now(postgres))
    told = client.ask("report", committed)
    if not told["arrived"]:
        raise RuntimeError(f"no event has arrived on {streams} streams")
    return {
        "events": told["arrived"], "lost": events * streams - told["arrived"], "cpu_us": spent / told["arrived"] * 1e6,
        "postgres_us": in_postgres / told["arrived"] * 1e6,
        "p50_ms": told["p50"] * 1e3, "p99_ms": told["p99"] * 1e3, "max_ms": told["max"] * 1e3,
        "busy": (machine.busy_seconds() - busy) / took,
    }  # fmt: skip


def write(client: Client, writer: Writer, streams: int, events: int, tenants: Sequence[str] = (ORG,)) -> dict[str, float]:
    """Write so many rows, each once the last one has arrived on as many streams; {name: when its COMMIT was sent}."""
    committed, expected = {}, 0
    client.ask("report", {})
    for number in range(events):
        name = str(next(_names))
        committed[name] = writer.add(name, tenants[number % len(tenants)])
        expected += streams
        end = time.monotonic() + LONGEST
        while client.ask("arrived") < expected and time.monotonic() < end:
            time.sleep(min(0.2, 0.01 + streams / 50_000))
    return committed


def ended(stage: Stage, child: Child, writer: DirectWriter, number: int, first: int) -> dict[str, Any]:
    """All sessions of so many streams are signed out in one transaction; how long the streams live on. `first`: see `requests`."""
    sql = "SELECT gatepost_revoke('session', $1, NULL, now() + interval '1 hour')"
    opening = requests(stage, "gatepost", number, first)
    sessions = [(f"sess_{100 * at:024d}",) for at in range(first, first + number)]
    with watching(stage, child, opening) as client:
        client.open(len(opening))
        committed = writer.commit(sql, sessions)
        end = time.monotonic() + LONGEST
        while (told := client.ask("ends", committed))["open"] and time.monotonic() < end:
            time.sleep(0.05)
    return {"streams": len(opening), **told}


def beside(
    stage: Stage, quiet: Child, held: Child, opening: Sequence[bytes], rounds: int, seconds: float, path: str = "/api/me"
) -> dict[str, Any]:
    """What a GET costs on a server that holds idle streams, as a ratio to one that holds none."""
    sent = [request(path, stage.issuer.token(at)) for at in range(200)]
    found: dict[str, list[tuple[float, float]]] = {"server_us": [], "p99_ms": [], "both_us": []}
    with watching(stage, held, opening) as client:
        client.open(len(opening))
        for child in (quiet, held):
            stage.load(child, sent, count=2000)
        for number in range(rounds):
            order = [quiet, held] if number % 2 else [held, quiet]
            got = {child.port: stage.measure(child, sent, seconds=seconds) for child in order}
            for one in got.values():
                one["both_us"] = one["server_us"] + (one["postgres_us"] if stage.postgres.pid is not None else 0.0)
            for name, pairs in found.items():
                pairs.append((got[held.port][name], got[quiet.port][name]))
        still = client.ask("ends", 0)["open"]
    if still != len(opening):
        raise RuntimeError(f"of {len(opening)} streams {still} are still open")
    return {
        "streams": len(opening),
        **{name: ratio(pairs) for name, pairs in found.items()},
        "absolute_us": statistics.median(one for one, _ in found["server_us"]),
    }
