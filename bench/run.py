"""What Gatepost costs beside a bare, unprotected server: `make bench`, or `python bench/run.py`.

Both servers run at the same time on a CPU of their own (the first one), Postgres and the loader on the second. In each round
each case is measured on each of them, one after the other, and each round begins with another case. What is told is ratios of
the same round: they hold on another machine, microseconds do not. docs/explanation/performance.md says how to read them.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import statistics
import sys
from pathlib import Path
from typing import Any

import machine
import stream_stage
from cases import CASES, Requests, exchange, needed, summary, verify_answers
from issuer import request, user
from machine import Child
from stage import Stage, add_keys, arguments, fill
from stats import ratio
from stream_measure import beside
from tables import run_tables
from writes import UNAUDITED, audited, writing

from providers.api_key.key_format import make


def main(words: list[str] | None = None) -> int:
    """Measure, print the tables, write the file; the exit status."""
    args = parse(words)
    result = measured(args)
    print(run_tables(result))
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")
    return 0


def parse(words: list[str] | None) -> argparse.Namespace:
    parser = arguments(__doc__)
    parser.add_argument("--users", type=int, default=1000, help="callers, each with a token of their own")
    parser.add_argument("--rows", type=int, default=20, help="of each user")
    parser.add_argument("--keys", type=int, default=100, help="API keys of either kind")
    parser.add_argument("--new-tokens", type=int, default=1500, help="used once each, in each round")
    parser.add_argument("--only", metavar="CASES", help=f"separated by commas; of {', '.join(CASES)}")
    parser.add_argument("--streams", type=int, default=1000, help="idle ones, beside which rows are read; 0: leave that out")
    parser.add_argument("--workers", type=int, default=2, help="beside one worker; 0: leave that out")
    parser.add_argument("--starts", type=int, default=3, help="how often the start is timed; 0: leave that out")
    args = parser.parse_args(words)
    chosen = args.only.split(",") if args.only else list(CASES)
    if unknown := set(chosen) - set(CASES):
        parser.error(f"no such case: {', '.join(sorted(unknown))}")
    args.cases = needed(chosen)
    return args


def measured(args: argparse.Namespace) -> dict[str, Any]:
    """Everything as plain data: `facts`, `rows` (one for each measurement), `summary`, `workers`, `memory`, `start`."""
    with Stage(args) as stage:
        fill(stage, args.users, args.rows)
        managed = asyncio.run(add_keys(stage.postgres, args.keys))
        static = [make("production") for _ in range(args.keys)]
        requests = Requests(stage.issuer, args.users, static, managed, args.new_tokens)
        with stage.limit() as limit, stage.gatepost(keys=static) as gatepost:
            verify(stage, limit, gatepost, requests)
            servers = {"limit": limit, "gatepost": gatepost, UNAUDITED: gatepost}
            warm(stage, servers, requests)
            memory = {name: machine.memory_mib(child.pid) for name, child in servers.items()}
            rows = rounds(stage, servers, requests)
            memory["at the end"] = machine.memory_mib(gatepost.pid)
        result = {
            "kind": "run",
            "facts": stage.facts(),
            "args": _plain(args),
            "rows": rows,
            "summary": summary(rows),
            "memory": memory,
        }
        if args.streams:
            result["streams"] = beside_streams(stage, args.rows)
        if args.workers > 1:
            result["workers"] = several_workers(stage, requests)
        if args.starts:
            result["start"] = starts(stage)
        return result


def verify(stage: Stage, limit: Child, gatepost: Child, requests: Requests) -> None:
    """Right answers of both; and a row is audited exactly where it should be. Raises AssertionError."""
    args, postgres = stage.args, stage.postgres
    first = user(requests.users)
    for server, child in (("limit", limit), (UNAUDITED, gatepost), ("gatepost", gatepost)):
        with writing(postgres, server, first):
            before = audited(postgres)
            verify_answers(child.port, requests, args.cases, args.rows, locked=child is gatepost)
            written = 3 * sum(bool(CASES[name].body) for name in args.cases)
            noted = audited(postgres) - before
            assert noted == (written if server == "gatepost" else 0), (server, noted)


def _around(stage: Stage, case: str, server: str, requests: Requests) -> contextlib.AbstractContextManager[None]:
    """What is around a measurement of this case."""
    if not CASES[case].body:
        return contextlib.nullcontext()
    return writing(stage.postgres, server, user(requests.users))


def warm(stage: Stage, servers: dict[str, Child], requests: Requests) -> None:
    """Every token is known afterwards, every connection open, every statement prepared."""
    for name in stage.args.cases:
        for which, child in servers.items():
            if name != "new token" and which in CASES[name].servers:
                sent = requests.of(name)
                with _around(stage, name, which, requests):
                    stage.load(child, sent, count=max(1000, 2 * len(sent)), expect=CASES[name].expect)


def rounds(stage: Stage, servers: dict[str, Child], requests: Requests) -> list[dict[str, Any]]:
    """Interleaved and rotated, so that neither an hour's noise nor an order favours anybody."""
    args, rows = stage.args, []
    for number in range(args.rounds):
        verify = verify_us(stage)
        order = args.cases[number % len(args.cases) :] + args.cases[: number % len(args.cases)]
        for name in order:
            case, sent = CASES[name], requests.of(name)
            names = case.servers
            for which in names[number % len(names) :] + names[: number % len(names)]:
                how = {"count": len(sent)} if case.credential == "new" else {"seconds": args.seconds}
                with _around(stage, name, which, requests):
                    got = stage.measure(servers[which], sent, expect=case.expect, **how)
                rows.append({"case": name, "server": which, "round": number, "verify_us": verify, **got})
                _progress(f"round {number + 1}/{args.rounds}: {name}, {which}")
    return rows


