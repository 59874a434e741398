"""`make drill-cluster`: break one part of the cluster after another under a constant load, and count what came of it.

deploy/cluster/ is started on this machine (as root in network namespaces). The exit status is 1 if a write that was acknowledged is
missing or was done twice, a row was another tenant's, an ended credential was accepted later than a second after writes worked
again (and what this machine itself was late), a client did not read what it had written, a live stream stayed silent, or an answer had an unexpected status. `--write`
puts the rows into docs/explanation/drills-cluster.md.
"""

from __future__ import annotations

import argparse
import asyncio
import re
import sys
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "deploy" / "cluster"))

import aiohttp
import asyncpg
from cluster import SERVERS, Cluster, missing
from cluster_canary import Canary
from cluster_ended import look, too_late
from cluster_faults import FAULTS, Fault, set_synchronous
from cluster_load import WRITERS, Load, actors
from issuer import ISSUER, PARTY, Issuer
from soak_actors import SECRET
from stats import table

PAGE = Path(__file__).resolve().parent.parent / "docs" / "explanation" / "drills-cluster.md"
HEAD = ["failure", "requests", "answered", "503", "lost", "missing", "twice", "foreign", "late", "stale", "silent", "writes work after"]
STEADY = 2.0
"""Seconds without a failed write after which writes work again."""


class Drill:
    """One cluster, one load, and the rows of the table."""

    def __init__(self, cluster: Cluster, load: Load, canary: Canary) -> None:
        self.cluster, self.load, self.canary = cluster, load, canary
        self.gone: set[str] = set()
        """Acknowledged rows of earlier faults that are missing."""

    async def run(self, fault: Fault) -> tuple[list[str], list[str]]:
        """(the row of the table, what must not be) of one fault."""
        load, cluster = self.load, self.cluster
        if fault.asynchronous:
            await asyncio.to_thread(set_synchronous, cluster, False)
        load.reset()
        await asyncio.sleep(STEADY)
        since, known = time.monotonic(), len(load.ended)
        mend = await asyncio.to_thread(fault.break_, cluster)
        if not fault.down:
            await self._writes_work(since)
        await asyncio.sleep(max(0.0, since + fault.hold - time.monotonic()))
        await asyncio.to_thread(mend)
        await self._writes_work(since)
        await asyncio.to_thread(cluster.wait, "all of the cluster", lambda: cluster.whole() and all(map(cluster.ready, SERVERS)), 120)
        await self._writes_work(time.monotonic())
        failed = [answered for _, answered, good in load.writes if not good and answered >= since]
        seconds = max(failed, default=since) - since
        silent = await self._silent()
        late = await self._late(known, since, since + seconds)
        lost, twice = await self._kept()
        if fault.asynchronous:
            await asyncio.to_thread(set_synchronous, cluster, True)
        unavailable = load.answers["503"]
        row = [fault.name, load.requests, load.answers.total() - unavailable, unavailable, load.lost, lost, twice, load.foreign, late,
               load.stale, silent, f"{seconds:.1f} s"]  # fmt: skip
        bad = {"missing": lost, "done twice": twice, "foreign": load.foreign, "late": late, "stale": load.stale, "silent": silent}
        expected = {"missing", "late", "stale"} if fault.asynchronous else set()
        found = [f"{fault.name}: {name} {number}" for name, number in bad.items() if number and name not in expected]
        return list(map(str, row)), found + [f"{fault.name}: {one}" for one in load.wrong[:5]]

    async def _writes_work(self, since: float, seconds: float = 90) -> None:
        """Wait until writes have worked for a while, at least since that moment."""
        end = time.monotonic() + seconds
        while True:
            recent = [one for one in self.load.writes if one[1] >= since]
            failed = max((answered for _, answered, good in recent if not good), default=since)
            good = [answered for sent, answered, good in recent if good and sent > failed]
            if good and time.monotonic() >= failed + STEADY and max(good) >= failed + STEADY - 1:
                return
            if time.monotonic() > end:
                raise RuntimeError(f"writes do not work: {self.load.answers}\n" + self.cluster.logs())
            await asyncio.sleep(0.1)

    async def _silent(self) -> int:
        """How many users' live streams do not bring a row that they write now."""
        async with aiohttp.ClientSession() as session:
            names = [await self.load.write(session, number, self.load.issuer.token(number)) for number in range(WRITERS)]
        end = time.monotonic() + 10
        while time.monotonic() < end and not all(name in self.load.heard for name in names):
            await asyncio.sleep(0.1)
        return sum(name not in self.load.heard for name in names)

    async def _late(self, known: int, since: float, writable: float) -> int:
        """Credentials that were accepted later than a second after their end, and after writes worked again, beyond what this
        machine was late itself."""
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=5)) as session:
            for _ in range(3):
                left = [one for one in self.load.ended[max(0, known - 20):] if not await look(self.load, session, one)]
                if not left:
                    break
                await asyncio.sleep(1)
        ended = self.load.ended[max(0, known - 20):]  # some that ended before the failure: they stay ended
        late = [line for one in ended if (line := too_late(one, self.canary, since, writable))]
        print(f"this machine was up to {self.canary.late(writable, time.monotonic()):.2f} s late", *late, sep="\n  ", file=sys.stderr, flush=True)
        return len(late)

    async def _kept(self) -> tuple[int, int]:
        """(acknowledged rows that are missing, rows that exist twice), since the last call."""
        name = await asyncio.to_thread(self.cluster.primary)
        assert name is not None
        at = {"host": self.cluster[name].address, "user": "postgres", "password": self.cluster.values["SUPERUSER_PASSWORD"]}
        acked = set(self.load.acked)
        connection = await asyncpg.connect(**at, database="gatepost")
        try:
            rows = await connection.fetch("SELECT name, user_id FROM data")
        finally:
            await connection.close()
        there = Counter(row["name"] for row in rows)
        self.load.foreign += sum(self.load.sent.get(row["name"]) not in (None, row["user_id"]) for row in rows)
        lost = {name for name in acked if not there[name]} - self.gone
        self.gone |= lost
        return len(lost), sum(number > 1 for name, number in there.items() if name in self.load.sent)


