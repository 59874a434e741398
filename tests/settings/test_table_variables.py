"""Variables of the environment that cannot be read, or that say nothing: refused with the setting's name, never ignored."""

from __future__ import annotations

import pytest

from server.app import build
from server.settings.setting import ConfigError
from server.settings.sources import Settings

USUAL = {"GATEPOST_ENV": "test", "GATEPOST_PROVIDERS": "stub", "DATABASE_URL": "postgresql:///x"}


@pytest.mark.parametrize(("name", "table"), [
    ("GATEPOST_OIDC_ISSUERS", "[[oidc.issuers]]"), ("GATEPOST_API_KEY_KEYS", "[[api_key.keys]]"), ("GATEPOST_OPENAPI_CONTACT", "[openapi.contact]"),
])  # fmt: skip
def test_a_table_is_read_from_the_settings_file_only(name: str, table: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build(Settings(environ={**USUAL, name: "hunter2"}))
    assert str(caught.value) == (
        f"{name}: not read from the environment: write {table} into the settings file, which GATEPOST_CONFIG or --config names"
    )


@pytest.mark.parametrize(("name", "value", "said"), [
    ("GATEPOST_REVOCATION_MAX_STALENESS", "0", "must be at least 0.5"), ("GATEPOST_REVOCATION_MAX_STALENESS", "-1", "must be at least 0.5"),
    ("GATEPOST_REVOCATION_MAX_STALENESS", "nan", "must be a number"), ("GATEPOST_REVOCATION_MAX_STALENESS", "inf", "must be a number"),
    ("GATEPOST_LIMITS_CALLER", "0/minute", "must be one rate such as 6000/minute"), ("GATEPOST_LIMITS_CALLER", "60", "must be one rate"),
    ("GATEPOST_LIMITS_ADDRESS", "no", "must be"),
])  # fmt: skip
def test_a_limit_that_would_switch_something_off_unnoticed_is_refused(name: str, value: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build(Settings(environ={**USUAL, name: value}))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
