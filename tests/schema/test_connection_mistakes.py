"""An everyday mistake in `database.url` is one line that says where and what to do, for serving and for every command."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from kits import ROOT

from tests.conftest import url_of

MISTAKES = [
    ("postgresql://nobody_here:s3cret@{place}", 2, 'role "nobody_here" does not exist ('),
    ("postgresql://gp_no_login:s3cret@{place}", 2, 'role "gp_no_login" is not permitted to log in ('),
    ("postgresql://postgres:s3cret@{nowhere}", 2, 'database "nowhere" does not exist ('),
    ("postgresql://gatepost_app:s3cret@no-such-host.invalid:5433/gatepost", 2, "the host is not known (no-such-host.invalid:5433/gatepost)"),
    ("postgresql://gatepost_app:s3cret@no-such-host.invalid/gatepost", 2, "the host is not known (no-such-host.invalid:5432/gatepost)"),
    ("postgresql://gatepost_app:s3cret@127.0.0.1:port/gatepost", 2, "database.url (DATABASE_URL)"),
    ("mysql://gatepost_app:s3cret@127.0.0.1:1/gatepost", 2, "database.url (DATABASE_URL)"),
    ("postgresql://gatepost_app:s3cret@127.0.0.1:1/gatepost", 1, "the database cannot be reached: database: ConnectionRefusedError (127.0.0.1:1/gatepost)"),
]  # fmt: skip


EVERY = [(words, *one) for words in (["--port", "0"], ["check"]) for one in MISTAKES]
SOME = [(words, *one) for words in (["keys", "list", "--user", "u"], ["tables"]) for one in (MISTAKES[0], MISTAKES[-1])]


@pytest.mark.parametrize(("words", "url", "status", "said"), [*EVERY, *SOME])
async def test_a_mistake_in_the_url_is_one_line_without_a_secret(
    words: list[str], url: str, status: int, said: str, postgres: Any, db: Any, tmp_path: Path
) -> None:
    async with postgres.as_admin(db.name) as admin:
        if not await admin.fetchval("SELECT 1 FROM pg_roles WHERE rolname = 'gp_no_login'"):
            await admin.execute("CREATE ROLE gp_no_login NOLOGIN")
    place = url_of(postgres, "x", db.name).partition("@")[2]
    given = {"DATABASE_URL": url.format(place=place, nowhere=place.replace(db.name, "nowhere"))}
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("GATEPOST_", "DATABASE_"))}
    environment |= {"GATEPOST_ENV": "test", "GATEPOST_OPS_PORT": "0", "PYTHONPATH": str(ROOT), **given}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "server", *words, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    output, _ = await asyncio.wait_for(process.communicate(), 60)
    told = [line for line in output.decode().splitlines() if said in line]
    assert len(told) == 1, output.decode()
    assert "Traceback" not in output.decode()
    assert "s3cret" not in output.decode()
    if words != ["check"] or status == 2:
        assert process.returncode == status
