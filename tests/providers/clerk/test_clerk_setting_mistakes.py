"""Clerk's settings as people fill them in: normalised, refused, or warned about at startup."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from kits import tokens as kit

from providers.clerk.advice import advice
from providers.clerk.provider import ClerkProvider
from providers.clerk.settings import ClerkSettings
from server.plugins.loader import Plugins
from server.settings.setting import ConfigError
from server.settings.sources import Settings

PUBLISHABLE = "pk_test_Y2xlcmsuZXhhbXBsZS5jb20k"  # clerk.example.com
KEY = {"publishable_key": PUBLISHABLE}


@pytest.mark.parametrize(("key", "written", "field", "read"), [
    ("issuer", ["https://clerk.example.com/"], "issuers", {"https://clerk.example.com"}),
    ("issuer", ["https://Clerk.Example.com"], "issuers", {"https://clerk.example.com"}),
    ("issuer", ["https://clerk.example.com:443"], "issuers", {"https://clerk.example.com"}),
    ("issuer", ["https://app.example.com/__clerk/"], "issuers", {"https://app.example.com/__clerk"}),
    ("api_url", "https://api.clerk.com/v1", "jwks_url", "https://api.clerk.com/v1/jwks"),
    ("api_url", "https://api.clerk.com/v1/", "jwks_url", "https://api.clerk.com/v1/jwks"),
    ("api_url", "https://api.clerk.com/", "jwks_url", "https://api.clerk.com/v1/jwks"),
])  # fmt: skip
def test_another_way_to_write_it_is_read_as_it_is_meant(key: str, written: object, field: str, read: object) -> None:
    assert getattr(ClerkSettings.read({"secret_key": "sk_test_0123456789", key: written}), field) == read


@pytest.mark.parametrize(("key", "written", "said"), [
    ("issuer", ["https://clerk.example.com/.well-known/jwks.json"], "the issuer ends before /.well-known"),
    ("issuer", ["https://clerk.example.com/.well-known/openid-configuration"], "the issuer ends before /.well-known"),
    ("issuer", ["https://api.clerk.com/v1/jwks"], "a key set"),
    ("issuer", ["clerk.example.com"], "must be a URL"),
    ("api_url", "https://api.clerk.com/v1/jwks", "must end before /v1"),
    ("authorized_parties", ["https://app.example.com:443"], "write 'https://app.example.com'"),
    ("authorized_parties", ["http://localhost:80"], "write 'http://localhost'"),
    ("authorized_parties", ["https://App.Example.com"], "write 'https://app.example.com'"),
    ("authorized_parties", ["HTTPS://app.example.com"], "write 'https://app.example.com'"),
    ("authorized_parties", ["https://app.example.com/"], "write 'https://app.example.com'"),
    ("authorized_parties", ["https://app.example.com/sign-in"], "write 'https://app.example.com'"),
    ("authorized_parties", ["app.example.com"], "write 'https://app.example.com'"),
    ("authorized_parties", ["https://app.example.com https://b.example.com"], "separate origins with commas"),
    ("authorized_parties", ["https://app.example.com;https://b.example.com"], "separate origins with commas"),
    ("authorized_parties", ["*"], "is not an origin"),
    ("secret_key", PUBLISHABLE, "this is a publishable key"),
    ("secret_key", "whsec_abc", "this is a webhook's signing secret"),
    ("secret_key", "-----BEGIN PUBLIC KEY-----", "CLERK_JWT_KEY"),
    ("secret_key", "sk_test_abc\ndef", "without blanks or line ends in it"),
    ("secret_key", "sk_test_...", "a placeholder"),
    ("secret_key", "sk_live_xxxxxxxxxx", "a placeholder"),
    ("secret_key", "sk_test_••••••••", "a placeholder"),
    ("publishable_key", "sk_test_0123456789", "this is a secret key"),
])  # fmt: skip
def test_what_can_never_work_is_refused_with_its_variable(key: str, written: object, said: str) -> None:
    text = ",".join(written) if isinstance(written, list) else str(written)
    settings = Settings(environ={"CLERK_PUBLISHABLE_KEY": PUBLISHABLE, f"CLERK_{key.upper()}": text})
    plugins = Plugins(settings)

    def start() -> None:
        plugins.provider("clerk", plugins.offers())

    with pytest.raises(ConfigError) as caught:
        start()
    told = str(caught.value)
    assert said in told
    assert "ValueError" not in told
    assert f"clerk.{key} (CLERK_{key.upper()})" in told
    assert "\n" not in told
    assert not (key == "secret_key" and text in told)


def test_keys_of_different_kinds_are_refused() -> None:
    with pytest.raises(ValueError, match="different kinds"):
        ClerkSettings.read(KEY | {"secret_key": "sk_live_0123456789"})


def advised(table: dict[str, object], env: str = "production", **environ: str) -> list[str]:
    return advice(frozenset(table), ClerkSettings.read(table), env, environ)


@pytest.mark.parametrize(("environ", "read"), [
    ({"CLERK_WEBHOOK_SECRET": "whsec_s3cret"}, "CLERK_WEBHOOK_SIGNING_SECRET"), ({"CLERK_WEBHOOK_SECRET_FILE": "/s3cret"}, "CLERK_WEBHOOK_SIGNING_SECRET"),
    ({"CLERK_API_KEY": "s3cret"}, "CLERK_SECRET_KEY"), ({"CLERK_PEM_PUBLIC_KEY": "s3cret"}, "CLERK_JWT_KEY"),
])  # fmt: skip
def test_a_variable_under_another_name_is_warned_about_with_both(environ: dict[str, str], read: str) -> None:
    [line] = advised(KEY, "development", **environ)
    assert next(iter(environ)).removesuffix("_FILE") in line
    assert read in line
    assert "s3cret" not in line
    key = read.removeprefix("CLERK_").lower()
    value = kit.pem(kit.rsa_key()) if key == "jwt_key" else "sk_test_0123456789" if key == "secret_key" else "whsec_x"
    assert advised(KEY | {key: value}, "development", **environ) == []


def test_a_bundlers_variable_is_warned_about() -> None:
    [line] = advised({"secret_key": "sk_test_0123456789"}, "development", VITE_CLERK_PUBLISHABLE_KEY=PUBLISHABLE)
    assert "VITE_CLERK_PUBLISHABLE_KEY" in line
    assert advised(KEY, "development", VITE_CLERK_PUBLISHABLE_KEY=PUBLISHABLE) == []


@pytest.mark.parametrize(("name", "read"), [
    ("NEXT_PUBLIC_CLERK_PUBLISHABLE_KEY", "CLERK_PUBLISHABLE_KEY"), ("CLERK_API_KEY", "CLERK_SECRET_KEY"),
])  # fmt: skip
def test_missing_keys_name_the_variable_that_holds_them(name: str, read: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "s3cret")
    provider = ClerkProvider({"authorized_parties": ["https://app.example.com"]})
    with pytest.raises(ValueError, match=f"{name} is not read: this server calls it {read}") as caught:
        provider.check("development")
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(("name", "meant"), [
    ("CLERK_AUTHORISED_PARTIES", "CLERK_AUTHORIZED_PARTIES"), ("CLERK_PUBLISHABLEKEY", "CLERK_PUBLISHABLE_KEY"),
    ("CLERK_ISSUER_URL", "CLERK_ISSUER"), ("CLERK_SECRETKEY_FILE", "CLERK_SECRET_KEY_FILE"), ("CLERK_PARTIES", "CLERK_AUTHORIZED_PARTIES"),
])  # fmt: skip
def test_a_misspelt_variable_is_warned_about_with_the_one_that_was_meant(name: str, meant: str) -> None:
    [line] = advised(KEY, "development", **{name: "s3cret"})
    assert line == f"{name} is set and not read; the nearest known one is {meant}"
    assert advised(KEY, "development", **{name: " "}) == []


def test_a_variable_that_nothing_reads_is_warned_about() -> None:
    assert advised(KEY, "development", CLERK_WHATEVER="x") == ["CLERK_WHATEVER is set and not read"]


# The variables of Clerk's front ends, tools and samples, and what Kubernetes sets for a service named clerk.
@pytest.mark.parametrize("name", [
    "CLERK_SIGN_IN_URL", "CLERK_SIGN_UP_URL", "CLERK_SIGN_IN_FALLBACK_REDIRECT_URL", "CLERK_SIGN_UP_FORCE_REDIRECT_URL", "CLERK_AFTER_SIGN_IN_URL",
    "CLERK_JS", "CLERK_JS_URL", "CLERK_JS_VERSION", "CLERK_UI_URL", "CLERK_TELEMETRY_DISABLED", "CLERK_TELEMETRY_DEBUG", "CLERK_KEYLESS_DISABLED",
    "CLERK_PROXY_URL", "CLERK_DOMAIN", "CLERK_IS_SATELLITE", "CLERK_API_VERSION", "CLERK_ENCRYPTION_KEY", "CLERK_FAPI", "CLERK_JWT_ISSUER_DOMAIN",
    "CLERK_TESTING_TOKEN", "NEXT_PUBLIC_CLERK_SIGN_IN_URL", "VITE_CLERK_JS_URL", "CLERKS", "CLERK_SECRET_KEY", "CLERK_JWT_KEY_FILE",
    "CLERK_SERVICE_HOST", "CLERK_SERVICE_PORT_HTTP", "CLERK_PORT", "CLERK_PORT_80_TCP_ADDR", "MY_CLERK_SECRETKEY",
])  # fmt: skip
def test_a_variable_that_is_clerks_own_or_anothers_is_not(name: str) -> None:
    assert advised(KEY, "development", **{name: "x"}) == []


@pytest.mark.parametrize(("table", "name", "meant"), [
    ({}, "CLERK_SECRETKEY", "CLERK_SECRET_KEY"), (KEY, "CLERK_AUTHORISED_PARTIES", "CLERK_AUTHORIZED_PARTIES"),
    ({"secret_key": "sk_live_0123456789"}, "CLERK_ISSUER_URL", "CLERK_ISSUER"),
])  # fmt: skip
def test_a_refusal_names_the_misspelt_variable(table: dict[str, str], name: str, meant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "s3cret")
    with pytest.raises(ValueError, match=f"{name} is not read: this server calls it {meant}") as caught:
        ClerkProvider(table).check("production")
    assert "s3cret" not in str(caught.value)


def test_an_issuer_of_another_instance_is_warned_about() -> None:
    [line] = advised(KEY | {"issuer": ["https://clerk.other.example"]}, "development")
    assert "https://clerk.example.com" in line
    assert "token-issuer" in line
    assert advised(KEY | {"issuer": ["https://clerk.example.com/", "https://clerk.other.example"]}, "development") == []


def test_test_keys_and_pages_without_tls_are_warned_about_in_production() -> None:
    table = KEY | {"secret_key": "sk_test_0123456789", "authorized_parties": ["http://localhost:3000", "https://app.example.com"]}
    lines = advised(table)
    assert [word in line for word, line in zip(("CLERK_SECRET_KEY", "CLERK_PUBLISHABLE_KEY", "http://localhost:3000"), lines, strict=True)] == [True] * 3
    assert "0123456789" not in str(lines)
    assert advised(table, "development") == []


async def test_it_is_logged_when_the_provider_is_opened(tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLERK_WEBHOOK_SECRET", "whsec_s3cret")
    house = kit.TestHouse(tmp_path)
    provider = ClerkProvider({"jwt_key": kit.pem(kit.rsa_key())})
    with caplog.at_level(logging.WARNING):
        await provider.open(house)
    await provider.close()
    await house.close()
    assert [record.message for record in caplog.records if "CLERK_WEBHOOK_SECRET" in record.message]
    assert "s3cret" not in caplog.text
