"""Variables of a provider's name that nothing reads: each is named at startup, with the one that was probably meant."""

import logging
from typing import Any

import pytest
from kits import oidc

from providers.jwt.variables import unread
from providers.oidc.advice import advice
from tests.conftest import Serve


@pytest.mark.parametrize(("name", "line"), [
    ("OIDC_ISSUER", "OIDC_ISSUER is set and not read: issuers are [[oidc.issuers]] in the settings file"),
    ("OIDC_CLIENT_ID", "OIDC_CLIENT_ID is set and not read: issuers are [[oidc.issuers]] in the settings file"),
    ("OIDC_NONCE_SECRET", "OIDC_NONCE_SECRET is set and not read: the variable is GATEPOST_OIDC_DPOP_NONCE_SECRET"),
    ("OIDC_SERVICE_HOST", None), ("OIDC_PORT_443_TCP", None), ("OIDCS", None), ("GATEPOST_OIDC_ISSUER", None),
])  # fmt: skip
def test_oidc(name: str, line: str | None) -> None:
    assert advice({name: "s3cret"}) == ([line] if line else [])


def test_only_what_has_a_value() -> None:
    assert unread({"A_B": "", "A_C": " \n", "A_KEY": "x", "A_KEY_FILE": "x", "B_KEY": "x"}, "A_", ("A_KEY",)) == []


async def test_the_log_of_a_start_names_them(
    serve: Serve, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {"OIDC_ISSUER": "s3cret", "API_KEY_SCOPES": "s3cret", "API_KEY_OF_ANOTHER": "s3cret", "CLERK_AUTHORISED_PARTIES": "s3cret"}
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    caplog.set_level(logging.WARNING)
    async with oidc.serve() as issuer:
        settings: dict[str, Any] = {"providers": ["clerk", "oidc", "api_key"], "env": "development"}
        await serve(settings | {"oidc.issuers": [{"issuer": issuer.url, "audience": oidc.AUDIENCE, "namespace": "a"}]})
    assert "s3cret" not in caplog.text
    assert [line for line in caplog.messages if "is set and not read" in line] == [
        "CLERK_AUTHORISED_PARTIES is set and not read; the nearest known one is CLERK_AUTHORIZED_PARTIES",
        "OIDC_ISSUER is set and not read: issuers are [[oidc.issuers]] in the settings file",
        "API_KEY_SCOPES is set and not read: the variable is GATEPOST_API_KEY_SCOPES",
    ]
