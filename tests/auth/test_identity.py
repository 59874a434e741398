"""Identity.has(): every rule of Clerk's; anything missing or malformed is refused."""

import math
from typing import Any

import pytest
from kits.app import caller

from server import CredentialRejected, Identity
from server.auth.identity import TOKEN_TYPES
from server.auth.reverification import PRESETS, is_fresh

MACHINES = sorted(TOKEN_TYPES - {"session_token"})
STEP_UP = [  # fva, strict_mfa, strict, moderate, lax
    ([0, -1], True, True, True, True),
    ([9, -1], True, True, True, True),
    ([10, -1], False, False, True, True),
    ([10, 9], False, True, True, True),
    ([9, 10], False, False, True, True),
    ([-1, 5], False, True, True, True),
    ([60, 60], False, False, False, True),
    ([1440, 1440], False, False, False, False),
    ([-1, -1], False, False, False, False),
    (None, False, False, False, False),
    ([1], False, False, False, False),
    ([-2, 1], False, False, False, False),
]


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("row", STEP_UP, ids=lambda row: str(row[0]))
def test_presets_of_reverification(row: tuple[Any, ...], preset: str) -> None:
    expected = dict(zip(("strict_mfa", "strict", "moderate", "lax"), row[1:], strict=True))[preset]
    assert caller(claims={"fva": row[0]}).has(reverification=preset) is expected


@pytest.mark.parametrize(
    "fva",
    [[], [1, 2, 3], "00", {"0": 0, "1": 0}, [None, 0], ["0", "0"], [True, True], [0, False], [math.nan, 0], [0, math.inf],
     [-0.5, 0], [0, -1.5], [10**400, 0], [0, 10**400], 0, [[0, 0]]],
    ids=str,
)  # fmt: skip
def test_a_malformed_fva_is_never_fresh(fva: object) -> None:
    assert not any(is_fresh(fva, preset) for preset in PRESETS)
    assert not caller(claims={"fva": fva}).has(reverification="lax")


@pytest.mark.parametrize(
    ("level", "fva", "expected"),
    [
        ("first_factor", [4, 9], True),
        ("first_factor", [5, 0], False),
        ("first_factor", [-1, 0], False),
        ("second_factor", [9, 4], True),
        ("second_factor", [0, 5], False),
        ("second_factor", [4, -1], True),
        ("second_factor", [-1, 4], True),
        ("multi_factor", [4, 4], True),
        ("multi_factor", [4, 5], False),
        ("multi_factor", [5, 4], False),
        ("multi_factor", [4, -1], True),
        ("multi_factor", [-1, 4], False),
    ],
)
def test_a_level_with_minutes_of_its_own(level: str, fva: list[int], expected: bool) -> None:
    assert caller(claims={"fva": fva}).has(reverification={"level": level, "afterMinutes": 5}) is expected


@pytest.mark.parametrize(
    "asked",
    ["", "Strict", "strict ", "mfa", {}, {"level": "first_factor"}, {"afterMinutes": 5}, {"level": "third_factor", "afterMinutes": 5},
     {"level": ["first_factor"], "afterMinutes": 5}, {"level": "first_factor", "afterMinutes": 0},
     {"level": "first_factor", "afterMinutes": -1}, {"level": "first_factor", "afterMinutes": "5"},
     {"level": "first_factor", "afterMinutes": True}, {"level": "first_factor", "afterMinutes": math.nan},
     {"level": "first_factor", "afterMinutes": math.inf}, {"level": "first_factor", "afterMinutes": 100_000},
     {"level": "first_factor", "afterMinutes": 5, "more": 1}, 5, True, ["strict"], ("first_factor", 5)],
    ids=str,
)  # fmt: skip
def test_an_ill_formed_question_about_freshness_is_a_no(asked: Any) -> None:
    assert not caller(claims={"fva": [0, 0]}).has(reverification=asked)


