"""The results of bench/streams.py as Markdown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stats import Ratio, table

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
    parts = [facts, LEFT_OUT, table(HEAD, map(_row, rows))]
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


HEAD = ["server", "streams", "RSS KiB each", "Pss KiB each", "CPU µs per event", "Postgres µs", "p50 ms", "p99 ms", "lost", "CPUs busy"]


def _row(one: Mapping[str, Any]) -> list[str]:
    return [one["server"], f"{one['streams']:,}", f"{one['rss_kib']:.1f}", f"{one['pss_kib']:.1f}", f"{one['cpu_us']:.1f}",
            f"{one['postgres_us']:.1f}", f"{one['p50_ms']:.1f}", f"{one['p99_ms']:.1f}", f"{one['lost']:,}", f"{one['busy']:.1f}"]  # fmt: skip


def _processes(number: int) -> str:
    return "one process" if number == 1 else f"{number} processes"


def _reasons(reasons: Mapping[str, int]) -> str:
    return ", ".join(f"{number:,} with {name}" for name, number in reasons.items()) or "none"
