"""`access`: who may call what as a table, the same as the gate says; `--check` compares it with a file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from kits.app import build_app

from server.app import TABLE
from server.auth.described import identity_from
from server.commands import run
from server.gate.access_table import table, usual_callers
from tests.conftest import Client, stub

GOOD = """
[callers.alice]
user = "alice"
org = "north"
role = "org:admin"

[callers.machine]
org = "north"

[[expect]]
caller = "none"
request = "GET /api/data"
status = 401

[[expect]]
caller = "alice"
request = "GET /api/orgs/north/audit"
status = 200

[[expect]]
caller = "machine"
request = "GET /api/data"
status = 403
reason = "user"
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GATEPOST_ENV", "test")
    return tmp_path


def test_the_table_names_every_route_and_caller(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["access"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split("  ")[0] == "METHOD"
    assert any(line.startswith("GET     /api/orgs/{org_id}/audit") and "403 role" in line and line.count("yes") == 1 for line in lines)
    assert run(["access", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert len(rows) == len(lines) - 1
    assert all(row["callers"]["no credential"]["status"] in (200, 401) for row in rows)
    assert run(["access", "--markdown", "--user", "u", "--org", "o"]) == 0
    markdown = capsys.readouterr().out.splitlines()
    assert markdown[0] == "| METHOD | ROUTE | no credential | this caller |"
    assert markdown[1] == "|---|---|---|---|"
    assert len(markdown) == len(rows) + 2


async def test_the_table_says_what_the_gate_does(client: Client) -> None:
    """Each route is asked by a user without and with an organisation, and as its administrator."""
    app: Any = client.app
    rules = [(route.method, rule) for route, rule in app[TABLE].rules.items() if route.method != "HEAD" and not rule.streams]
    headers = {
        "no credential": {},
        "user": stub("user_1"),
        "member": stub("user_1", org_id="org_1", org_role="org:member"),
        "admin": stub("user_1", org_id="org_1", org_role="org:admin"),
    }
    rows = table(rules, {name: caller for name, caller in usual_callers(rules).items() if name in headers})
    compared = 0
    for row in rows:
        path = row["route"].replace("{org_id}", "org_1").replace("{id}", "00000000-0000-0000-0000-000000000000").replace("{file}", "x")
        for name, said in row["callers"].items():
            got = await client.send(row["method"], path, headers[name])
            if said["status"] in (401, 403):
                assert (got.status, got.json()["reason"]) == (said["status"], said["reason"]), (row, name)
            else:
                assert got.status not in (401, 403) or row["route"].startswith("/api/webhooks"), (row, name, got.status)
            compared += 1
    assert compared == len(rules) * 4


def test_expectations_that_hold_and_that_do_not(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "access.toml").write_text(GOOD)
    assert run(["access", "--check", "access.toml"]) == 0
    assert capsys.readouterr().out == "access.toml: 3 of 3 expectations hold\n"
    (folder / "access.toml").write_text(GOOD.replace('reason = "user"', 'reason = "role"').replace("status = 200", "status = 403"))
    assert run(["access", "--check", "access.toml"]) == 1
    assert capsys.readouterr().out.splitlines() == [
        "alice: GET /api/orgs/north/audit: 200, not 403",
        "machine: GET /api/data: 403 user, not 403 role",
        "access.toml: 1 of 3 expectations hold",
    ]


@pytest.mark.parametrize(("change", "said"), [
    (("[callers.alice]", "[caller.alice]"), "unknown key 'caller'"),
    (('role = "org:admin"', 'rôle = "org:admin"'), "not valid"),
    (('role = "org:admin"', 'roles = "org:admin"'), "callers.alice: unknown key 'roles'"),
    (('org = "north"\nrole', "role"), "callers.alice: a role needs an organisation"),
    (('caller = "alice"', 'caller = "bob"'), "expectation 2: no caller is named 'bob'"),
    (('caller = "alice"', "caller = []"), "expectation 2: no caller is named []"),
    (("status = 401", 'status = "401"'), "expectation 1: status must be a number"),
    (("status = 401", "status = true"), "expectation 1: status must be a number"),
    (('request = "GET /api/data"\nstatus = 401', 'request = "/api/data"\nstatus = 401'), "expectation 1: request must be a method and a path"),
    (("status = 401", "answer = 401"), "expectation 1: unknown key 'answer'"),
])  # fmt: skip
def test_a_mistake_in_the_file_is_one_line(change: tuple[str, str], said: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert change[0] in GOOD
    (folder / "access.toml").write_text(GOOD.replace(*change, 1))
    assert run(["access", "--check", "access.toml"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("gatepost: access.toml: ")
    assert said in error or said == "not valid"
    assert error.count("\n") == 1


def test_a_file_that_is_missing_or_empty(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["access", "--check", "none.toml"]) == 2
    assert capsys.readouterr().err == "gatepost: none.toml cannot be read (No such file or directory)\n"
    (folder / "none.toml").write_text("")
    assert run(["access", "--check", "none.toml"]) == 2
    assert capsys.readouterr().err == "gatepost: none.toml: it has no [[expect]]\n"


def test_an_organisations_key_is_no_user() -> None:
    app = build_app()
    rules = [(route.method, rule) for route, rule in app[TABLE].rules.items()]
    key = identity_from({"org": "o"})
    assert (key.token_type, key.user_id) == ("api_key", None)
    found = {row["route"]: row["callers"]["k"] for row in table(rules, {"k": key})}
    assert found["/api/data"] == {"status": 403, "reason": "user"}
