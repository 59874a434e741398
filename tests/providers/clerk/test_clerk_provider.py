"""Clerk's provider over a real key set service, its settings, and the development key."""

import argparse
import asyncio
import logging
import stat
from pathlib import Path
from types import MappingProxyType

import pytest
from kits import tokens as kit

from providers import clerk
from providers.clerk import development_key as development
from providers.clerk.provider import ClerkProvider
from providers.clerk.settings import TABLE, ClerkSettings
from server import CommandContext, CredentialRejected, Identity, Provider, Unavailable
from server.commands import operator_scope
from server.plugins.loader import Plugins
from server.settings.setting import ConfigError
from server.settings.sources import Settings

FULL = {
    "secret_key": kit.SECRET_KEY,
    "publishable_key": kit.PUBLISHABLE_KEY,
    "authorized_parties": [kit.PARTY],
    "machine_secret_key": "ak_MACHINESECRET",
    "webhook_signing_secret": "whsec_HOOKSECRET",
}


@pytest.fixture
async def house(tmp_path):
    made = kit.TestHouse(tmp_path)
    yield made
    await made.close()


async def reason(provider, token, **peer):
    try:
        return await provider.authenticate(kit.bearer(token, **peer))
    except CredentialRejected as refused:
        return refused.reason, refused.detail


async def test_backend_key_set_with_the_secret_key(house) -> None:
    async with kit.serve(kit.jwk(kit.rsa_key())) as service:
        provider = ClerkProvider({**FULL, "api_url": service.url})
        await provider.open(house)
        for _ in range(20):
            assert isinstance(await reason(provider, kit.encode(kit.claims())), Identity)
        assert service.fetches == 1
        assert service.seen[0]["path"] == "/v1/jwks"
        assert service.seen[0]["Authorization"] == f"Bearer {kit.SECRET_KEY}"
        assert provider.not_ready() is None
        await provider.close()


async def test_frontend_key_set_without_a_secret(house) -> None:
    async with kit.serve(kit.jwk(kit.rsa_key())) as service:
        import base64

        key = "pk_test_" + base64.b64encode(f"{service.url.removeprefix('http://')}$".encode()).decode().rstrip("=")
        provider = ClerkProvider({"publishable_key": key})
        await provider.open(house)
        assert provider.issuers == {service.url}
        assert isinstance(await reason(provider, kit.encode(kit.claims(iss=service.url))), Identity)
        assert service.seen[0]["path"] == "/.well-known/jwks.json"
        assert "Authorization" not in service.seen[0]
        await provider.close()


@pytest.mark.parametrize(("iss", "named"), [
    ("https://other-cat-99.clerk.accounts.dev", "'https://other-cat-99.clerk.accounts.dev', and this server takes those of https://"),
    ("https://evil.example/\n\x1b[31m", r"'https://evil.example/\n\x1b[31m'"),
    (kit.ISSUER, None), ("x" * 201, f"'{'x' * 199}…'"), ("", None),
])  # fmt: skip
async def test_a_token_of_another_instance_is_named_in_the_log_alone(house, iss: object, named: str | None) -> None:
    provider = ClerkProvider({**FULL, "jwt_key": kit.pem(kit.rsa_key())})
    await provider.open(house)
    slug, detail = await reason(provider, kit.encode(kit.claims(iss=iss), kit.rsa_key("attacker")))
    assert (slug, detail.startswith("bad signature")) == ("credential-rejected", True)
    assert detail == "bad signature" if named is None else named in detail


OF_ANOTHER_INSTANCE = "; the token names the issuer of clerk.publishable_key or clerk.issuer: is the secret key of the same instance?"