async def drill(cluster: Cluster, issuer: Issuer, faults: list[Fault], page: Path | None) -> tuple[list[list[str]], list[str]]:
    """(the rows of the table, what must not be)."""
    load = Load(cluster.url, [f"http://{cluster[name].address}:8080" for name in SERVERS], issuer)
    canary = Canary({"host": cluster["proxy"].address, "port": 5000, "user": "postgres", "database": "gatepost", "ssl": False,
                     "password": cluster.values["SUPERUSER_PASSWORD"], "target_session_attrs": "primary"})  # fmt: skip
    running = [asyncio.create_task(actor) for actor in (*actors(load), supervise(cluster), canary.run())]
    rows, bad, one = [], [], Drill(cluster, load, canary)
    try:
        await asyncio.sleep(3)
        for fault in faults:
            print(f"{time.strftime('%H:%M:%S')} {fault.name}", file=sys.stderr, flush=True)
            try:
                row, found = await one.run(fault)
            except RuntimeError as error:
                error.add_note(f"during: {fault.name}")
                raise
            print("drill:", " | ".join(row), *found, sep="\n  ", file=sys.stderr, flush=True)
            rows.append(row)
            bad += found
            if page is not None:
                write([row], page)
            if failed := [task for task in running if task.done()]:
                failed[0].result()
                raise RuntimeError("a client has ended")
    finally:
        load.stopping = True
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
    return rows, bad


async def supervise(cluster: Cluster) -> None:
    """Start again what ended by itself: on real machines systemd does."""
    while True:
        await asyncio.sleep(1)
        for name in await asyncio.to_thread(cluster.watch):
            print(f"{time.strftime('%H:%M:%S')} {name} had ended by itself and was started again", file=sys.stderr, flush=True)


def write(rows: list[list[str]], page: Path) -> None:
    """Put the rows into the page: a row of the same failure is replaced."""
    text = page.read_text("utf-8")
    before, old, after = re.split(r"<!-- /?rows -->\n", text)
    known = {line.split("|")[1].strip(): line for line in old.splitlines()[2:]}
    for row in rows:
        known[row[0]] = "| " + " | ".join(row) + " |"
    order = [fault.name for fault in FAULTS]
    lines = table(HEAD, []).rstrip("\n").splitlines()[:2] + [known[name] for name in order if name in known]
    page.write_text(f"{before}<!-- rows -->\n" + "\n".join(lines) + f"\n<!-- /rows -->\n{after}", "utf-8")


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true", help="only the failures that take little time")
    parser.add_argument("--only", metavar="TEXT", action="append", default=[], help="only failures whose name contains this")
    parser.add_argument("--write", action="store_true", help="put the rows into the page")
    args = parser.parse_args(words)
    if lacking := missing():
        print("\n".join(lacking), file=sys.stderr)
        return 2
    issuer, started = Issuer(), time.monotonic()
    cluster = Cluster({"CLERK_WEBHOOK_SIGNING_SECRET": SECRET, "CLERK_AUTHORIZED_PARTIES": PARTY}, issuer.pem)
    cluster.extra |= {"CLERK_ISSUER": ISSUER, "GATEPOST_LIMITS_ADDRESS": "off", "GATEPOST_LIMITS_CALLER": "off"}
    faults = [one for one in FAULTS if (not args.short or one.short) and (not one.spaces or cluster.net.spaces)
              and (not args.only or any(text in one.name for text in args.only))]  # fmt: skip
    try:
        cluster.start()
        print(f"the cluster serves after {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
        rows, bad = asyncio.run(drill(cluster, issuer, faults, PAGE if args.write else None))
    except BaseException:
        print(cluster.logs(lines=30), file=sys.stderr)
        raise
    finally:
        cluster.close()
    print(table(HEAD, rows))
    print("\n" + ("failed:\n" + "\n".join(bad) if bad else "nothing failed"))
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
