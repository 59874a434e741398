"""Every code block of the README and the pages is run or parsed by its own tool; blocks that cannot be are marked as text."""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from uuid import UUID

import pydantic
import pytest
import reference_pages
from aiohttp import web
from kits import ROOT, doc_page, test_exists
from kits import pages as page_kit
from kits.app import build_app
from kits.pages import Block, blocks

import server
from server.commands import _parser
from server.openapi.document import DOCUMENT
from server.plugins.loader import Plugins
from server.settings.sources import Settings
from tests.conftest import TestDatabase, plugin

RUNNABLE = {"python", "sh", "toml", "sql", "json", "console"}
# What stands there to be read: output, other languages, and what belongs to another program.
READ_ONLY = {"text", "typescript", "nginx", "ini", "mermaid", "html", "js"}
# Which test runs the Python of a page, and how many blocks it has there. A block more is a block that nobody runs.
PYTHON = {
    "README.md": (2, "test_readme.py::test_the_examples_work"),
    "docs/tutorial.md": (3, "test_examples.py::test_the_guide_shows_the_example_as_it_is"),
    "docs/guides/from-nextjs.md": (11, "test_from_nextjs.py::test_machine_tokens"),
    "docs/guides/testing.md": (3, "test_blocks.py::test_the_page_of_testing_is_true"),
    "docs/reference/idempotency.md": (2, "test_blocks.py::test_the_loop_that_repeats"),
    "docs/guides/errors.md": (2, "test_errors_page.py::test_the_handler_of_the_page"),
    "docs/guides/files.md": (4, "test_files_page.py::test_a_large_file_on_disk"),
    "docs/guides/lists.md": (3, "test_lists_page.py::test_filters"),
    "docs/guides/projects.md": (1, "test_projects_page.py::test_names_states_and_partial_updates"),
    "docs/guides/openapi.md": (1, "test_blocks.py::test_fragments_of_handlers_are_handlers"),
    "docs/guides/clerk.md": (1, "test_blocks.py::test_fragments_of_handlers_are_handlers"),
    "docs/guides/streams.md": (5, "test_streams_page.py::test_the_page_is_true"),
    "docs/guides/services.md": (2, "test_services_page.py::test_the_queue_of_jobs"),
    "docs/guides/receive-webhooks.md": (1, "test_services_page.py::test_stripes_webhook"),
    "docs/guides/public-routes.md": (1, "test_blocks.py::test_fragments_of_handlers_are_handlers"),
    "docs/guides/migrations.md": (3, "test_rolling_files.py::test_alembic"),
    "docs/guides/agents.md": (1, "test_agents_page.py::test_the_endpoint_of_your_own_is_complete"),
    "docs/guides/dpop.md": (1, "test_dpop_clients.py::test_the_python_of_the_guide"),
    "docs/guides/impersonation.md": (1, "test_impersonation.py::test_the_route_of_the_guide_refuses"),
}
# Blocks for a shell that call programs which are not here, or would change the machine: read by bash, their files looked up.
ELSEWHERE = {
    "CONTRIBUTING.md", "docs/guides/deploy.md", "docs/explanation/drills.md", "docs/explanation/performance.md", "docs/explanation/scale.md", "docs/guides/postgres.md", "examples/acme/README.md",
    "examples/conduit/README.md", "docs/guides/cluster.md", "docs/explanation/drills-cluster.md",
}  # fmt: skip
SHELL = {
    "README.md", "docs/index.md", "docs/guides/keys.md", "docs/reference/idempotency.md", "docs/tutorial.md", "docs/guides/first-hour.md",
    "docs/guides/first-incident.md",
}  # fmt: skip


def ids(block: Block) -> str:
    return f"{block.page}-{' '.join(block.text.split())[:30]}"


# Nothing is left out ---------------------------------------------------------------------------------------------------


def test_every_block_says_its_language_and_every_language_has_a_test() -> None:
    assert {(block.page, block.language) for block in blocks() if block.language not in RUNNABLE | READ_ONLY} == set()
    assert {block.language for block in blocks()} >= RUNNABLE