async def test_the_secret_key_of_another_instance_shows_in_the_log(house) -> None:
    """Both keys are of the same kind, so nothing can be seen at startup. The key set is that of the secret key's instance."""
    async with kit.serve(kit.jwk(kit.rsa_key("theirs"), "theirs")) as service:
        provider = ClerkProvider({**FULL, "api_url": service.url})
        await provider.open(house)
        assert await reason(provider, kit.encode(kit.claims())) == ("credential-rejected", f"no such key{OF_ANOTHER_INSTANCE}")
        theirs = kit.encode(kit.claims(iss="https://clerk.theirs.example"), kit.rsa_key("theirs"), "theirs")
        slug, detail = await reason(provider, theirs)
        assert (slug, "iss is not one of ours: 'https://clerk.theirs.example'" in detail) == ("token-issuer", True)
        await provider.close()


@pytest.mark.long
async def test_floods_bad_signatures_and_rotation_over_the_wire(house) -> None:
    async with kit.serve(kit.jwk(kit.rsa_key())) as service:
        provider = ClerkProvider({**FULL, "api_url": service.url})
        await provider.open(house)
        forged = kit.encode(kit.claims(), kit.rsa_key("attacker"))
        for _ in range(200):
            assert await reason(provider, forged) == ("credential-rejected", "bad signature")
        assert service.fetches == 1
        good = kit.encode(kit.claims())
        assert isinstance(await reason(provider, good), Identity)
        service.members = [kit.jwk(kit.rsa_key("k2"), "k2")]
        service.delay = 0.05
        unknown = [kit.encode({**kit.claims(), "n": n}, kid=f"x{n}") for n in range(20)] * 50
        answers = await asyncio.gather(*(reason(provider, token) for token in unknown))
        unknown_key = ("credential-rejected", f"no such key{OF_ANOTHER_INSTANCE}")
        assert set(answers) == {unknown_key}
        assert service.fetches == 2
        assert await reason(provider, good) == unknown_key  # its key left, the cache knows
        assert isinstance(await reason(provider, kit.encode(kit.claims(), kit.rsa_key("k2"), "k2")), Identity)
        assert await reason(provider, kit.mint(kit.claims(), kit.header(kid=kit.DROP))) == (
            "credential-rejected",
            "kid is missing",
        )
        assert service.fetches == 2
        await provider.close()


@pytest.mark.parametrize("fault", ["status", "garbage", "huge", "redirect", "empty"])
async def test_an_unusable_key_set_is_503_and_not_ready(house, fault) -> None:
    async with kit.serve(kit.jwk(kit.rsa_key())) as service, kit.serve(kit.jwk(kit.rsa_key())) as other:
        if fault == "status":
            service.status = 401
        elif fault == "redirect":
            service.status, service.headers = 302, {"Location": other.url + "/v1/jwks"}
        else:
            service.raw = {"garbage": b"<html>", "huge": b" " * 1_100_000, "empty": b'{"keys":[]}'}[fault]
        provider = ClerkProvider({**FULL, "api_url": service.url})
        await provider.open(house)
        assert provider.not_ready()
        assert kit.SECRET_KEY not in provider.not_ready()
        with pytest.raises(Unavailable):
            await provider.authenticate(kit.bearer(kit.encode(kit.claims())))
        assert await provider.authenticate(kit.bearer("abc.def")) is None
        assert other.fetches == 0
        await provider.close()


async def test_a_cache_hit_waits_for_nothing(house) -> None:
    provider = ClerkProvider({**FULL, "jwt_key": kit.pem(kit.rsa_key())})
    await provider.open(house)
    token = kit.encode(kit.claims())
    first = await provider.authenticate(kit.bearer(token))
    step = provider.authenticate(kit.bearer(token))
    with pytest.raises(StopIteration) as done:
        step.send(None)
    assert done.value.value is first


