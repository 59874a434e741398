"""The results as Markdown, for the terminal and for docs/explanation/performance.md alike."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from cases import CASES
from stats import RULE, Ratio, table
from stream_tables import streams_tables
from writes import UNAUDITED


def text_of(result: Mapping[str, Any]) -> str:
    """The tables of one result, whichever benchmark it is of."""
    return {"run": run_tables, "scale": scale_tables, "locks": locks_tables, "streams": streams_tables}[result["kind"]](result)


def run_tables(result: Mapping[str, Any]) -> str:
    """What run.py found."""
    args, facts = result["args"], _facts(result["facts"])
    how = f"{args['rounds']} rounds of {args['seconds']:g} s, {args['connections']} connections, {args['users']} callers, {args['rows']} rows each."
    parts = [facts, how, _ratios(result), _absolute(result["rows"])]
    if "streams" in result:
        parts.append(_beside(result["streams"]))
    if "workers" in result:
        parts.append(_workers(result["workers"]))
    memory = result["memory"]
    lines = [
        f"Memory of a warm worker: {memory['gatepost']:.0f} MiB (`limit`: {memory['limit']:.0f} MiB); "
        f"at the end, with all the new tokens remembered: {memory['at the end']:.0f} MiB."
    ]
    if "start" in result:
        start = result["start"]
        lines.append(
            f"From the start of the process to ready: {start['warm']:.2f} s with an embedded Postgres that was there before, "
            f"{start['first']:.2f} s with a new one."
        )
    return "\n\n".join([*parts, "\n".join(lines)])


def _ratios(result: Mapping[str, Any]) -> str:
    rows = []
    for name, found in result["summary"].items():
        case = CASES[name]
        against = {"limit": "`limit`", "me": "a cached token", UNAUDITED: "the same without audit"}.get(case.against, case.against)
        if case.base is not None:
            rows.append([name, f"{against}, beyond “{case.base}”", _said(found["verify"]), "", ""])
        else:
            rows.append([name, against, *(_said(found.get(which)) for which in ("server", "both", "p99"))])
    return table(["case", "against", "server CPU", "server + Postgres", "p99"], rows)


def _absolute(rows: Sequence[Mapping[str, Any]]) -> str:
    """Medians over the rounds: the absolute values behind the ratios."""
    lines = []
    for name, server in dict.fromkeys((row["case"], row["server"]) for row in rows):
        mine = [row for row in rows if (row["case"], row["server"]) == (name, server)]

        def middle(what: str, mine: list[Mapping[str, Any]] = mine) -> float:
            return float(statistics.median(row[what] for row in mine))

        lines.append([f"{name}: {server}", f"{middle('rps'):,.0f}", f"{middle('p50_ms'):.2f}", f"{middle('p99_ms'):.2f}",
                      f"{middle('server_us'):.1f}", f"{middle('postgres_us'):.1f}", f"{middle('foreign'):.0%}"])  # fmt: skip
    verify = statistics.median(row["verify_us"] for row in rows)
    head = ["case: server", "req/s", "p50 ms", "p99 ms", "server µs", "Postgres µs", "others"]
    return f"{table(head, lines)}\n\nOne bare RSA-2048 verification: {verify:.1f} µs."


def _beside(found: Mapping[str, Any]) -> str:
    return (
        f"`GET /api/data` while {found['streams']:,} streams are idle, against the same server without: server CPU "
        f"{_said(found['server_us'])}, server + Postgres {_said(found['both_us'])}, p99 {_said(found['p99_ms'])}."
    )


def _workers(found: Mapping[str, Any]) -> str:
    shares = " : ".join(f"{share:.0%}" for share in found["shares"])
    return (
        f"{found['workers']} workers against one (`/api/me`): throughput {_said(found['throughput'])} with the loaders on the same "
        f"CPUs; by the CPU time of the busiest worker {_said(found['by_cpu'])}; they share the load {shares}."
    )


def scale_tables(result: Mapping[str, Any]) -> str:
    """What scale.py found."""
    parts = [_facts(result["facts"]), f"The word for a curve: {RULE}"]
    parts += _loaded(result.get("loaded", []))
    for curve in result["curves"]:
        first = curve["points"][0]
        if "ms" in first:
            rows = [[f"{point['size']:,}", f"{point['ms']:.2f}", f"{point['ms'] / first['ms']:.2f}"] for point in curve["points"]]
            parts.append(f"**{curve['name']}**: {curve['word']}.\n\n{table([curve['of'], 'ms', 'ratio'], rows)}")
            continue
        rows = [
            [f"{point['size']:,}", f"{point['server_us']:.1f}", f"{point['server_us'] / first['server_us']:.2f}",
             f"{point['postgres_us']:.1f}", f"{point['postgres_us'] / first['postgres_us']:.2f}" if first["postgres_us"] >= 1 else ""]
            for point in curve["points"]
        ]  # fmt: skip
        head = [curve["of"], "server µs", "ratio", "Postgres µs", "ratio"]
        parts.append(f"**{curve['name']}**: {curve['word']}.\n\n{table(head, rows)}")
    if result["neighbours"]:
        rows = [[one["beside"], f"{one['p50_ms']:.2f}", f"{one['p99_ms']:.2f}"] for one in result["neighbours"]]
        parts.append(
            f"**The others**, at {result['neighbour_rate']:g} requests a second:\n\n{table(['beside', 'p50 ms', 'p99 ms'], rows)}"
        )
    return "\n\n".join(parts)


def _loaded(sizes: Sequence[Mapping[str, Any]]) -> list[str]:
    """What was in the database at each size of the part `large`."""
    if not sizes:
        return []
    names = [name for name in sizes[0] if name not in ("size", "bytes")]
    rows = [[f"{one['data']:,}", *(f"{one[name]:,}" for name in names[1:]), f"{one['bytes'] / 2**30:.1f}"] for one in sizes]
    return [f"The database of the part `large`:\n\n{table([*names, 'GiB'], rows)}"]


def locks_tables(result: Mapping[str, Any]) -> str:
    """What locks.py found."""
    rows = [[one["lock"], _us(one["server_us"]), _share(one, "server", result), _us(one["postgres_us"]), _share(one, "postgres", result)]
            for one in result["locks"]]  # fmt: skip
    whole = result["request"]
    in_postgres = "" if whole["postgres_us"] is None else f", and {whole['postgres_us']:.1f} µs in Postgres"
    said = (
        f"A whole `GET /api/data` of {result['rows']} rows takes {whole['server_us']:.1f} µs of CPU in the server's process, the "
        f"client's socket not counted{in_postgres}. Shares are of these; a negative price is a gain. One bare "
        f"RSA-2048 verification takes {result['verify_us']:.1f} µs."
    )
    start, verify = "(the gate for ", result["verify_us"]
    gates = [(one["lock"][len(start) : -1], one["server_us"]) for one in result["locks"] if one["lock"].startswith(start)]
    units = "; ".join(f"{name} {us / verify:.2f}" for name, us in gates)
    head = ["lock", "server µs", "share", "Postgres µs", "share"]
    parts = [_facts(result["facts"]), said, table(head, rows), f"The gate in units of one bare verification: {units}."]
    return "\n\n".join([*parts, *_checks(result.get("token", []), verify)])


def _checks(checks: Sequence[Mapping[str, Any]], verify: float) -> list[str]:
    if not checks:
        return []
    whole = {"check": "all of them", "us": sum(one["us"] for one in checks)}
    rows = [[one["check"], f"{one['us']:.2f}", f"{one['us'] / verify:.2f}"] for one in [*checks, whole]]
    return ["A token never seen before, check by check, by itself:", table(["check", "server µs", "bare verifications"], rows)]


def _us(value: float | None) -> str:
    return "" if value is None else f"{value:+.2f}"


def _share(one: Mapping[str, Any], what: str, result: Mapping[str, Any]) -> str:
    value, whole = one[f"{what}_us"], result["request"][f"{what}_us"]
    return "" if value is None else f"{value / whole:+.1%}"


def _facts(facts: Mapping[str, str]) -> str:
    return "; ".join(f"{name} {value}" for name, value in facts.items()) + "."


def _said(found: Iterable[float] | None) -> str:
    """A ratio, also one that comes from a file, where it is a list."""
    return "" if found is None else str(Ratio(*found))