def verify_us(stage: Stage) -> float:
    """One bare verification, on the CPU of the servers while they have nothing to do."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {stage.server_cpu})
    try:
        return stage.issuer.verify_us()
    finally:
        os.sched_setaffinity(0, before)


def beside_streams(stage: Stage, rows: int) -> dict[str, Any]:
    """`GET /api/data` on a server that holds idle streams, each of another caller, and on one that holds none."""
    args = stage.args
    if (problem := stream_stage.files(2 * args.streams + 500)) is not None:
        raise RuntimeError(problem)
    opening = stream_stage.requests(stage, "gatepost", args.streams)
    with stream_stage.gatepost(stage) as quiet, stream_stage.gatepost(stage) as held:
        for child in (quiet, held):
            status, body = exchange(child.port, request("/api/data", stage.issuer.token(0)))
            assert (status, len(json.loads(body))) == (200, rows), (status, body[:200])
        return beside(stage, quiet, held, opening, args.rounds, args.seconds, "/api/data")


def several_workers(stage: Stage, requests: Requests) -> dict[str, Any]:
    """One worker against several, on the same CPUs, without the database; the loaders have to share them, one on each.

    `throughput` is what a client sees. `by_cpu` is what the same workers could do if the loaders ran elsewhere: the CPU time
    per answer of the one, through that of the busiest of the several. `shares` are the several's parts of their CPU time.
    """
    args = stage.args
    cpus = set(sorted(os.sched_getaffinity(0))[: args.workers])
    sent, found = requests.of("me"), []
    with stage.gatepost() as one, stage.gatepost({"workers": args.workers}, cpu=cpus) as several:
        children = sorted(set(machine.tree(several.pid)) - {several.pid})
        for at, pid in enumerate(children):
            machine.pin(pid, {sorted(cpus)[at % len(cpus)]})
        for child in (one, several):
            stage.load(child, sent, count=4 * len(sent), connections=128)
        for number in range(args.rounds):
            row: dict[str, Any] = {"round": number}
            for name, which, pids in (("one", one, [one.pid]), ("several", several, children)):
                before = [machine.cpu_now([pid]) for pid in pids]
                where = cpus if name == "several" else {stage.load_cpu}
                rps = stage.load_from_each(which, sent, where, seconds=args.seconds, connections=128 // len(where))
                spent = [machine.cpu_between(was, machine.cpu_now([pid])) for was, pid in zip(before, pids, strict=True)]
                row[name] = {"rps": rps, "us": [one / (rps * args.seconds) * 1e6 for one in spent]}
            found.append(row)
            _progress(f"round {number + 1}/{args.rounds}: {args.workers} workers")
    shares = [[us / sum(row["several"]["us"]) for us in row["several"]["us"]] for row in found]
    return {
        "workers": args.workers,
        "throughput": ratio((row["several"]["rps"], row["one"]["rps"]) for row in found),
        "by_cpu": ratio((row["one"]["us"][0], max(row["several"]["us"])) for row in found),
        "shares": [statistics.median(part) for part in zip(*shares, strict=True)],
        "rows": found,
    }


def starts(stage: Stage) -> dict[str, Any]:
    """Seconds from the start of the process until it says that it serves, with an embedded Postgres of its own."""
    seconds = []
    for _ in range(stage.args.starts + 1):
        env = {"GATEPOST_DATA_FOLDER": str(stage.folder / "own"), "GATEPOST_PORT": "0", "GATEPOST_OPS_PORT": "0"}
        machine_wide = os.sched_getaffinity(0)
        child = Child([sys.executable, "-m", "server"], env, machine_wide, stage.folder / "start.log", cwd=_empty(stage))
        seconds.append(child.seconds_to_ready)
        child.stop()
        _progress(f"start {len(seconds)}: {seconds[-1]:.2f} s")
    return {"first": seconds[0], "warm": statistics.median(seconds[1:]), "all": seconds[1:]}


def _empty(stage: Stage) -> Path:
    """A folder without anybody's gatepost.toml."""
    folder = stage.folder / "nowhere"
    folder.mkdir(exist_ok=True)
    return folder


def _plain(args: argparse.Namespace) -> dict[str, Any]:
    """Without a password: `database_url` may hold one."""
    return {
        name: str(value) if isinstance(value, Path) else value for name, value in vars(args).items() if name != "database_url"
    }


def _progress(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