async def test_no_secret_in_any_repr_log_line_or_exception(house, caplog) -> None:
    caplog.set_level(logging.DEBUG)
    async with kit.serve() as service:
        service.status = 500
        provider = ClerkProvider({**FULL, "api_url": service.url})
        await provider.open(house)
        token = kit.encode(kit.claims())
        texts = [repr(provider), repr(provider._settings), repr(vars(provider)), str(provider.not_ready())]
        for bad in (token, token[:-4] + "AAAA"):
            with pytest.raises(Unavailable) as caught:
                await provider.authenticate(kit.bearer(bad))
            texts.append(str(caught.value))
        await provider.close()
    everything = "\n".join([*texts, caplog.text])
    for secret in (kit.SECRET_KEY, "MACHINESECRET", "HOOKSECRET", token, token.split(".")[2]):
        assert secret not in everything


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[
            ("secret_key", v)
            for v in ("", "TOPSECRET", "sk_prod_TOPSECRET", "sk_live_", "sk_live_TOP SECRET", "sk_live_é", 7, ["x"])
        ],
        *[
            ("publishable_key", v)
            for v in (
                "",
                "pk_live_",
                "pk_prod_Y2xlcmsuZXhhbXBsZS5jb20k",
                "pk_live_Y2xlcmsuZXhhbXBsZS5jb20",
                "pk_live_Y2xlcmskJA",
                "pk_live_Y2xlcmsk",
                "pk_live_!!!!",
                "pk_live_Y2xlcmsuZXhhbXBsZS5jb20k_x",
                "sk_live_Y2xlcmsuZXhhbXBsZS5jb20k",
                "pk_live_" + kit.b64(b"evil.example/x$"),
                "pk_live_" + kit.b64(b"u@evil.example$"),
                "pk_live_" + kit.b64(b"a.b$$"),
                7,
            )
        ],
        *[("jwt_key", v) for v in ("", "TOPSECRET", 7, kit.pem(kit.rsa_key("small", 1024)))],
        *[
            ("api_url", v)
            for v in (
                "",
                "http://api.clerk.com",
                "ftp://127.0.0.1",
                "api.clerk.com",
                "https://",
                "https://u:p@x.example",
                "https://x.example?q",
                "https://x.example#f",
                "http://127.0.0.1.evil.example",
                "http://localhost.evil",
                "https://[::1",
                7,
            )
        ],
        *[("machine_secret_key", v) for v in ("", "TOP SECRET", 7)],
        *[("webhook_signing_secret", v) for v in ("", "TOP\nSECRET", 7)],
        *[
            ("authorized_parties", v)
            for v in (
                "https://a.example",
                [""],
                ["a.example"],
                ["https://a.example/"],
                ["https://A.example"],
                ["*"],
                ["null"],
                ["https://*.a.example"],
                [" https://a.example"],
                [7],
                ["https://u@a.example"],
                ["https://a.example:443"],
                ["http://localhost:80"],
            )
        ],
        *[("audience", v) for v in ("api", [""], [7], [" a"])],
        *[("issuer", v) for v in ("https://x.example", ["x.example"], ["http://x.example"], [""], [7])],
    ],
)
def test_a_malformed_setting_is_named_and_never_quoted(name, value) -> None:
    with pytest.raises(ValueError, match=rf"clerk\.{name}") as caught:
        ClerkSettings.read({**FULL, name: value})
    text = str(caught.value)
    assert "\n" not in text
    assert "SECRET" not in text
    assert caught.value.__cause__ is None


@pytest.mark.parametrize(
    ("name", "values"),
    [("leeway_seconds", ("-1", "301", "'x'", "true", "nan", "inf", "[5]")), ("max_token_seconds", ("-1", "'x'", "true", "inf", "2147483649")),
     ("machine_cache_seconds", ("-1", "301", "'x'", "true", "nan")), ("allow_missing_azp", ("'maybe'", "1", "0", "[true]"))],
)  # fmt: skip
def test_a_number_out_of_bounds_and_a_flag_that_is_none_prevent_startup(name: str, values: tuple[str, ...], tmp_path: Path) -> None:
    for value in values:
        (tmp_path / "gatepost.toml").write_text(f"[clerk]\n{name} = {value}\n")
        with pytest.raises(ConfigError, match=rf"clerk\.{name}: must be"):
            Plugins(Settings(file=tmp_path / "gatepost.toml", environ={}))