def test_every_python_block_is_run_by_a_test_that_exists() -> None:
    found: dict[str, int] = {}
    for block in blocks("python"):
        found[block.page] = found.get(block.page, 0) + 1
    assert found == {page: number for page, (number, _) in PYTHON.items()}
    for _, named in PYTHON.values():
        file, _, test = named.partition("::")
        assert test_exists(file, test), named


def test_every_block_for_a_shell_is_run_or_for_elsewhere() -> None:
    assert {block.page for block in blocks("sh", "console")} == ELSEWHERE | SHELL
    for block in blocks("console"):
        assert block.text.startswith("$ "), block
        assert block.page in SHELL, block


# Read by whoever would read it ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("block", blocks("python"), ids=ids)
def test_python_compiles(block: Block) -> None:
    compile(block.text, block.page, "exec", dont_inherit=True)


@pytest.mark.parametrize("block", blocks("json"), ids=ids)
def test_json_is_json(block: Block) -> None:
    json.loads(block.text)


STOOD_IN = ("acme", "names", "notes", "shipping", "billing", "reports", "projects")
ACME = """
from server import Setting, hookimpl

@hookimpl
def register_settings():
    return {"url": Setting()}
"""


@pytest.mark.parametrize("block", blocks("toml"), ids=ids)
def test_toml_is_settings_that_the_server_takes(block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every key is known and every value of its kind. What plugins it names are stood in for by one that knows its table."""
    told = tomllib.loads(block.text)
    if "project" in told:
        ours = tomllib.loads((ROOT / "examples" / "acme" / "pyproject.toml").read_text("utf-8"))
        assert told["project"]["entry-points"] == ours["project"]["entry-points"]
        return
    text = block.text
    for name in STOOD_IN:
        (tmp_path / f"gp_block_{name}.py").write_text(ACME)
    text = re.sub(r'"(?:module:)?(\w+|todo_app\.api|acme_app\.api)"', lambda hit: f'"module:gp_block_{hit[1]}"' if hit[1].partition(".")[0] in (*STOOD_IN, "todo_app", "acme_app") else hit[0], text)
    text = text.replace("todo_app.api", "names").replace("acme_app.api", "names")
    text = re.sub(rf"^\[({'|'.join(STOOD_IN)})\]", r"[gp_block_\1]", text, flags=re.MULTILINE)
    monkeypatch.syspath_prepend(tmp_path)
    for name in STOOD_IN:
        sys.modules.pop(f"gp_block_{name}", None)
    file = tmp_path / "gatepost.toml"
    file.write_text(text)
    settings = Settings(file=file, environ={}, given={"data_folder": str(tmp_path)})
    Plugins(settings)


@pytest.mark.parametrize("block", blocks("sh"), ids=ids)
def test_sh_is_read_by_a_shell_and_names_files_that_are_there(block: Block) -> None:
    done = subprocess.run(["bash", "-n"], input=block.text, text=True, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    for path in re.findall(r"(?<![\w./-])(?:deploy|examples|docs)/[\w./*-]+[\w*]", block.text):
        made = ("deploy/compose/.env",)  # by the block itself
        assert path in made or list(ROOT.glob(path)), path


@pytest.fixture(scope="module")
def program() -> argparse.ArgumentParser:
    return _parser(reference_pages.loaded()[1].offers().commands)


def calls() -> Iterator[tuple[str, str]]:
    """Every call of the program in a block, without what it is piped into."""
    for block in blocks("sh", "console", "text"):
        if block.page != "docs/reference/commands.md":
            for words in re.findall(r"(?:python|-m pip) -m server((?: [^|&)`#\n]*)?)", block.text.replace("\\\n", " ")):
                if "…" not in words and "COMMAND" not in words:
                    yield block.page, words.strip()


@pytest.mark.parametrize(("page", "words"), sorted(set(calls())))
def test_every_call_of_the_program_is_one_that_it_takes(page: str, words: str, program: argparse.ArgumentParser) -> None:
    program.parse_args(shlex.split(words.replace("$", "")))


# Run -------------------------------------------------------------------------------------------------------------------


FRAGMENTS = [
    ("docs/guides/openapi.md", "/api/notes", "List one's own notes"),
    ("docs/guides/public-routes.md", "/articles/{slug}", "signed in (declared public, not listed)"),
    ("docs/guides/public-routes.md", "/login", "rate 5/minute"),
    ("docs/guides/public-routes.md", "/attachments/{name}", "application/pdf"),
    ("docs/guides/clerk.md", "/api/reports", "scope reports:read, accepts clerk_api_key oauth_token session_token"),
    ("docs/guides/clerk.md", "/api/orgs/{org_id}/reports", "organization {org_id}, scope reports:write, accepts oauth_token"),
    ("docs/guides/clerk.md", "/api/nightly", "accepts m2m_token"),
    ("docs/reference/idempotency.md", "/api/tokens", "signed in, user"),
]


@pytest.mark.parametrize(("page", "path", "said"), FRAGMENTS, ids=[page for page, _, _ in FRAGMENTS])
def test_fragments_of_handlers_are_handlers(page: str, path: str, said: str) -> None:
    """What a page leaves out is the imports; the rest is taken by the server, and is in its OpenAPI document."""
    (block,) = [block for block in blocks("python", page=page) if "@routes" in block.text]
    scope: dict[str, Any] = {name: getattr(server, name) for name in server.__all__}
    scope |= {name: getattr(pydantic, name) for name in ("AwareDatetime", "BaseModel", "ConfigDict")}
    scope |= {"UUID": UUID, "routes": web.RouteTableDef()}
    exec(compile(block.text, page, "exec", dont_inherit=True), scope)
    document = json.loads(build_app({"acme": plugin(*scope["routes"])})[DOCUMENT].json)
    assert said in json.dumps(document["paths"][path])


async def test_sql_is_run(db: TestDatabase) -> None:
    """Each page's SQL as the owner, in a transaction that is undone; on the tutorial's tables."""
    role = db.server.serving_role
    tutorial = list(blocks("sql", page="docs/tutorial.md"))
    for page in {block.page for block in blocks("sql")}:
        own = blocks("sql", page=page)
        async with db.server.as_admin(db.name) as admin:
            undone = admin.transaction()
            await undone.start()
            for block in [*tutorial, *own] if page != "docs/tutorial.md" else [*own, *own]:
                await admin.execute(block.text.replace("gatepost_app", role))
            await undone.rollback()


needs_curl = pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")


async def run_console(shell: page_kit.Shell, page: str, *, since: str = "", until: str | None = None) -> None:
    """Run the page's console blocks (those between two headings) in order, and hold what they print against what is shown."""
    text = (ROOT / page).read_text("utf-8")
    text = text[text.index(since) : None if until is None else text.index(until)]
    for block in [one for one in blocks("console", page=page) if one.text in text]:
        for step in page_kit.steps(block.text):
            status, said, wrong = await shell.run(step.command)
            for _ in range(6):  # some things (a denial in the audit log) come a moment later
                if page_kit.fits(step.shown, said) or re.search(r" -(?:d|X) |^\w+=", step.command):
                    break
                await asyncio.sleep(0.5)
                status, said, wrong = await shell.run(step.command)
            assert page_kit.fits(step.shown, said), f"{step.command}\n--- shown\n{step.shown}\n--- said ({status})\n{said}{wrong}"


@needs_curl
@pytest.mark.long
async def test_the_tutorial_is_true(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "examples" / "todo", tmp_path / "my", ignore=shutil.ignore_patterns("__pycache__", ".*"))
    async with page_kit.shell_beside_a_server(tmp_path / "my") as shell:
        await run_console(shell, "docs/tutorial.md", until="## 9. Live")
        status, _, wrong = await shell.run("python -m server migrate --schema live.sql")
        assert status == 0, wrong
    # The reader names the second module in the file, and starts the server again; the terminal keeps its variables.
    (plugins,) = re.findall(r"`(plugins = \[.*live.*\])`", doc_page("tutorial.md").read_text("utf-8"))
    (tmp_path / "my" / "gatepost.toml").write_text(plugins + "\n")
    async with page_kit.shell_beside_a_server(tmp_path / "my") as again:
        again.inherit(shell)
        await run_console(again, "docs/tutorial.md", since="## 9. Live")


@needs_curl
@pytest.mark.long
async def test_the_readmes_first_minute_is_true(tmp_path: Path) -> None:
    async with page_kit.shell_beside_a_server(tmp_path) as shell:
        await run_console(shell, "README.md")
    async with page_kit.shell_beside_a_server(tmp_path, GATEPOST_PROVIDERS="stub") as shell:
        (block,) = [block for block in blocks("sh", page="README.md") if block.text.startswith("curl ")]
        status, said, _ = await shell.run(block.text)
        assert (status, json.loads(said)["user_id"]) == (0, "user_1")


def test_the_first_page_shows_the_same_minute() -> None:
    """So that it need not be run twice."""
    assert [block.text for block in blocks("console", page="docs/index.md")] == [
        block.text for block in blocks("console", page="README.md")
    ]


def test_the_two_diagrams_are_one() -> None:
    (shown,) = [block.text for block in blocks("text", page="README.md") if "row-level" in block.text]
    assert shown in [block.text for block in blocks("text", page="docs/explanation/locks.md")]


def test_what_is_shown_of_nginx_is_its_example() -> None:
    example = (ROOT / "deploy" / "nginx" / "gatepost.conf").read_text("utf-8")
    added = "docs/guides/behind-a-proxy.md"  # test_proxies.py runs a real nginx with the lines of its block
    assert len(blocks("nginx", page=added)) == 1
    lines = [line.strip() for block in blocks("nginx") if block.page != added for line in block.text.splitlines()]
    assert lines
    assert [line for line in lines if line and line not in example] == []


def named(page: str) -> dict[str, str]:
    """The blocks of a page that are files, by the file name before them."""
    text = (ROOT / page).read_text("utf-8")
    return dict(re.findall(r"^`([\w/.]+)`:\n\n```\w+\n(.*?)^```$", text, re.MULTILINE | re.DOTALL))


@pytest.mark.long
async def test_the_page_of_testing_is_true(tmp_path: Path) -> None:
    """Its files and the README's in one folder; pytest as its reader runs it."""
    files = named("docs/guides/testing.md") | {name: text for name, text in named("README.md").items() if name.endswith(".py")}
    assert len(files) == 6
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", cwd=tmp_path, env=page_kit.environment(tmp_path),
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    said = (await asyncio.wait_for(process.communicate(), 120))[0].decode()
    assert process.returncode == 0, said
    assert re.search(r"\b16 passed", said), said


def commands_of(page: str) -> list[str]:
    """The commands of a page's sh blocks, without remarks."""
    lines = "".join(block.text for block in blocks("sh", page=page)).replace("\\\n", " ").splitlines()
    return [re.sub(r"\s+#.*", "", line) for line in lines if line.strip()]


@needs_curl
@pytest.mark.long
async def test_the_page_of_keys_is_true(tmp_path: Path) -> None:
    """Its commands in their order; the id that it shows is that of the key which its first command makes."""
    async with page_kit.shell_beside_a_server(tmp_path) as shell:
        await shell.run("TOKEN=$(python -m server token --user user_1 --org org_1 --permission org:invoices:read)")
        await shell.run("LEAKED_KEY=$(python -m server keys create --name leaked --user user_9)")
        id = ""
        for command in commands_of("docs/guides/keys.md"):
            status, said, wrong = await shell.run(command.replace("4Yb0sT9wKq2LmZ7d", id))
            assert status == 0, f"{command}: {said}{wrong}"
            if "keys create" in command:
                id = wrong.split()[1]
            if "/api/keys" in command:
                assert json.loads(said)["secret"].startswith("gp_test_")
        assert said.startswith("sha256:")


@needs_curl
@pytest.mark.long
async def test_the_page_of_repeated_requests_is_true(tmp_path: Path) -> None:
    async with page_kit.shell_beside_a_server(tmp_path) as shell:
        await shell.run("TOKEN=$(python -m server token)")
        (command,) = commands_of("docs/reference/idempotency.md")
        first, second = [await shell.run(command) for _ in range(2)]
        assert first[1] == second[1]
        assert json.loads(first[1])["name"] == "first"


class Moody:
    """A server with a given response: a status and a body, or None to close the connection without a response."""

    def __init__(self, *answers: tuple[int, Mapping[str, Any]] | None) -> None:
        self.answers, self.keys = list(answers), set[str]()

    async def take(self, request: web.Request) -> web.Response:
        self.keys.add(request.headers["Idempotency-Key"])
        told = self.answers.pop(0)
        if told is None:
            assert request.transport is not None
            request.transport.abort()
            return web.Response()
        return web.json_response(told[1], status=told[0])


async def test_the_loop_that_repeats(aiohttp_server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import requests

    block, _ = blocks("python", page="docs/reference/idempotency.md")
    scope: dict[str, Any] = {}
    exec(compile(block.text, "idempotency.md", "exec", dont_inherit=True), scope)
    monkeypatch.setattr(scope["time"], "sleep", lambda seconds: None)

    async def create(*answers: tuple[int, Mapping[str, Any]] | None) -> tuple[int, Moody]:
        moody, app = Moody(*answers), web.Application()
        app.router.add_post("/", moody.take)
        url = str((await aiohttp_server(app)).make_url("/"))
        with requests.Session() as session:
            return (await asyncio.to_thread(scope["create"], session, url, {"name": "x"})).status_code, moody

    busy = (409, {"reason": "idempotency-in-progress"})
    status, moody = await create(None, (503, {}), busy, (201, {"id": "1"}))
    assert (status, len(moody.keys), moody.answers) == (201, 1, [])
    assert (await create((409, {"reason": "idempotency-secret-not-kept"})))[0] == 409
    with pytest.raises(RuntimeError):
        await create(*[(503, {})] * 8)


@needs_curl
@pytest.mark.long
async def test_what_the_tutorial_says_of_stumbling_is_true(tmp_path: Path) -> None:
    """The messages of its table are the program's own."""
    said = doc_page("tutorial.md").read_text("utf-8").partition("## When it does not work")[2]
    copy = tmp_path / "my"
    shutil.copytree(ROOT / "examples" / "todo", copy, ignore=shutil.ignore_patterns("__pycache__", ".*"))
    nobody = page_kit.Shell(copy, {})
    (copy / "open.sql").write_text("CREATE TABLE open (user_id text); GRANT SELECT ON open TO gatepost_app;")
    assert "not safe to serve from, rolled back" in said
    assert "not safe to serve from, rolled back" in (await nobody.run("python -m server migrate --schema open.sql"))[2]
    assert "No module named 'todo_app'" in said
    assert "No module named 'todo_app'" in (await nobody.run("cd todo_app && GATEPOST_CONFIG=../gatepost.toml python -m server routes"))[2]
    async with page_kit.shell_beside_a_server(copy) as shell:
        port, ops = (real.rpartition(":")[2] for shown, real in shell.ports.items() if shown.startswith("127"))
        other = f"GATEPOST_DATA_FOLDER={tmp_path}/other GATEPOST_OPS_PORT={ops} python -m server --port"
        for taken, message in (((f"{other} {port}"), "port: cannot serve on"), (f"{other} 0", "ops.port: cannot listen on")):
            status, _, wrong = await shell.run(taken)
            assert (status, message in wrong, message in said) == (2, True, True), wrong
        status, answered, _ = await shell.run(
            'curl -s -H "Authorization: Bearer $(python -m server token --user a --org o)" http://127.0.0.1:8080/api/orgs/o/todos'
        )
        assert (status, json.loads(answered)["error"]) == (0, "Internal Server Error")  # the table is not there