@pytest.mark.parametrize("held", ["admin", "org:admin", "org:org:admin"])
@pytest.mark.parametrize("asked", ["admin", "org:admin", "org:org:admin"])
def test_any_number_of_leading_org_is_one_in_a_role(held: str, asked: str) -> None:
    assert caller(org_role=held).has(role=asked)


@pytest.mark.parametrize(
    ("held", "asked"),
    [("org:admin", "org:Admin"), ("org:admin", "org:admi"), ("org:admin", "org:member"), ("org:admin", "org:admin "), ("org:admin", ""),
     ("org:admin", "org:"), ("org:", "org:"), ("org:", "org:org:"), ("", ""), ("", "org:"), (None, "org:admin"), (5, "org:admin"),
     (["org:admin"], "org:admin"), ("org:admin", 5), ("org:admin", ["org:admin"]), ("org:admin", False), ("org:admin", b"org:admin")],
)  # fmt: skip
def test_a_role_that_is_another_or_is_odd_is_a_no(held: Any, asked: Any) -> None:
    assert caller(org_role=held).has(role=asked) is False


@pytest.mark.parametrize("asked", ["invoices:read", "org:invoices:read", "org:org:invoices:read"])
def test_the_asked_permission_is_normalised(asked: str) -> None:
    assert caller(org_permissions=["org:invoices:read"]).has(permission=asked)


@pytest.mark.parametrize(
    ("held", "asked"),
    [(["invoices:read"], "invoices:read"), (["org:org:invoices:read"], "invoices:read"), (["org:invoices:read"], "org:invoices"),
     (["org:invoices:read"], "org:Invoices:read"), (["org:invoices:read"], ""), ([], "org:invoices:read"), (None, "org:invoices:read"),
     (["org:"], "org:"), (["org:"], ""), (["org:invoices:read"], 5), (["org:invoices:read"], ["org:invoices:read"]),
     (["org:invoices:read"], False)],
)  # fmt: skip
def test_the_stored_permission_is_not_normalised_and_membership_is_exact(held: Any, asked: Any) -> None:
    assert caller(org_permissions=held).has(permission=asked) is False


def test_role_and_permission_need_an_active_organisation() -> None:
    nowhere = caller(org_id=None, org_role="org:admin", org_permissions=["org:invoices:read"])
    assert not nowhere.has(role="org:admin")
    assert not nowhere.has(permission="org:invoices:read")


@pytest.mark.parametrize("word", ["feature", "plan"])
@pytest.mark.parametrize(
    ("claim", "asked", "expected"),
    [
        ("o:widgets", "widgets", True),
        ("u:widgets", "widgets", True),
        ("o:widgets", "org:widgets", True),
        ("o:widgets", "o:widgets", True),
        ("o:widgets", "organization:widgets", True),
        ("o:widgets", "user:widgets", False),
        ("o:widgets", "u:widgets", False),
        ("u:widgets", "user:widgets", True),
        ("u:widgets", "u:widgets", True),
        ("u:widgets", "org:widgets", False),
        ("ou:widgets", "org:widgets", True),
        ("ou:widgets", "user:widgets", True),
        ("uo:widgets", "org:widgets", True),
        ("uo:widgets", "user:widgets", True),
        ("o:a, u:widgets", "user:widgets", True),
        ("o:widgets", "team:widgets", False),
        ("o:widgets", "Org:widgets", False),
        ("o:widgets", "org:widgets:more", True),
        ("o:widgets", "org:", False),
        ("o:widgets", ":widgets", False),
        ("o:widgets", ":", False),
        ("o:widgets", "", False),
        ("o:widgets", "Widgets", False),
        ("o:widgets", "widget", False),
        ("x:widgets", "widgets", False),
        ("O:widgets", "widgets", False),
        (":widgets", "widgets", False),
        ("o:", "", False),
        ("", "widgets", False),
        ("widgets", "widgets", False),
        ("o:widgets,broken", "widgets", False),
        ("o:widgets,", "widgets", False),
        (None, "widgets", False),
        (["o:widgets"], "widgets", False),
        ({"o": "widgets"}, "widgets", False),
        (5, "widgets", False),
        ("o:widgets", 5, False),
        ("o:widgets", ["widgets"], False),
        ("o:widgets", False, False),
    ],
)
def test_features_and_plans(word: str, claim: object, asked: Any, expected: bool) -> None:
    claims = {{"feature": "fea", "plan": "pla"}[word]: claim}
    assert caller(claims=claims).has(**{word: asked}) is expected
    assert caller(claims=claims, org_id=None).has(**{word: asked}) is expected, "no organisation is needed"


