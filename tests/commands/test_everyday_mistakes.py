"""A mistake around the server (folders, files, the environment, the database's own settings) is one line, with the right status."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from kits import ROOT

from tests.conftest import url_of


async def run(folder: Path, *words: str, **more: str) -> tuple[int | None, list[str]]:
    """(status, lines of both streams) of a command in this folder that ends by itself."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("GATEPOST_", "DATABASE_", "CLERK_", "PG"))}
    environment |= {"GATEPOST_PORT": "0", "GATEPOST_OPS_PORT": "0", "PYTHONPATH": str(ROOT), **more}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "server", *words, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    output, _ = await asyncio.wait_for(process.communicate(), 90)
    return process.returncode, output.decode().splitlines()


def folder_as_key(folder: Path) -> None:
    (folder / ".gatepost" / "clerk-development-key.pem").mkdir(parents=True)


def file_as_folder(folder: Path) -> None:
    (folder / ".gatepost").write_text("")


def old_data(folder: Path) -> None:
    (folder / ".gatepost" / "postgres" / "data").mkdir(parents=True)
    (folder / ".gatepost" / "postgres" / "data" / "PG_VERSION").write_text("13\n")


def foreign_data(folder: Path) -> None:
    (folder / ".gatepost" / "postgres" / "data" / "x").mkdir(parents=True)


def config_as_folder(folder: Path) -> None:
    (folder / "gatepost.toml").mkdir()


@pytest.mark.parametrize(("prepare", "words", "said"), [
    (folder_as_key, ["token"], "clerk-development-key.pem is a folder; delete it"),
    (file_as_folder, ["token"], "the development key clerk-development-key.pem cannot be read: Not a directory"),
    (file_as_folder, [], "choose another data_folder, or set DATABASE_URL"),
    (file_as_folder, ["migrate"], "choose another data_folder, or set DATABASE_URL"),
    (old_data, [], "was created by Postgres 13"),
    (foreign_data, ["migrate"], "is not a Postgres data folder; move it away"),
    (config_as_folder, ["routes"], "gatepost.toml: cannot be read: Is a directory"),
])  # fmt: skip
async def test_a_folder_or_file_that_cannot_be_used_is_one_line(
    prepare: Callable[[Path], None], words: list[str], said: str, tmp_path: Path
) -> None:
    prepare(tmp_path)
    status, lines = await run(tmp_path, *words)
    assert status == 2, lines
    assert len(lines) == 1, lines
    assert said in lines[0]
    assert lines[0].startswith("gatepost: ")


async def test_the_environment_of_other_programs_does_not_reach_the_embedded_postgres(tmp_path: Path) -> None:
    status, lines = await run(tmp_path, "migrate", PGSSLMODE="verify-full", PGTARGETSESSIONATTRS="standby", PGHOST="no-such.invalid")
    assert (status, lines[-1]) == (0, "migrated")


@pytest.mark.parametrize(("changed", "said"), [
    ("SET default_transaction_read_only = on", "the database is read-only"),
    ("SET search_path = elsewhere", "does not see the schema public (its search_path is elsewhere)"),
])  # fmt: skip
@pytest.mark.parametrize("words", [[], ["check"]])
async def test_a_database_that_cannot_be_served_from_is_refused_in_one_line(
    changed: str, said: str, words: list[str], postgres: Any, db: Any, tmp_path: Path
) -> None:
    role = db.server.serving_role
    of_role = f'ALTER ROLE "{role}" IN DATABASE "{db.name}"'
    async with postgres.as_admin() as admin:
        await admin.execute(f"{of_role} {changed}")
        try:
            status, lines = await run(tmp_path, *words, DATABASE_URL=url_of(postgres, role, db.name))
        finally:
            await admin.execute(f"{of_role} RESET ALL")
    told = [line for line in lines if said in line]
    assert (status, len(told)) == (2, 1), lines
    assert words or lines == told


