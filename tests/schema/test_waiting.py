"""A database that starts after the server is waited for; one that refuses the server's role later is an outage until it is mended."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from kits.faults import link
from kits.pages import free_port
from kits.postgres import Cluster, bin_folders

from tests.serving.test_workers import running, url_of


def through(port: int, db: Any) -> dict[str, str]:
    return {"DATABASE_URL": f"postgresql://{db.server.serving_role}@127.0.0.1:{port}/{db.name}"}


async def told(process: asyncio.subprocess.Process, words: str) -> str:
    """The first line of the log with these words."""
    assert process.stderr is not None
    async with asyncio.timeout(30):
        while words not in (line := (await process.stderr.readline()).decode()):
            assert line, "the log has ended"
    return line


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_a_database_that_starts_after_the_server_is_waited_for(db: Any, tmp_path: Path, workers: str) -> None:
    if not isinstance(db.server, Cluster):
        pytest.skip("this server is reached by its own address alone")
    async with link(db.server) as way:
        way.hang_up()
        ops = free_port()
        given = {**through(way.port, db), "GATEPOST_DATABASE_WAIT_SECONDS": "60", "GATEPOST_OPS_PORT": str(ops)}
        async with running(db, tmp_path, "--workers", workers, **given) as process:
            line = await told(process, "waiting for the database")
            assert f"127.0.0.1:{way.port}/{db.name}" in line
            way.open()
            await url_of(process)
            await until(f"http://127.0.0.1:{ops}", 200, "/readyz")


async def test_the_wait_ends_with_status_1_and_the_place(db: Any, tmp_path: Path) -> None:
    given = {**through(port := free_port(), db), "GATEPOST_DATABASE_WAIT_SECONDS": "1"}
    async with running(db, tmp_path, **given) as process:
        line = await told(process, "gatepost: ")
        assert line.startswith("gatepost: the database cannot be reached: ")
        assert line.endswith(f"(127.0.0.1:{port}/{db.name}), tried for 1 s: is Postgres running there, and is the port right?\n")
        assert await asyncio.wait_for(process.wait(), 20) == 1


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_sigterm_ends_the_wait(db: Any, tmp_path: Path, workers: str) -> None:
    given = {**through(free_port(), db), "GATEPOST_DATABASE_WAIT_SECONDS": "600"}
    async with running(db, tmp_path, "--workers", workers, **given) as process:
        await told(process, "waiting for the database")
        process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(process.wait(), 30) == 0


async def test_a_mistake_is_not_waited_for(db: Any, tmp_path: Path) -> None:
    given = {"DATABASE_URL": f"postgresql://{db.server.serving_role}@no-such-host.invalid/x", "GATEPOST_DATABASE_WAIT_SECONDS": "600"}
    async with running(db, tmp_path, **given) as process:
        assert "the host is not known" in await told(process, "gatepost: ")
        assert await asyncio.wait_for(process.wait(), 20) == 2


async def test_production_with_a_mistake_in_the_settings_does_not_ask_the_database(db: Any, tmp_path: Path) -> None:
    """The stub is refused in production; the database, which is not there, would be waited for."""
    async with running(db, tmp_path, **through(free_port(), db), GATEPOST_ENV="production") as process:
        assert "stub" in await told(process, "gatepost: ")
        assert await asyncio.wait_for(process.wait(), 20) == 2


async def test_migrate_waits_too(db: Any, tmp_path: Path) -> None:
    owner = {"DATABASE_OWNER_URL": f"postgresql://x@127.0.0.1:{free_port()}/x", "GATEPOST_DATABASE_WAIT_SECONDS": "1"}
    async with running(db, tmp_path, "migrate", **owner) as process:
        await told(process, "waiting for the database")
        assert "tried for 1 s" in await told(process, "gatepost: ")
        assert await asyncio.wait_for(process.wait(), 20) == 1


# What the database refuses later ---------------------------------------------------------------------------------------------


class Guarded:
    """A Postgres that asks for passwords, with a migrated database."""

    def __init__(self) -> None:
        self.server = Cluster(next(iter(bin_folders().values())))
        self.name = ""

    async def start(self) -> None:
        self.server.start()
        self.name = await self.server.fresh()
        assert self.server.folder is not None
        (self.server.folder / "data" / "pg_hba.conf").write_text("local all postgres trust\nlocal all all scram-sha-256\n")
        await self.command("ALTER ROLE gatepost_app PASSWORD 'first'", "SELECT pg_reload_conf()")

    async def command(self, *commands: str) -> None:
        async with self.server.as_admin() as admin:
            for one in commands:
                await admin.execute(one)

    async def cut(self) -> None:
        """End the serving role's connections, as a restart of Postgres would."""
        await self.command("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'gatepost_app'")

    def url(self, password: str) -> str:
        return f"postgresql://gatepost_app:{password}@/{self.name}?host={self.server.folder}&port=5432"