def test_a_feature_is_not_a_plan() -> None:
    assert not caller(claims={"fea": "o:gold"}).has(plan="gold")
    assert not caller(claims={"pla": "o:gold"}).has(feature="gold")


WHOLE = {
    "org_role": "org:admin",
    "org_permissions": ["org:invoices:read"],
    "claims": {"fea": "o:widgets", "pla": "u:gold", "fva": [1, 1]},
}
ALL = {"role": "admin", "permission": "invoices:read", "feature": "widgets", "plan": "gold", "reverification": "strict_mfa"}
WRONG = {
    "role": "member",
    "permission": "x:y",
    "feature": "z",
    "plan": "z",
    "reverification": {"level": "multi_factor", "afterMinutes": 1},
}


def test_everything_asked_and_everything_held_is_a_yes() -> None:
    assert caller(**WHOLE).has(**ALL)


@pytest.mark.parametrize("spoiled", WRONG)
def test_one_no_spoils_the_whole(spoiled: str) -> None:
    assert caller(**WHOLE).has(**(ALL | {spoiled: WRONG[spoiled]})) is False


@pytest.mark.parametrize("missing", ["org_role", "org_permissions", "claims"])
def test_missing_data_is_never_skipped(missing: str) -> None:
    assert caller(**(WHOLE | {missing: None})).has(**ALL) is False


def test_nothing_asked_is_a_no() -> None:
    assert caller(**WHOLE).has() is False
    assert caller(**WHOLE).has(role=None, permission=None, feature=None, plan=None, reverification=None) is False


def test_a_misspelt_question_is_an_error() -> None:
    with pytest.raises(TypeError):
        caller(**WHOLE).has(rol="org:admin")
    with pytest.raises(TypeError):
        caller(**WHOLE).has("org:admin")


def test_a_session_without_a_user_has_nothing() -> None:
    assert not any(caller(**WHOLE, user_id=None).has(**{word: value}) for word, value in ALL.items())


@pytest.mark.parametrize("token_type", MACHINES)
@pytest.mark.parametrize("word", ["feature", "plan", "reverification"])
def test_machines_prove_no_plan_no_feature_and_no_freshness(token_type: str, word: str) -> None:
    assert caller(**WHOLE, token_type=token_type).has(**{word: ALL[word]}) is False


@pytest.mark.parametrize("token_type", MACHINES)
def test_a_machine_has_the_role_and_permissions_that_its_provider_gives_it(token_type: str) -> None:
    assert caller(**WHOLE, token_type=token_type, user_id=None).has(role="org:admin", permission="org:invoices:read")


def test_an_identity_does_not_change() -> None:
    it = caller(org_permissions=["org:a:b"], scopes=["read"])
    for name in ("org_id", "user_id", "org_permissions", "_permissions", "new"):
        with pytest.raises(AttributeError):
            setattr(it, name, "org_2")
    with pytest.raises(AttributeError):
        del it.org_id
    assert isinstance(it.org_permissions, tuple)
    assert isinstance(it.scopes, tuple)


