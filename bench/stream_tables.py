"""The results of bench/streams.py as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from stats import Ratio, table

TARGET_STREAMS, TARGET_MS, TARGET_KIB = 1000, 50.0, 40.0
LEFT_OUT = """What is left out, and by which server:

- FastAPI with sse-starlette and Litestar verify the token when the stream opens, and never again: their streams outlive `exp`,
  sign-out and demotion. They broadcast one encoded row to every stream of the organisation: no row is read again, and no policy is
  asked. They broadcast within a process: a second process, or another service that writes, would need a broker. There is no
  bound per caller, a slow client is not cut, and Litestar sends no keepalives.
- Gatepost does all of this; the delay of its events includes the way from Postgres (NOTIFY) and reading the row under the scope of each
  caller. That of the peers begins in the process that broadcasts, just before its COMMIT."""


def streams_tables(result: Mapping[str, Any]) -> str:
    """What streams.py found."""
    rows = [*result["rows"], *([result["same"]] if result["same"] else [])]
    facts = "; ".join(f"{name} {value}" for name, value in result["facts"].items()) + "."
    parts = [facts, LEFT_OUT, table(HEAD, map(_row, rows)), *_targets(rows)]
    parts += [
        f"Sign-out of the sessions of {one['streams']:,} streams in one transaction, {_processes(one['processes'])}: {one['ended']:,} had "
        f"ended {one['seconds'] * 1e3:.0f} ms after the COMMIT ({_reasons(one['reasons'])}), {one['open']:,} were still open."
        for one in result["ends"]
    ]
    if (found := result["beside"]) is not None:
        parts.append(
            f"`GET /api/me` beside {found['streams']:,} idle streams, against the same server without: server CPU "
            f"{Ratio(*found['server_us'])} ({found['absolute_us']:.0f} µs), p99 {Ratio(*found['p99_ms'])}."
        )
    return "\n\n".join(parts)


HEAD = ["server", "shape", "streams", "RSS KiB each", "Pss KiB each", "CPU µs per event", "Postgres µs", "p50 ms", "p99 ms", "lost", "CPUs busy"]


def _row(one: Mapping[str, Any]) -> list[str]:
    return [one["server"], one["shape"], f"{one['streams']:,}", *_memory(one), f"{one['cpu_us']:.1f}",
            f"{one['postgres_us']:.1f}", f"{one['p50_ms']:.1f}", f"{one['p99_ms']:.1f}", f"{one['lost']:,}", f"{one['busy']:.1f}"]  # fmt: skip


def _memory(one: Mapping[str, Any]) -> list[str]:
    """Known for the first shape only: the later one uses the memory that the streams of the first have left."""
    return [f"{one[name]:.1f}" if one["shape"] == "broadcast" else "" for name in ("rss_kib", "pss_kib")]


def _targets(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Which target each shape meets, in one process; nothing if the size of the target was not measured."""
    said = []
    for shape in ("broadcast", "tenants"):
        here = {one["server"]: one for one in rows if (one["shape"], one["streams"]) == (shape, TARGET_STREAMS)}
        if (ours := here.pop("gatepost", None)) is None:
            continue
        text = (
            f"**`{shape}`, {TARGET_STREAMS:,} streams in one process.** p99 from commit to event {ours['p99_ms']:.0f} ms (target "
            f"{TARGET_MS:.0f}: {_met(ours['p99_ms'] <= TARGET_MS)})"
        )
        if shape == "broadcast":  # the later shape uses the memory that the streams of the first have left
            text += f"; {ours['pss_kib']:.0f} KiB for an idle stream (target {TARGET_KIB:.0f}: {_met(ours['pss_kib'] <= TARGET_KIB)})"
        peers = [one for name, one in here.items() if not name.startswith("gatepost")]
        if peers:
            cheapest = min(peers, key=lambda one: one["cpu_us"])
            times = ours["cpu_us"] / cheapest["cpu_us"]
            text += (
                f"; {ours['cpu_us']:.0f} µs of server CPU for an event, {times:.2f} times those of {cheapest['server']} (target: no "
                f"peer cheaper: {_met(times <= 1)}), and {ours['postgres_us']:.0f} µs of Postgres, which peers hardly use"
            )
        said.append(f"{text}.{_arithmetic(ours) if shape == 'broadcast' else ''}")
    return said


def _arithmetic(one: Mapping[str, Any]) -> str:
    """Why the last of many streams hears late: the work for all of them is done one after the other."""
    number, server, postgres = one["streams"], one["cpu_us"], one["postgres_us"]
    return (
        f" The last stream hears of a change when the work for all {number:,} is done: {number:,} times {server:.0f} µs = "
        f"{number * server / 1e3:.0f} ms on the server's CPU, and meanwhile {number:,} times {postgres:.0f} µs = "
        f"{number * postgres / 1e3:.0f} ms in Postgres on the other, where the client also takes its {number:,} events. The longer "
        "of the two is the least that p99 can be."
    )


def _met(it: bool) -> str:
    return "met" if it else "not met"


def _processes(number: int) -> str:
    return "one process" if number == 1 else f"{number} processes"


def _reasons(reasons: Mapping[str, int]) -> str:
    return ", ".join(f"{number:,} with {name}" for name, number in reasons.items()) or "none"