@pytest.mark.parametrize(("name", "bounds"), [("leeway_seconds", (0, 300)), ("max_token_seconds", (0, 2**31)), ("machine_cache_seconds", (0, 300))])
def test_the_bounds_themselves_are_accepted(name: str, bounds: tuple[int, int]) -> None:
    for bound in bounds:
        settings = Settings(environ={f"CLERK_{name.upper()}": str(bound)})
        Plugins(settings)
        assert settings.table("clerk")[name] == bound


def test_settings_read_well() -> None:
    empty = ClerkSettings.read({name: setting.default for name, setting in TABLE.items()})
    assert not empty.configured
    assert (empty.leeway, empty.max_lifetime, empty.api_url, empty.jwks_url) == (
        5.0,
        86_400.0,
        "https://api.clerk.com",
        None,
    )
    full = ClerkSettings.read(MappingProxyType(FULL))
    assert full.issuers == {"https://clerk.example.com"}
    assert full.jwks_url == "https://api.clerk.com/v1/jwks"
    front = ClerkSettings.read({"publishable_key": "pk_test_Zm9vLWJhci0xMy5jbGVyay5hY2NvdW50cy5kZXYk"})
    assert front.jwks_url == "https://foo-bar-13.clerk.accounts.dev/.well-known/jwks.json"
    assert ClerkSettings.read({"api_url": "http://[::1]:80/"}).api_url == "http://[::1]:80"
    assert ClerkSettings.read({"authorized_parties": ["chrome-extension://abc", "capacitor://localhost", "http://localhost:3000"]}).configured


def test_keys_of_two_instances_are_a_mistake() -> None:
    with pytest.raises(ValueError, match="different kinds"):
        ClerkSettings.read({**FULL, "secret_key": "sk_test_TOPSECRET"})


@pytest.mark.parametrize(
    ("table", "env", "word"),
    [
        ({}, "production", "no keys"),
        ({"audience": ["x"]}, "development", "no keys"),
        ({"api_url": "https://x.example"}, "test", "no keys"),
        ({"webhook_signing_secret": "whsec_x"}, "development", "no keys"),
        ({"secret_key": kit.SECRET_KEY}, "production", "an issuer"),
        ({"publishable_key": kit.PUBLISHABLE_KEY}, "production", "authorized parties"),
    ],
)
async def test_what_is_not_enough_prevents_startup(table, env, word, tmp_path) -> None:
    with pytest.raises(ValueError, match=word):
        await ClerkProvider(table).open(kit.TestHouse(tmp_path, env))
    assert not list(tmp_path.iterdir())


@pytest.fixture
async def local(tmp_path):
    provider = ClerkProvider({name: setting.default for name, setting in TABLE.items()})
    await provider.open(kit.TestHouse(tmp_path / "house", "development"))
    yield provider
    await provider.close()


async def printed(tmp_path, capsys, *words, env="development", settings=None) -> str:
    command = clerk.register_commands()["token"]
    parser = argparse.ArgumentParser()
    command.arguments(parser)
    context = CommandContext(env=env, folder=tmp_path / "house", settings=settings or {}, database=lambda: None, scoped=operator_scope)
    assert await command.run(parser.parse_args(words), context) == 0
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    return out.strip()


async def test_the_token_command_makes_what_the_provider_takes(local, tmp_path, capsys) -> None:
    token = await printed(
        tmp_path,
        capsys,
        "--user",
        "user_7",
        "--org",
        "org_7",
        "--role",
        "org:admin",
        "--permission",
        "org:invoices:read",
        "--permission",
        "org:teams:manage",
        "--ttl",
        "60",
    )
    got = await reason(local, token)
    assert (got.user_id, got.org_id, got.org_role) == ("user_7", "org_7", "org:admin")
    assert set(got.org_permissions) == {"org:invoices:read", "org:teams:manage"}
    assert got.claims["exp"] - got.claims["iat"] == 60
    assert local.issuers == {development.ISSUER}
    plain = await reason(local, await printed(tmp_path, capsys))
    assert (plain.user_id, plain.org_id, plain.org_permissions, plain.impersonator) == ("user_1", None, None, None)
    acted = await reason(local, await printed(tmp_path, capsys, "--impersonator", "support_1"))
    assert (acted.user_id, acted.impersonator) == ("user_1", "support_1")