def test_later_changes_of_the_given_lists_do_not_reach_the_identity() -> None:
    permissions, scopes = ["org:a:b"], ["read"]
    it = caller(org_permissions=permissions, scopes=scopes)
    permissions.append("org:c:d")
    scopes.append("write")
    assert not it.has(permission="org:c:d")
    assert it.scopes == ("read",)


def test_repr_names_the_caller_and_never_the_claims() -> None:
    shown = repr(caller(claims={"secret": "canary-claim"}, session_id="sess_canary", org_permissions=["org:canary:read"]))
    assert "user_1" in shown
    assert "org_1" in shown
    assert "canary" not in shown


@pytest.mark.parametrize(
    "fields",
    [{"token_type": "session"}, {"token_type": ""}, {"token_type": None}, {"user_id": ""}, {"user_id": " "}, {"user_id": "a\nb"},
     {"user_id": "a\x00b"}, {"user_id": "x" * 256}, {"user_id": 5}, {"user_id": b"user"}, {"user_id": "\ud800"}, {"org_id": ""},
     {"org_id": "a\x7fb"}, {"org_id": 5}, {"org_id": ["org_1"]}, {"org_permissions": "org:a:b"}, {"org_permissions": [5]},
     {"org_permissions": ["a", None]}, {"scopes": "read write"}, {"scopes": [b"read"]}],
    ids=str,
)  # fmt: skip
def test_bad_values_make_no_identity(fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        caller(**fields)


def test_a_provider_must_be_named_and_all_goes_by_keyword() -> None:
    with pytest.raises(TypeError):
        Identity(user_id="user_1")  # type: ignore[call-arg]
    with pytest.raises(TypeError):
        Identity("clerk")  # type: ignore[misc]
    with pytest.raises(TypeError):
        Identity(provider="x", admin=True)  # type: ignore[call-arg]


def test_an_error_of_the_constructor_does_not_repeat_the_value() -> None:
    with pytest.raises(ValueError) as caught:
        caller(user_id="canary\x00")
    assert "canary" not in str(caught.value)


def test_what_is_left_out_is_none() -> None:
    it = Identity(provider="x")
    assert (it.user_id, it.org_id, it.org_role, it.org_permissions, it.scopes, it.claims, it.issued_at, it.key_id) == (
        None,
    ) * 8
    assert it.token_type == "access_token"


@pytest.mark.parametrize(
    ("fields", "actor"),
    [({"user_id": "user_1"}, "user_1"), ({"user_id": None, "token_type": "api_key", "key_id": "k1"}, "key:k1")],
)
def test_the_actor_is_the_user_or_the_key(fields: dict[str, Any], actor: str) -> None:
    assert caller(**fields).actor == actor


@pytest.mark.parametrize(
    ("claims", "pending"),
    [(None, False), ({}, False), ({"sts": "active"}, False), ({"sts": "pending"}, True), ({"sts": "Active"}, True), ({"sts": None}, True),
     ({"sts": ""}, True), ({"sts": 1}, True), ({"sts": "newly-invented"}, True)],
)  # fmt: skip
def test_only_a_session_known_to_be_active_is_not_pending(claims: dict[str, Any] | None, pending: bool) -> None:
    assert caller(claims=claims).pending is pending
    assert caller(claims=claims, token_type="access_token").pending is False


def test_a_rejection_says_its_slug_and_keeps_its_detail_apart() -> None:
    rejected = CredentialRejected("token-expired", "canary detail")
    assert (str(rejected), rejected.reason, rejected.detail) == ("token-expired", "token-expired", "canary detail")
    assert CredentialRejected().reason == "credential-rejected"


@pytest.mark.parametrize("moment", [float("nan"), float("inf"), float("-inf")])
def test_the_end_of_a_credential_is_a_time(moment: float) -> None:
    with pytest.raises(ValueError, match="expires_at"):
        Identity(provider="x", expires_at=moment)
    assert Identity(provider="x", expires_at=1.5).expires_at == 1.5
    assert Identity(provider="x").expires_at is None
