"""The page of database objects: its settings, functions and errors are those of the code and of a real database."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from aiohttp import web
from kits import doc_page
from kits import pages as page_kit

from server.database.statements import SETTINGS
from server.database.violations import error_for_state
from server.http.errors import ApiError
from tests.conftest import TestDatabase

PAGE = doc_page("database.md").read_text("utf-8")


def section(title: str) -> str:
    return PAGE.partition(f"## {title}\n")[2].partition("\n## ")[0]


def first_cells(title: str) -> list[str]:
    return re.findall(r"^\| (`.*?) \|", section(title), re.MULTILINE)


def test_the_settings_are_those_that_the_server_sets() -> None:
    assert [cell.strip("`") for cell in first_cells("The settings that policies read")] == list(SETTINGS)


async def test_the_functions_are_those_that_the_serving_role_may_call(db: TestDatabase) -> None:
    named = {name for cell in first_cells("Functions that work without a caller") for name in re.findall(r"`(\w+)\(", cell)}
    rows = await db.rows(
        """SELECT proname FROM pg_proc WHERE pronamespace = 'public'::regnamespace AND prosecdef AND prorettype <> 'trigger'::regtype
              AND has_function_privilege($1, oid, 'EXECUTE')""",
        db.server.serving_role,
    )
    assert named == {row["proname"] for row in rows}


STATES = [
    ("23505", 409), ("23P01", 409), ("23503", 409), ("23514", 422), ("23502", 422), ("22003", 422), ("54000", 422), ("42P01", 500),
    ("08006", 503), ("25006", 503), ("40P01", 503), ("53100", 503), ("55P03", 503), ("57014", 503), ("58030", 503),
]  # fmt: skip


@pytest.mark.parametrize(("state", "status"), STATES)
def test_the_statuses_of_errors_are_those_of_the_page(state: str, status: int) -> None:
    rows = re.findall(r"^\| (.+?) \| (\d+)", section("Which error of Postgres becomes which status"), re.MULTILINE)
    exact = [int(said) for cell, said in rows if f"`{state}`" in cell]
    assert (exact or [int(said) for cell, said in rows if f"`{state[:2]}…`" in cell]) == [status]
    error = error_for_state(state, "Error")
    assert (error.status if isinstance(error, ApiError) else 503 if "database" in str(error) else 500) == status
    assert not isinstance(error, web.HTTPException)


@pytest.mark.parametrize(("function", "status"), [("ExecWithCheckOptions", 403), ("aclcheck_error", 500)])
def test_a_policys_refusal_is_a_403_and_a_missing_grant_a_500(function: str, status: int) -> None:
    assert getattr(error_for_state("42501", "Error", function=function), "status", 500) == status


@pytest.fixture
def short_folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="gp-") as folder:
        yield Path(folder)


async def what_psql_sees(folder: Path, where: str) -> None:
    """The page's command whose socket is found that way, and its SQL."""
    (command,) = re.findall(rf'(psql -h "{re.escape(where)}[^`\n]*)', PAGE)
    (sql,) = re.findall(r"```sql\n(BEGIN;.*?)```", PAGE, re.DOTALL)
    async with page_kit.shell_beside_a_server(folder) as shell:
        await shell.run('TOKEN="Authorization: Bearer $(python -m server token --user alice --org north)"')
        made = await shell.run(
            """curl -s -H "$TOKEN" -H 'Content-Type: application/json' -d '{"name": "of alice"}' http://127.0.0.1:8080/api/data"""
        )
        assert '"name":"of alice"' in made[1]
        status, said, wrong = await shell.run(f"{command} -XAt <<'END'\n{sql}\nEND")
        assert (status, "of alice" in said.splitlines()) == (0, True), said + wrong
        status, said, wrong = await shell.run(f"{command} -XAt <<'END'\n{re.sub(r'SELECT set_config.*', '', sql)}\nEND")
        assert (status, "of alice" in said) == (0, False), said + wrong


@pytest.mark.long
@pytest.mark.skipif(shutil.which("psql") is None, reason="psql is not installed")
async def test_psql_sees_what_a_caller_sees(short_folder: Path) -> None:
    await what_psql_sees(short_folder, "$PWD")


@pytest.mark.long
@pytest.mark.skipif(shutil.which("psql") is None, reason="psql is not installed")
async def test_psql_finds_the_socket_of_a_folder_with_a_long_path(short_folder: Path) -> None:
    folder = short_folder / ("long-" * 20)
    folder.mkdir()
    await what_psql_sees(folder, "$(sed")
