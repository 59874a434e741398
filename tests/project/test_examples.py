"""The examples as a user gets them: installed with pip, tested with their own tests, served by the real program."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from kits import ROOT, doc_page
from kits.postgres import Server

from tests.conftest import TestDatabase, stub

EXAMPLES = ROOT / "examples"
GUIDE = doc_page("tutorial.md")
SECRET = "what-the-server-shows-acme"
PEOPLE = {
    "acme_token-of-alice-0001": {"user": "alice", "organisation": "north", "role": "org:member"},
    "acme_token-of-bob-00002": {"user": "bob", "organisation": "south", "role": "org:member"},
}


def environment_of(folder: Path) -> dict[str, str]:
    """An environment without any of this one's settings."""
    kept = {name: value for name, value in os.environ.items() if name in ("PATH", "LANG", "TMPDIR", "LD_LIBRARY_PATH")}
    return kept | {"HOME": str(folder), "PIP_ROOT_USER_ACTION": "ignore", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}


def copy_of(example: str, folder: Path) -> Path:
    skipped = shutil.ignore_patterns(".*", "__pycache__", "build", "dist", "*.egg-info")
    return Path(shutil.copytree(EXAMPLES / example, folder / example, ignore=skipped))


async def run(program: list[Any], folder: Path, **more: str) -> tuple[int, str]:
    process = await asyncio.create_subprocess_exec(
        *map(str, program),
        cwd=folder,
        env=environment_of(folder) | more,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    said, _ = await asyncio.wait_for(process.communicate(), 300)
    return int(process.returncode or 0), said.decode()


@asynccontextmanager
async def serving(python: Path | str, folder: Path, **more: str) -> AsyncIterator[str]:
    """The program, started in a folder with a gatepost.toml; its URL. It is drained at the end."""
    given = {"GATEPOST_ENV": "test", "GATEPOST_PORT": "0", "GATEPOST_OPS_PORT": "0", **more}
    process = await asyncio.create_subprocess_exec(
        str(python), "-m", "server", cwd=folder, env=environment_of(folder) | given, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    try:
        line = (await asyncio.wait_for(process.stdout.readline(), 60)).decode()
        assert line.startswith("Gatepost serves on "), line
        yield line.split()[-1]
        process.terminate()
        assert await asyncio.wait_for(process.wait(), 30) == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


@pytest.fixture
async def own_database(postgres: Server) -> AsyncIterator[TestDatabase]:
    """A migrated database of this test's own: tables are added to it."""
    database = TestDatabase(postgres, await postgres.fresh())
    yield database
    await postgres.drop_database(database.name)


async def apply(database: TestDatabase, file: Path) -> None:
    """Run an example's schema as the owner, twice: it can be run again."""
    server = database.server
    text = file.read_text("utf-8").replace("gatepost_app", server.serving_role)
    for _ in range(2):
        async with server.connected(server.owner_role, database.name) as owner, owner.transaction():
            await owner.execute(text)


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


# A package ---------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The python of a new environment with acme-gatepost in it. All else is this environment's: no network is needed."""
    folder = tmp_path_factory.mktemp("acme")
    venv.create(folder / "venv", with_pip=True, symlinks=True)
    (packages,) = (folder / "venv").glob("lib/python*/site-packages")
    here = sysconfig.get_path("purelib")
    (packages / "dependencies.pth").write_text(f"import site; site.addsitedir({here!r})\n")
    python = folder / "venv" / "bin" / "python"
    words = ["--quiet", "--no-deps", "--no-build-isolation", "--no-index", str(copy_of("acme", folder))]
    subprocess.run([python, "-m", "pip", "install", *words], env=environment_of(folder), check=True)
    return python


@pytest.fixture
async def acme() -> AsyncIterator[str]:
    """Acme's service; its URL."""

    async def introspect(request: web.Request) -> web.Response:
        if request.headers["Authorization"] != f"Bearer {SECRET}":
            return web.Response(status=403)
        person = PEOPLE.get((await request.json())["token"])
        return web.json_response(person) if person else web.Response(status=404)

    app = web.Application()
    app.router.add_post("/introspect", introspect)
    async with TestServer(app, host="127.0.0.1") as server:
        yield str(server.make_url("/introspect"))


@pytest.mark.long
async def test_the_packages_own_tests_pass_where_it_is_installed(installed: Path, tmp_path: Path) -> None:
    copy = copy_of("acme", tmp_path)
    shutil.rmtree(copy / "acme_gatepost")  # what is tested is what was installed
    status, said = await run([installed, "-m", "pytest", "-q", "-p", "no:cacheprovider"], copy)
    assert status == 0, said
    assert "skipped" not in said


@pytest.mark.long
async def test_the_package_is_served(installed: Path, own_database: TestDatabase, acme: str, tmp_path: Path) -> None:
    file = 'plugins = ["acme"]\nproviders = ["acme", "stub"]\n\n[acme]\nurl = "%s"\n'
    (tmp_path / "gatepost.toml").write_text(file % acme)
    await apply(own_database, EXAMPLES / "acme" / "schema.sql")
    settings = {"DATABASE_URL": own_database.url, "ACME_SECRET": SECRET}
    status, said = await run([installed, "-m", "server", "check"], tmp_path, GATEPOST_ENV="test", **settings)
    assert (status, said.splitlines()[-1]) == (0, "problems: none"), said
    assert SECRET not in said
    alice, bob = (bearer(token) for token in PEOPLE)
    north, south = "/api/orgs/acme:north/todos", "/api/orgs/acme:south/todos"
    async with serving(installed, tmp_path, **settings) as url, aiohttp.ClientSession(url) as client:

        async def ask(method: str, path: str, headers: dict[str, str], **more: Any) -> tuple[int, Any]:
            async with client.request(method, path, headers=headers, **more) as got:
                return got.status, await got.json()

        status, made = await ask("POST", north, alice, json={"title": "Buy milk"})
        assert (status, made["created_by"], made["organization_id"]) == (201, "acme:alice", "acme:north")
        assert await ask("GET", north, alice) == (200, [made])
        assert await ask("GET", south, bob) == (200, [])
        assert (await ask("GET", north, bob))[0] == 403
        assert (await ask("POST", f"{south}/{made['id']}/complete", bob))[0] == 404
        assert (await ask("GET", north, bearer("acme_nobody-knows-this")))[0] == 401
        assert (await ask("GET", north, {}))[0] == 401
        status, done = await ask("POST", f"{north}/{made['id']}/complete", alice)
        assert status == 200
        assert done["completed_at"] is not None
        # The same rows for a caller of another provider, in the same organisation.
        assert await ask("GET", north, stub("zoe", org_id="acme:north")) == (200, [done])


# A module of one's own ---------------------------------------------------------------------------------------------------


TODO = EXAMPLES / "todo"


def test_the_guide_shows_the_example_as_it_is() -> None:
    """Every block of code that the guide names a file for is that file, whole; no file of the example goes unsaid."""
    text = GUIDE.read_text("utf-8").replace("`examples/todo/", "`")
    shown = dict(re.findall(r"`([\w/.]+)`:\n\n```\w+\n(.*?)```", text, re.DOTALL))
    files = {
        str(path.relative_to(TODO)): path.read_text("utf-8")
        for path in TODO.rglob("*")
        if path.is_file() and path.suffix != ".pyc" and path.name != "__init__.py"
    }
    assert shown == files
    assert len(re.findall(r"^```(?:python|sql|toml|ini)", text, re.MULTILINE)) == len(files)


@pytest.mark.long
async def test_the_examples_own_test_passes(tmp_path: Path) -> None:
    copy = copy_of("todo", tmp_path)
    status, said = await run([sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"], copy)
    assert status == 0, said


@pytest.mark.long
async def test_the_module_is_served_from_its_folder(own_database: TestDatabase, tmp_path: Path) -> None:
    copy = copy_of("todo", tmp_path)
    await apply(own_database, TODO / "schema.sql")
    more = {"DATABASE_URL": own_database.url, "GATEPOST_PROVIDERS": "stub"}
    status, said = await run([sys.executable, "-m", "server", "check"], copy, GATEPOST_ENV="test", **more)
    assert (status, said.splitlines()[-1]) == (0, "problems: none"), said
    async with serving(sys.executable, copy, **more) as url, aiohttp.ClientSession(url) as client:
        alice, bob, path = stub("alice", org_id="org_a"), stub("bob", org_id="org_b"), "/api/orgs/org_a/todos"
        async with client.post(path, headers=alice, json={"title": "first"}) as got:
            assert got.status == 201
            made = await got.json()
        async with client.get(path, headers=alice) as got:
            assert await got.json() == [made]
        async with client.get("/api/orgs/org_b/todos", headers=bob) as got:
            assert await got.json() == []
        async with client.get(path, headers=bob) as got:
            assert got.status == 403
        for headers, status in ((stub("zoe", org_id="org_b", org_role="org:admin"), 404), (alice, 403)):
            org = "org_a" if headers is alice else "org_b"
            async with client.delete(f"/api/orgs/{org}/todos/{made['id']}", headers=headers) as got:
                assert got.status == status


@pytest.mark.long
async def test_the_fourth_lock_holds_when_the_third_is_forgotten(tmp_path: Path) -> None:
    """What the tutorial says: without its WHERE the tests still pass; without its access one fails."""
    copy = copy_of("todo", tmp_path)
    file = copy / "todo_app" / "api.py"
    text = file.read_text("utf-8")
    file.write_text(text.replace("WHERE organization_id = $1 AND (created_at", "WHERE (true OR organization_id = $1) AND (created_at"))
    assert file.read_text("utf-8") != text
    status, said = await run([sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"], copy)
    assert status == 0, said
    file.write_text(text.replace('@requires(organization="org_id")\n@describe(returns=list', "@requires(user=True)\n@describe(returns=list"))
    status, said = await run([sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"], copy)
    assert (status, "1 failed" in said) == (1, True), said


# RealWorld ---------------------------------------------------------------------------------------------------------------


CONDUIT = EXAMPLES / "conduit"
NEWMAN = ROOT / ".cache" / "clients" / "node_modules" / ".bin" / "newman"


def test_conduit_is_as_short_as_its_readme_says() -> None:
    files = [*(CONDUIT / "conduit").glob("*.py"), CONDUIT / "schema.sql"]
    lines = sum(bool(line.strip()) for file in files for line in file.read_text("utf-8").splitlines())
    assert lines <= 320
    assert "320 lines of Python and SQL" in (CONDUIT / "README.md").read_text("utf-8")


@pytest.mark.long
async def test_conduits_own_tests_pass(tmp_path: Path) -> None:
    copy = copy_of("conduit", tmp_path)
    status, said = await run([sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"], copy)
    assert status == 0, said


@pytest.mark.long
@pytest.mark.skipif(not NEWMAN.exists(), reason="newman is not installed: make client-tools")
async def test_conduit_passes_realworlds_collection(own_database: TestDatabase, tmp_path: Path) -> None:
    copy = copy_of("conduit", tmp_path)
    await apply(own_database, CONDUIT / "schema.sql")
    more = {"DATABASE_URL": own_database.url, "CONDUIT_SECRET": "0123456789abcdef" * 2}
    status, said = await run([sys.executable, "-m", "server", "check"], copy, GATEPOST_ENV="test", **more)
    assert (status, said.splitlines()[-1]) == (0, "problems: none"), said
    async with serving(sys.executable, copy, **more) as url:
        words = {"APIURL": f"{url}/api", "USERNAME": "u1", "EMAIL": "u1@mail.com", "PASSWORD": "password"}
        given = [word for name, value in words.items() for word in ("--global-var", f"{name}={value}")]
        collection = copy / "tests" / "Conduit.postman_collection.json"
        program = [NEWMAN, "run", collection, "--reporters", "json", "--reporter-json-export", tmp_path / "said.json"]
        status, said = await run([*program, "--delay-request", "20", *given], tmp_path)
    figures = json.loads((tmp_path / "said.json").read_text("utf-8"))["run"]["stats"]["assertions"]
    assert (status, figures["total"], figures["failed"]) == (0, 311, 0), said