@pytest.mark.parametrize(("query", "status", "said"), [
    ("options=endpoint%3Dep-x", 0, "problems: none"),
    ("pgbouncer=true&connection_limit=1&channel_binding=require&connect_timeout=10&keepalives=1&schema=public", 0, "problems: none"),
    ("options=-c%20no_such_parameter%3D1", 2, "correct the parameter `options`"),
    ("options=-c%20role%3Dpostgres", 2, "correct the parameter `options`"),
    ("options=-c%20statement_timeout%3D1", 1, "gatepost: the database refused a statement: QueryCanceledError (57014): "),
    ("target_session_attrs=standby", 2, "no host is what target_session_attrs asks for"),
    ("sslmode=verify-ca", 2, "sslrootcert=system"),
    ("ssl=true", 2, "write sslmode=require"),
])  # fmt: skip
async def test_parameters_of_the_url_on_a_live_database(query: str, status: int, said: str, postgres: Any, db: Any, tmp_path: Path) -> None:
    url = url_of(postgres, db.server.serving_role, db.name)
    url += ("&" if "?" in url else "?") + query
    found, lines = await run(tmp_path, "check", DATABASE_URL=url, HOME=str(tmp_path))
    assert (found, any(said in line for line in lines)) == (status, True), lines[-5:]
    assert "Traceback" not in "".join(lines)


@pytest.mark.parametrize("words", ["keys list --user u", "keys create --user u --name n", "replay", "revoke --user u"])
async def test_a_command_on_a_database_without_the_schema_says_what_to_run(words: str, postgres: Any, tmp_path: Path) -> None:
    name = await postgres.create_database(f"empty_{os.urandom(4).hex()}")
    try:
        status, lines = await run(tmp_path, *words.split(), DATABASE_URL=url_of(postgres, postgres.admin, name))
    finally:
        await postgres.drop_database(name)
    assert (status, len(lines)) == (2, 1), lines
    assert "older" in lines[0]
    assert "run `python -m server migrate`" in lines[0]


@pytest.mark.parametrize(("redirect", "status", "said"), [
    (">&-", 0, ""), ("2>&-", 0, ""), ("<&-", 0, ""), (">/dev/full", 1, "gatepost: standard output: No space left on device"),
])  # fmt: skip
def test_standard_streams_that_are_closed_or_full(redirect: str, status: int, said: str, tmp_path: Path) -> None:
    line = f"{sys.executable} -m server routes {redirect}"
    done = subprocess.run(["bash", "-c", line], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.strip()) == (status, said)


def test_a_working_folder_that_is_gone_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "gone").mkdir()
    line = f"cd gone && rmdir ../gone && exec {sys.executable} -m server"
    done = subprocess.run(["bash", "-c", line], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (2, "gatepost: the working folder does not exist any more: change to another one\n")


async def test_a_module_that_is_not_on_the_path_says_where_modules_are_found(tmp_path: Path) -> None:
    status, lines = await run(tmp_path, "routes", GATEPOST_PLUGINS="module:no_such_module")
    assert (status, len(lines)) == (2, 1)
    assert "`gatepost` only installed ones and PYTHONPATH" in lines[0]


@pytest.mark.parametrize("setting", ["GATEPOST_PORT", "GATEPOST_OPS_PORT"])
async def test_a_port_that_is_taken_is_named(setting: str, db: Any, postgres: Any, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        status, lines = await run(tmp_path, **{"DATABASE_URL": url_of(postgres, db.server.serving_role, db.name), setting: port})
    assert (status, len(lines)) == (2, 1), lines
    asked, option = ("port: cannot serve", "--port or GATEPOST_PORT") if setting == "GATEPOST_PORT" else (
        "ops.port: cannot listen", "GATEPOST_OPS_PORT (0: none)")
    assert lines[0] == (f"gatepost: {asked} on 127.0.0.1:{port} (Address already in use): "
                        f"another program has this port; choose another with {option}")  # fmt: skip


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_a_mistake_is_one_line_where_startup_would_warn_too(tmp_path: Path, workers: str) -> None:
    """In production without trusted_proxies there is a warning about limits: it comes after what prevents startup."""
    unused = {"DATABASE_URL": "postgresql://gatepost_app@127.0.0.1:9/gatepost", "GATEPOST_WORKERS": workers}
    status, lines = await run(tmp_path, GATEPOST_ENV="production", GATEPOST_PROVIDERS="stub", **unused)
    assert (status, lines) == (2, [
        "gatepost: provider 'stub': the stub provider accepts any caller: it is for development and test, not for production"
    ])  # fmt: skip
