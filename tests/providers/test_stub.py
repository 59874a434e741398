"""The stub's header has the grammar of RFC 9110: auth-params in any order and case, in a list with empty elements."""

from __future__ import annotations

import pytest

from tests.conftest import Client

ALL = {"user_id": "u", "org_id": "o", "org_role": "org:admin", "org_permissions": ["org:invoices:read", "org:invoices:create"]}
NO_ORG = dict.fromkeys(("org_id", "org_role", "org_permissions"))


@pytest.mark.parametrize(("params", "identity"), [
    ('user_id="u", org_id="o", org_role="org:admin", org_permissions="org:invoices:read org:invoices:create"', ALL),
    ('org_permissions="org:invoices:read org:invoices:create",org_role="org:admin",org_id="o",user_id="u"', ALL),
    ('USER_ID="u", Org_Id="o", ORG_role="org:admin", org_PERMISSIONS="org:invoices:read org:invoices:create"', ALL),
    ("user_id=u", {"user_id": "u", **NO_ORG}),
    ('user_id = "u"', {"user_id": "u", **NO_ORG}),
    (', user_id="u",, ,org_id="o" , ', {"user_id": "u", "org_id": "o"}),
    (r'user_id="a\"b\\c, d=e"', {"user_id": 'a"b\\c, d=e'}),
    ('user_id="u,"', {"user_id": "u,"}),
])  # fmt: skip
async def test_what_is_well_formed(client: Client, params: str, identity: dict[str, object]) -> None:
    for scheme in ("Stub", "stub", "STUB"):
        got = await client.get("/api/me", {"Authorization": f"{scheme} {params}"})
        assert got.status == 200, got.raw
        assert {name: got.json()[name] for name in identity} == identity


@pytest.mark.parametrize("params", [
    "", ",", "user_id", "user_id=", 'user_id=""', 'org_id="o"', 'user_id="u" org_id="o"', 'user_id="u", user_id="u"',
    'user_id="u", User_ID="v"', 'user_id="u", name="x"', 'user_id="u', 'user_id="u,', 'user_id="u\\"', 'user_id=a b', "user-id=u",
])  # fmt: skip
async def test_what_is_not(client: Client, params: str) -> None:
    got = await client.get("/api/me", {"Authorization": f"Stub {params}".rstrip()})
    assert (got.status, got.json()) == (401, {"error": "Unauthorized", "reason": "credential-rejected"})