@pytest.mark.parametrize(
    ("words", "env", "settings"),
    [
        (["--role", "admin"], "test", None),
        (["--permission", "org:a:b"], "test", None),
        (["--org", "o", "--permission", "read"], "test", None),
        (["--ttl", "0"], "test", None),
        (["--ttl", "86401"], "test", None),
        ([], "production", None),
        ([], "test", {"secret_key": kit.SECRET_KEY}),
    ],
)
async def test_the_token_command_refuses(tmp_path, capsys, words, env, settings) -> None:
    with pytest.raises(ValueError, match=r"^[^\n]+$"):
        await printed(tmp_path, capsys, *words, env=env, settings=settings)
    assert capsys.readouterr().out == ""


async def test_development_tokens_are_taken_from_this_machine_alone(local, tmp_path) -> None:
    token = development.mint(development.signing_key(tmp_path / "house"), development.claims_v1("user_1", org="org_1"))
    elsewhere = ("credential-rejected", "a development token from another machine or through a proxy")
    assert await reason(local, token, peer="192.0.2.1") == elsewhere
    assert isinstance(await reason(local, token), Identity)
    for peer in (
        {"peer": "192.0.2.1"},
        {"host": "evil.example"},
        {"X_Forwarded_For": "127.0.0.1"},
        {"Forwarded": "for=127.0.0.1"},
    ):
        assert await reason(local, token, **peer) == elsewhere  # from the cache, too


async def test_development_knows_only_its_own_kid_and_issuer(local, tmp_path) -> None:
    key = development.signing_key(tmp_path / "house")
    assert await reason(local, kit.encode(development.claims_v2("user_1"), key, "other")) == (
        "credential-rejected",
        "no such key",
    )
    foreign = development.mint(key, development.claims_v2("user_1", iss=kit.ISSUER))
    slug, detail = await reason(local, foreign)
    assert (slug, kit.without_values(detail)) == ("token-issuer", "iss is not one of ours")
    assert f": {kit.ISSUER!r}, not '" in detail
    expired = development.mint(key, development.claims_v2("user_1", ttl=-60))
    assert (await reason(local, expired))[0] == "token-expired"


async def test_the_development_key_is_never_trusted_beside_a_clerk_setting(tmp_path) -> None:
    token = development.mint(development.signing_key(tmp_path), development.claims_v2("user_1", iss=kit.ISSUER))
    provider = ClerkProvider({**FULL, "jwt_key": kit.pem(kit.rsa_key())})
    await provider.open(kit.TestHouse(tmp_path))
    assert await reason(provider, token) == ("credential-rejected", "bad signature")


def test_the_key_file_is_private_made_once_and_whole(tmp_path) -> None:
    folder = tmp_path / "a" / "b"
    first = development.signing_key(folder).private_numbers()
    assert development.signing_key(folder).private_numbers() == first
    assert [stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()] == [0o600]
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_an_open_linked_or_broken_key_file_is_refused(tmp_path) -> None:
    development.signing_key(tmp_path)
    file = tmp_path / development.FILE
    file.chmod(0o640)
    with pytest.raises(ValueError, match="0600"):
        development.signing_key(tmp_path)
    file.chmod(0o600)
    file.rename(tmp_path / "else")
    file.symlink_to(tmp_path / "else")
    with pytest.raises(ValueError, match="cannot be read"):
        development.signing_key(tmp_path)
    file.unlink()
    file.touch(0o600)
    with pytest.raises(ValueError, match="no RSA key"):
        development.signing_key(tmp_path)


def test_the_hooks() -> None:
    provider = clerk.register_providers()["clerk"](MappingProxyType({}))
    assert isinstance(provider, Provider)
    assert clerk.register_settings()["secret_key"].secret