@pytest.fixture
async def guarded() -> AsyncIterator[Guarded]:
    one = Guarded()
    try:
        await one.start()
        yield one
    finally:
        one.server.stop()


async def until(url: str, wanted: int, path: str = "/api/data") -> None:
    async with aiohttp.ClientSession(headers={"Authorization": 'Stub user_id="u"'}) as client, asyncio.timeout(30):
        while True:
            async with client.get(url + path) as got:
                assert got.status in (200, 503)
                if got.status == wanted:
                    return
            await asyncio.sleep(0.05)


async def test_a_password_that_was_changed_is_an_outage_until_its_file_has_the_new_one(guarded: Guarded, tmp_path: Path) -> None:
    secret = tmp_path / "url"
    secret.write_text(guarded.url("first") + "\n")
    ops = free_port()
    given = {"DATABASE_URL": "", "DATABASE_URL_FILE": str(secret), "GATEPOST_OPS_PORT": str(ops)}
    async with running(guarded_db(guarded), tmp_path, **given) as process:
        url = await url_of(process)
        await until(url, 200)
        await guarded.command("ALTER ROLE gatepost_app PASSWORD 'second'")
        await guarded.cut()
        for _ in range(3):  # the first may have used a connection that was cut
            await until(url, 503)
        await until(f"http://127.0.0.1:{ops}", 503, "/readyz")
        secret.write_text(guarded.url("second") + "\n")
        await until(url, 200)
        await until(f"http://127.0.0.1:{ops}", 200, "/readyz")
        process.terminate()
        _, log = await asyncio.wait_for(process.communicate(), 30)
    assert b'password authentication failed for user "gatepost_app"' in log
    assert b"first" not in log
    assert b"second" not in log


async def test_a_role_that_may_no_longer_log_in_is_an_outage(guarded: Guarded, tmp_path: Path) -> None:
    async with running(guarded_db(guarded), tmp_path, DATABASE_URL=guarded.url("first")) as process:
        url = await url_of(process)
        await until(url, 200)
        await guarded.command("ALTER ROLE gatepost_app NOLOGIN")
        await guarded.cut()
        await until(url, 503)
        await guarded.command("ALTER ROLE gatepost_app LOGIN")
        await until(url, 200)


def guarded_db(guarded: Guarded) -> Any:
    class Db:
        url = guarded.url("first")

    return Db


async def test_a_wrong_password_is_a_mistake_at_startup(guarded: Guarded, tmp_path: Path) -> None:
    given = {"DATABASE_URL": guarded.url("wr0ng"), "GATEPOST_DATABASE_WAIT_SECONDS": "600"}
    async with running(guarded_db(guarded), tmp_path, **given) as process:
        line = await told(process, "gatepost: ")
        assert 'password authentication failed for user "gatepost_app"' in line
        assert "wr0ng" not in line
        assert await asyncio.wait_for(process.wait(), 20) == 2


async def test_a_server_without_tls_is_named(guarded: Guarded, tmp_path: Path, db: Any) -> None:
    if not isinstance(db.server, Cluster):
        pytest.skip("this server may offer TLS")
    async with link(db.server) as way, running(db, tmp_path, DATABASE_URL=through(way.port, db)["DATABASE_URL"] + "?sslmode=require") as process:
        line = await told(process, "gatepost: ")
        assert line == f"gatepost: database.url (DATABASE_URL): the server does not offer TLS, which sslmode asks for (127.0.0.1:{way.port}/{db.name})\n"
        assert await asyncio.wait_for(process.wait(), 20) == 2


async def test_a_certificate_file_that_is_missing_is_named(db: Any, tmp_path: Path) -> None:
    url = through(free_port(), db)["DATABASE_URL"] + f"?sslmode=verify-full&sslrootcert={tmp_path}/none.pem"
    async with running(db, tmp_path, DATABASE_URL=url) as process:
        line = await told(process, "gatepost: ")
        assert f"{tmp_path}/none.pem" in line
        assert await asyncio.wait_for(process.wait(), 20) == 2


