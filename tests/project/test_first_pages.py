"""The pages of the first hour, the first deploy and the first incident: their commands are run, their messages are the program's."""

from __future__ import annotations

import re
import shutil
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from kits import DOCS, ROOT, doc_page
from kits import pages as page_kit
from kits.pages import blocks, steps

from server.plugins.loader import Plugins
from server.settings.sources import Settings

HOUR, DEPLOY, INCIDENT = (doc_page(f"first-{name}.md").read_text("utf-8") for name in ("hour", "deploy", "incident"))
needs_curl = pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")


async def follow(shell: page_kit.Shell, page: str, which: slice) -> None:
    """Run these console blocks of a page in order, and hold what they print against what is shown."""
    for block in blocks("console", page=page)[which]:
        for step in steps(block.text):
            _, said, wrong = await shell.run(step.command)
            assert page_kit.fits(step.shown, said), f"{step.command}\n--- shown\n{step.shown}\n--- said\n{said}{wrong}"


@needs_curl
@pytest.mark.long
async def test_the_first_hour_is_true(tmp_path: Path) -> None:
    await follow(page_kit.Shell(tmp_path, {}), "docs/guides/first-hour.md", slice(0, 1))
    async with page_kit.shell_beside_a_server(tmp_path) as shell:
        await follow(shell, "docs/guides/first-hour.md", slice(1, None))
    # The mistake that no check finds: row-level security still hides the other organisation's rows.
    handlers = tmp_path / "notes" / "handlers.py"
    text = handlers.read_text("utf-8")
    broken = text.replace("WHERE organization_id = $1 AND (created_at", "WHERE (true OR organization_id = $1) AND (created_at")
    assert broken != text
    handlers.write_text(broken)
    async with page_kit.shell_beside_a_server(tmp_path) as again:
        again.inherit(shell)
        assert (await again.run('curl -s -H "$BOB" $ORGS/south/notes/items'))[1] == "[]"
        assert "milk" in (await again.run('curl -s -H "$ALICE" $ORGS/north/notes/items'))[1]


@pytest.mark.parametrize(
    ("said", "given"),
    [
        ("unknown variable GATEPOST_PROVDERS; the nearest known one is 'GATEPOST_PROVIDERS'", {"GATEPOST_PROVDERS": "clerk"}),
        (
            "clerk.publishable_key (CLERK_PUBLISHABLE_KEY) is not a publishable key: this is a secret key",
            {"CLERK_PUBLISHABLE_KEY": "sk_test_abc"},
        ),
        ("clerk.authorized_parties (CLERK_AUTHORIZED_PARTIES): 'app.example.com' is not an origin", {"CLERK_AUTHORIZED_PARTIES": "app.example.com"}),
        ("database.url (DATABASE_URL): production needs one", {"GATEPOST_ENV": "production"}),
        (
            "clerk needs authorized parties in production: set CLERK_AUTHORIZED_PARTIES",
            {
                "GATEPOST_ENV": "production",
                "CLERK_PUBLISHABLE_KEY": "pk_live_Y2xlcmsuZXhhbXBsZS5jb20k",
                "DATABASE_URL": "postgresql://gatepost_app@127.0.0.1:1/gatepost",
            },
        ),
    ],
)
async def test_the_messages_on_the_mistakes_of_the_first_hour(tmp_path: Path, said: str, given: dict[str, str]) -> None:
    assert said in HOUR
    words = " ".join(f"{name}={value}" for name, value in given.items())
    status, _, wrong = await page_kit.Shell(tmp_path, {}).run(f"{words} GATEPOST_OPS_PORT=0 python -m server --port 0")
    assert (status, said in wrong) == (2, True), wrong


def test_the_settings_of_the_first_deploy_are_settings(tmp_path: Path) -> None:
    (block,) = blocks("toml", page="docs/guides/first-deploy.md")
    read = tomllib.loads(block.text)
    assert not {"data", "orgs", "invoices"} & set(read["handlers"]), "the samples are off"
    file = tmp_path / "gatepost.toml"
    file.write_text(block.text.replace('plugins = ["notes"]\n', ""))
    Plugins(
        Settings(
            file=file, environ={"GATEPOST_ENV": "production", "DATABASE_URL": "postgresql://gatepost_app@127.0.0.1:1/gatepost"}
        )
    )


@needs_curl
@pytest.mark.long
async def test_the_commands_of_the_first_incident_are_true(tmp_path: Path) -> None:
    async with page_kit.shell_beside_a_server(tmp_path) as shell:
        await follow(shell, "docs/guides/first-incident.md", slice(None))


def sources() -> Iterator[str]:
    for folder in ("server", "providers", "handlers"):
        for path in (ROOT / folder).rglob("*.py"):
            yield path.read_text("utf-8")


@pytest.mark.parametrize(
    "message",
    [
        "the database is unavailable",
        "revocation feed interrupted",
        "the database cannot be reached",
        "the keys cannot be refreshed",
        "the key set of",
        "not safe to serve from, rolled back",
        "no access is declared",
    ],
)
def test_a_message_of_the_pages_is_one_of_the_programs(message: str) -> None:
    assert message in HOUR + INCIDENT
    assert any(message in text for text in sources())


def test_every_metric_and_alert_of_the_pages_exists() -> None:
    known = (DOCS / "reference" / "observability.md").read_text("utf-8").replace("…_", "gatepost_provider_")
    for name in re.findall(r"gatepost_[a-z_]+(?:_total|_seconds|_connections|_waiting)", INCIDENT):
        assert name in known, name
