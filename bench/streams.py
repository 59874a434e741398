"""Live answers beside FastAPI with sse-starlette and Litestar: `make bench-streams`, or `python bench/streams.py`.

Each server has its streams on one CPU, and Postgres and the client of the streams share another. Every stream belongs to a user
of its own, in two shapes: `broadcast`, where all users are in one organisation and each event goes to all of them, the most
work for the server that reads rows anew for each caller; and `tenants`, where ten users are in an organisation, and an event
goes to these ten. docs/explanation/performance.md says how to read the tables.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from typing import Any

import stream_stage
from machine import Child
from stage import Stage, arguments
from stream_measure import beside, delivered, ended, grown, memory_kib, warm_up
from stream_stage import PEER_NAMES, PEERS, TEN, DirectWriter, PeerWriter, Writer, gatepost, peer, requests, watching
from stream_tables import streams_tables

QUICK = {"rounds": 3, "seconds": 1.0, "events": 5}


def main(words: list[str] | None = None) -> int:
    """Measure, write the file, print the tables; the exit status."""
    args = parse(words)
    if (problem := stream_stage.files(2 * max(args.sizes) + 500)) is not None:
        print(f"streams: {problem}", file=sys.stderr)
        return 1
    print(streams_tables(measured(args)))
    return 0


def parse(words: list[str] | None) -> argparse.Namespace:
    parser = arguments(__doc__)
    parser.add_argument("--quick", action="store_true", help="few rounds and events: less than eight minutes in all")
    parser.add_argument("--sizes", default="1,100,1000,5000", help="numbers of streams, separated by commas")
    parser.add_argument("--events", type=int, default=20, help="at each number of streams; each goes to all of them")
    parser.add_argument("--held", type=int, default=1000, help="streams that are signed out, and that others are measured beside")
    parser.add_argument("--servers", default="gatepost,fastapi,litestar", help="separated by commas")
    args = parser.parse_args(words)
    if args.quick:
        vars(args).update({name: min(value, vars(args)[name]) for name, value in QUICK.items()})
    args.sizes = sorted(map(int, args.sizes.split(",")))
    args.servers = args.servers.split(",")
    if unknown := set(args.servers) - {"gatepost", *PEER_NAMES}:
        parser.error(f"no such server: {', '.join(sorted(unknown))}")
    if set(args.servers) - {"gatepost"} and not PEERS.exists():
        parser.error("the peers are not installed: make bench-streams (or --servers gatepost)")
    return args


def measured(args: argparse.Namespace) -> dict[str, Any]:
    """Everything as plain data: `facts`, `rows` (a server with a number of streams each), `same`, `ends`, `beside`."""
    result: dict[str, Any] = {"kind": "streams", "rows": [], "ends": [], "same": None, "beside": None}
    with Stage(args) as stage:
        result["facts"] = stage.facts() | {"events at each size": str(args.events)}
        progress("signing tokens")
        for name in args.servers:
            with writing(stage, name) as (child, writer):
                shapes(stage, result, name, name, child, writer)
            done(args, result, f"{name}: up to {args.sizes[-1]} streams")
        if "gatepost" in args.servers:
            only_here(stage, result)
    return result


def done(args: argparse.Namespace, result: dict[str, Any], text: str) -> None:
    """Save the figures so far, so that a failure later loses none of them, and say what was measured."""
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")
    progress(text)


def shapes(stage: Stage, result: dict[str, Any], name: str, label: str, child: Child, writer: Writer) -> None:
    """Add the rows of one server in both shapes."""
    args = stage.args
    for shape, sizes in (("broadcast", args.sizes), ("tenants", [size for size in args.sizes if size % TEN == 0])):
        if sizes:
            opening = requests(stage, name, sizes[-1], shape=shape)
            for row in grown(stage, label, child, writer, opening, sizes, args.events, shape):
                result["rows"].append(row)
                done(args, result, f"  {label}, {shape}: {row['streams']} streams")


def only_here(stage: Stage, result: dict[str, Any]) -> None:
    """What the peers cannot do: several processes, ends. And streams of one caller, and other requests beside streams."""
    args = stage.args
    opening = requests(stage, "gatepost", max(args.sizes[-1], args.held))
    with two_workers(stage) as (child, writer):
        shapes(stage, result, "gatepost", "gatepost, two processes", child, writer)
        result["ends"].append({"processes": 2, **ended(stage, child, writer, args.held, 10_000)})
        done(args, result, "two processes")
    with writing(stage, "gatepost") as (child, writer):
        assert isinstance(writer, DirectWriter)
        result["same"] = of_one_caller(stage, child, writer, opening[:1] * args.held)
        result["ends"].append({"processes": 1, **ended(stage, child, writer, args.held, 20_000)})
        done(args, result, "one caller, and the end of streams")
    with gatepost(stage) as quiet, gatepost(stage) as held:
        result["beside"] = beside(stage, quiet, held, opening[: args.held], args.rounds, args.seconds)
        done(args, result, "other requests beside idle streams")


def of_one_caller(stage: Stage, child: Child, writer: DirectWriter, opening: list[bytes]) -> dict[str, Any]:
    """The same as a row of `grown`, for streams that all belong to one caller, so that each row is read once for all of them."""
    warm_up(stage, child, writer, opening[:100])
    before = memory_kib(child.pid)
    with watching(stage, child, opening) as client:
        client.open(len(opening))
        held = memory_kib(child.pid)
        row = delivered(stage, child, client, writer, len(opening), stage.args.events)
    per_stream = {f"{name}_kib": (held[name] - before[name]) / len(opening) for name in held}
    return {"server": "gatepost, one caller", "shape": "broadcast", "streams": len(opening), **per_stream, **row}


@contextlib.contextmanager
def writing(stage: Stage, name: str) -> Any:
    """(the server, who writes rows that its streams hear of)."""
    with gatepost(stage) if name == "gatepost" else peer(stage, name) as child:
        writer = DirectWriter(stage) if name == "gatepost" else PeerWriter(child.port)
        try:
            yield child, writer
        finally:
            writer.close()


@contextlib.contextmanager
def two_workers(stage: Stage) -> Any:
    """The same with two workers of Gatepost."""
    with gatepost(stage, workers=2) as child:
        writer = DirectWriter(stage)
        try:
            yield child, writer
        finally:
            writer.close()


def progress(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
