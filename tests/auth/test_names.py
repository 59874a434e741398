"""The rules for the names in an identity: one implementation, used by the server and by every provider."""

import re
from typing import Any

import pytest
from kits import ROOT

from server import Identity, is_plain_text, with_org_prefix

SOURCES = sorted(path for package in ("server", "providers", "handlers") for path in (ROOT / package).rglob("*.py"))


@pytest.mark.parametrize(
    ("name", "full"),
    [("admin", "org:admin"), ("org:admin", "org:admin"), ("org:org:admin", "org:admin"), ("invoices:read", "org:invoices:read"),
     ("Org:admin", "org:Org:admin"), ("organizer", "org:organizer"), ("", "org:"), ("org:", "org:")],
)  # fmt: skip
def test_a_name_has_exactly_one_prefix(name: str, full: str) -> None:
    assert with_org_prefix(name) == full


@pytest.mark.parametrize("value", ["u", "user_1", "a b", "é", "x" * 255])
def test_what_is_plain_text_can_be_an_id(value: str) -> None:
    assert is_plain_text(value)
    assert Identity(provider="test", user_id=value, org_id=value).user_id == value


@pytest.mark.parametrize("value", ["", " ", "  ", "x" * 256, "a\nb", "a\x00", "\ud800", "\u200b", 5, True, b"user_1", ["user_1"]])
def test_what_is_not_plain_text_cannot_be_an_id(value: Any) -> None:
    assert not is_plain_text(value)
    for field in ("user_id", "org_id"):
        with pytest.raises(ValueError, match=field):
            Identity(provider="test", **{field: value})


@pytest.mark.parametrize(
    ("rule", "home"),
    [(r"startswith\([^)]*[\"']org:[\"']|while \w+\.startswith\(_PREFIX\)", "server/auth/names.py"), (r"\.isspace\(\)", "server/auth/names.py")],
)  # fmt: skip
def test_a_rule_is_written_in_one_place(rule: str, home: str) -> None:
    assert [str(path.relative_to(ROOT)) for path in SOURCES if re.search(rule, path.read_text("utf-8"))] == [home]


def test_the_scope_is_set_by_the_server_alone() -> None:
    """No provider, handler or command has SQL of its own for the settings that the policies read."""
    found = {
        (str(path.relative_to(ROOT)), name)
        for path in SOURCES
        for name in re.findall(r"set_config\('gatepost\.(\w+)'", path.read_text("utf-8"))
    }
    # No policy reads this one: it tells a schema file which role serves.
    assert found == {(f"server/schema/{file}.py", "serving_role") for file in ("migrate", "own_files")}
