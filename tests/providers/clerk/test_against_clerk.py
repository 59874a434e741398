"""Clerk's own verifier beside ours, row by row: ours is never more lenient, and the page about Clerk says where they differ.

`python -m tests.providers.clerk.test_against_clerk` prints the table of the page.
"""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any, NamedTuple

import pytest
from kits import ROOT
from kits import clerk_backend as theirs
from kits import tokens as kit
from kits.app import serving
from kits.clerk_machine_rows import M2M, OAUTH, ROWS, SESSION, Row

from .test_machine_jwt import app_of, ask, groups

PAGE = ROOT / "docs" / "guides" / "clerk.md"
# Where ours accepts what theirs refuses, and why.
MORE = {
    "`aud` is missing": "with `CLERK_REQUIRE_AUDIENCE=true` it is refused here too",
    "`aud` is foreign, `CLERK_AUDIENCE_MODE=observe`": "the operator tries the check first",
}
PATHS = {OAUTH: "/oauth", M2M: "/m2m", SESSION: "/usual"}


class Verdict(NamedTuple):
    """What the two say about a token where one type alone is accepted, and where all are."""

    row: Row
    ours: dict[str, Any]
    theirs: dict[str, Any]


def options(row: Row) -> dict[str, Any]:
    """The same settings for `authenticateRequest`. It has no setting that makes an audience optional or only observed."""
    audience = {"audience": row.settings["audience"]} if "audience" in row.settings else {}
    return {"authorizedParties": [kit.PARTY], "issuer": kit.ISSUER, **audience}


async def compare() -> list[Verdict]:
    """Both verdicts for each row and each token type that a route may name alone, and for all three together."""
    found: list[Verdict] = []
    cases = []
    for settings, rows in groups():
        async with serving(app_of(json.loads(settings))) as port:
            for row in rows:
                token, now = row.token(), time.time()
                for accepts, path in (*PATHS.items(), ([OAUTH, M2M, SESSION], "/any")):
                    status, body = await ask(port, path, token)
                    said = {"reason": body["reason"]} if status != 200 else {
                        "type": body["token_type"], "subject": body["user_id"] or body["key_id"], "scopes": body["scopes"], "id": body["token_id"]}  # fmt: skip
                    found.append(Verdict(row, {"accepts": accepts, **said}, {}))
                    cases.append({"token": token, "accepts": accepts, "options": options(row), "now": now})
    answers = await asyncio.to_thread(theirs.verdicts, kit.pem(kit.rsa_key()), kit.PUBLISHABLE_KEY, cases)
    assert len(answers) == len(found)
    return [one._replace(theirs=answer) for one, answer in zip(found, answers, strict=True)]


async def test_ours_is_never_more_lenient() -> None:
    """What ours accepts theirs accepts, as the same type and subject, with no fewer scopes."""
    wrong, both = [], 0
    for row, ours, other in await compare():
        if "type" not in ours:
            continue
        if "type" not in other:
            if row.name not in MORE or ours["type"] == SESSION:
                wrong.append((row.kind, row.name, ours, other))
            continue
        both += 1
        same = (ours["type"], ours["subject"]) == (other["type"], other["subject"])
        fewer = set(ours["scopes"] or ()) <= set(other["scopes"] or ())
        named = ours["type"] == SESSION or (ours["id"] or "") == other["id"]
        if not (same and fewer and named):
            wrong.append((row.kind, row.name, ours, other))
    assert wrong == []
    assert both >= 40


async def test_the_page_has_every_row() -> None:
    lines = table(await compare())  # skips where their package is missing
    text = PAGE.read_text("utf-8").partition("## Machine tokens, case by case")[2].partition("\n## ")[0]
    assert theirs.version() in text
    missing = [line for line in lines if line not in text]
    assert missing == []
    listed = [line for line in text.rpartition("\n|---")[2].splitlines()[1:] if line.startswith("| ")]
    assert [line for line in listed if line not in lines] == []


def table(verdicts: list[Verdict]) -> list[str]:
    """The rows of the page: on a route that accepts the kind of the row alone."""
    names = {OAUTH: "OAuth", M2M: "M2M", SESSION: "session"}
    kinds: dict[tuple[str, str, str], list[str]] = {}
    for row, ours, other in verdicts:
        if ours["accepts"] != row.kind:
            continue
        said = "accepted" if "type" in ours else f"`{ours['reason']}`"
        note = f"; {MORE[row.name]}" if "type" in ours and "type" not in other else ""
        theirs_said = "accepted" if "type" in other else f"`{other['reason']}`"
        kinds.setdefault((row.name, said + note, theirs_said), []).append(names[row.kind])
    return [f"| {', '.join(of)} | {name} | {said} | {other} |" for (name, said, other), of in kinds.items()]


if __name__ == "__main__":
    print("\n".join(table(asyncio.run(compare()))))


@pytest.mark.parametrize("name", MORE)
def test_the_exceptions_are_rows(name: str) -> None:
    assert any(row.name == name for row in ROWS)
