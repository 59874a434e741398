"""The pages under docs/ and the sample settings: true to the code, or the tests fail."""

from __future__ import annotations

import importlib
import inspect
import re
import tomllib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import settings_page
from aiohttp import web
from kits import ROOT, doc_page, doc_pages, test_exists

import server
from server import hookimpl, signed_in
from server.app import build
from server.plugins import hookspecs
from server.plugins.loader import Plugins
from server.settings.core import BUILT_IN, OPTIONAL
from server.settings.setting import ConfigError
from server.settings.sources import Settings
from tests.conftest import plugin

PLUGINS = doc_page("plugins.md").read_text("utf-8")
ARCHITECTURE = (ROOT / "ARCHITECTURE.md").read_text("utf-8")
PAGES = [*ROOT.glob("*.md"), *doc_pages()]


def test_no_link_of_a_page_leaves_the_site() -> None:
    """The site has the pages under docs/ alone; other files are named, not linked."""
    for page in doc_pages():
        for target in re.findall(r"\]\((?!https?:)([^)#\s]+)", page.read_text("utf-8")):
            assert (page.parent / target).resolve().is_relative_to(ROOT / "docs"), f"{page.name}: {target}"


def test_no_link_is_named_after_the_file_of_a_page() -> None:
    """Its text says what the reader finds there."""
    named = [(page.name, link) for page in [ROOT / "README.md", *doc_pages()] for link in re.findall(r"\[([\w./-]+\.md)\]\(", page.read_text("utf-8"))]
    assert [(page, link) for page, link in named if not re.fullmatch(r"[A-Z]+\.md", link)] == []


# Settings ----------------------------------------------------------------------------------------------------------------


def test_the_page_of_settings_is_up_to_date() -> None:
    assert settings_page.PAGE.read_text("utf-8") == settings_page.page(), "run `make docs`"


def test_every_setting_says_what_it_means() -> None:
    assert [key for key, setting in settings_page.declared().items() if not setting.help] == []


def test_the_page_of_settings_names_every_built_in_handler() -> None:
    rule = settings_page.page().partition("- `handlers` lists")[2].partition("\n- ")[0]
    assert set(re.findall(r"`(\w+)`", rule)) == {*BUILT_IN, *OPTIONAL}


def switched_on() -> str:
    """The sample with every setting switched on."""
    return re.sub(r"^#(?! )", "", (ROOT / "gatepost.example.toml").read_text("utf-8"), flags=re.MULTILINE)


def test_the_sample_has_every_setting_and_no_unknown_one(tmp_path: Path) -> None:
    file = tmp_path / "gatepost.toml"
    file.write_text(switched_on())
    Plugins(Settings(file=file, environ={}))  # raises for an unknown key
    sample = tomllib.loads(switched_on())
    keys = {f"{name}.{inner}" for name, value in sample.items() if isinstance(value, dict) for inner in value}
    keys |= {name for name, value in sample.items() if not isinstance(value, dict)}
    assert keys == set(settings_page.declared())


def test_the_sample_states_the_defaults() -> None:
    """A value of the sample is the default, or an example where there is none."""
    sample = tomllib.loads(switched_on())
    for key, setting in settings_page.declared().items():
        table, _, name = key.rpartition(".")
        said = (sample[table] if table else sample)[name]
        default = list(setting.default) if isinstance(setting.default, tuple) else setting.default
        assert default in (None, said) or setting.kind == "tables", key


def test_the_sample_as_it_stands_changes_nothing() -> None:
    assert not any(tomllib.loads((ROOT / "gatepost.example.toml").read_text("utf-8")).values())


def test_the_sample_key_is_one_that_the_provider_takes() -> None:
    from providers.api_key.provider import ApiKeyProvider

    ApiKeyProvider({"keys": tomllib.loads(switched_on())["api_key"]["keys"]})


def test_the_sample_issuer_and_webhook_secret_are_taken() -> None:
    from providers.clerk.webhooks import secrets
    from providers.oidc.provider import OidcProvider

    sample = tomllib.loads(switched_on())
    assert OidcProvider(sample["oidc"]).issuers == {"https://login.example.com"}
    assert len(secrets(sample["clerk"]["webhook_signing_secret"])) == 1


# Plugins -----------------------------------------------------------------------------------------------------------------


def test_every_hook_has_its_heading_with_the_exact_signature() -> None:
    hooks = {name: what for name, what in vars(hookspecs).items() if hasattr(what, "gatepost_spec")}
    wanted = [f"### `{name}{inspect.signature(what)}`".replace("'", "") for name, what in hooks.items()]
    assert [line for line in PLUGINS.splitlines() if line.startswith("### `register")] == wanted


def test_the_public_interface_is_described_completely() -> None:
    table = PLUGINS.partition("## The public interface")[2].partition("## Hooks")[0]
    assert set(re.findall(r"`(\w+)`", table)) - {"server", "ETag", "limit", "cursor"} >= set(server.__all__)


def test_the_identity_is_described_whole() -> None:
    said = PLUGINS.partition("`Identity(")[2].partition(")`")[0]
    assert re.findall(r"(\w+)=", said) == list(inspect.signature(server.Identity).parameters)


def test_setting_is_described_whole() -> None:
    said = inspect.signature(server.Setting).replace(return_annotation=inspect.Signature.empty)
    shown = ", ".join(f"{p.name}={p.default!r}" for p in said.parameters.values()).replace("'", '"')
    assert f"`Setting({shown})`" in PLUGINS


@signed_in
async def known(request: web.Request) -> web.Response:
    return web.Response()


async def bare(request: web.Request) -> web.Response:
    return web.Response()


def providers(**offered: object) -> object:
    return SimpleNamespace(register_providers=hookimpl(lambda: offered, specname="register_providers"))


def settings_of_acme() -> object:
    return SimpleNamespace(register_settings=hookimpl(lambda: {"url": server.Setting()}, specname="register_settings"))


class Deaf:
    """A provider that cannot be asked."""

    def __init__(self, settings: Any) -> None:
        self.url = settings.get("url")


class Needy:
    """A provider that needs a setting."""

    def __init__(self, settings: Any) -> None:
        self.url = settings["url"]


MISTAKES: list[tuple[dict[str, Any], object | None]] = [
    ({"plugins": ["acme"]}, None),
    ({}, SimpleNamespace()),
    ({}, plugin(web.get("/api/acme", bare))),
    ({}, plugin(web.get("/api/acme/{id:int}", known))),
    ({}, SimpleNamespace(register_handlers=hookimpl(lambda: None, specname="register_handlers"))),
    ({}, plugin(SimpleNamespace(path="/api/acme"))),  # type: ignore[arg-type]
    ({}, plugin(web.get("/api/acme", web.View))),
    ({}, plugin(web.get("/api/health", known))),
    ({}, providers(stub=Deaf)),
    ({"providers": ["acme"]}, providers(acme=Deaf)),
    ({"providers": ["acme"]}, None),
    ({"providers": ["acme"]}, providers(acme=Needy)),
    ({"file": '[acme]\nulr = "x"\n'}, settings_of_acme()),
]


def message_of(given: dict[str, Any], extra: object | None, folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(folder)
    given = {"env": "test", "providers": ["stub"], "data_folder": str(folder), **given}
    Path("gatepost.toml").write_text(given.pop("file", ""))
    with pytest.raises(ConfigError) as caught:
        build(Settings(environ={}, given=given), {"acme": extra} if extra is not None else None)
    return str(caught.value)


@pytest.mark.parametrize(("given", "extra"), MISTAKES, ids=[str(number) for number in range(len(MISTAKES))])
def test_the_messages_of_mistakes_are_the_starts(
    given: dict[str, Any], extra: object | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = re.sub(r"offered: .+", "offered: …", message_of(given, extra, tmp_path, monkeypatch))
    assert any(said in line for line in PLUGINS.partition("## Mistakes")[2].splitlines()), said


def test_every_mistake_of_the_page_is_tried() -> None:
    rows = [line for line in PLUGINS.partition("## Mistakes")[2].splitlines() if line.startswith("|")]
    assert len(rows) - 2 == len(MISTAKES)


# Clerk -------------------------------------------------------------------------------------------------------------------


def test_every_capability_beside_clerks_libraries_names_its_tests() -> None:
    table = doc_page("clerk.md").read_text("utf-8").partition("| capability |")[2]
    cells = [line.rstrip(" |").rpartition(" | ")[2] for line in table.splitlines()[2:] if line.startswith("| ")]
    assert len(cells) > 25
    assert [cell for cell in cells if not re.search(r"`tests/[\w/]+/test_", cell) and not cell.startswith("**no**")] == []


# The other pages ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("named_page", ["security.md", "attacks.md"])
def test_every_promise_and_every_attack_names_tests_that_exist(named_page: str) -> None:
    text = doc_page(named_page).read_text("utf-8")
    named = re.findall(r"`(test_\w+\.py)::(test_\w+)`", text)
    assert len(named) > 20
    for file, name in named:
        assert test_exists(file, name), f"{file}::{name}"
    promises = [
        line for line in text.partition("## Promises")[2].splitlines() if line.startswith("| ") and "proven by" not in line
    ]
    assert all("::" in line for line in promises)


def test_every_class_of_attack_is_in_the_inventory() -> None:
    text = doc_page("attacks.md").read_text("utf-8")
    rows = re.findall(r"^\| ((?:[JR]\d+(?:, | to )?)+)", text, re.MULTILINE)
    found: set[str] = set()
    for row in rows:
        named = re.findall(r"([JR])(\d+)", row)
        first, last = int(named[0][1]), int(named[-1][1])
        found |= {f"{named[0][0]}{number}" for number in range(first, last + 1)} if " to " in row else {letter + number for letter, number in named}
    assert found == {f"J{number}" for number in range(1, 35)} | {f"R{number}" for number in range(1, 23)}


def test_every_symbol_of_the_architecture_exists() -> None:
    symbols = re.findall(r"`((?:server|providers|handlers)\.[\w.]+)`", ARCHITECTURE)
    assert len(symbols) > 20
    for dotted in symbols:
        _resolve(dotted)


def _resolve(dotted: str) -> object:
    parts = dotted.split(".")
    for end in range(len(parts), 0, -1):
        try:
            found: Any = importlib.import_module(".".join(parts[:end]))
        except ModuleNotFoundError:
            continue
        for part in parts[end:]:
            found = getattr(found, part)
        return found
    raise AssertionError(dotted)


def test_every_file_that_a_page_names_exists() -> None:
    """But for the numbered files of a product, which are examples."""
    for page in PAGES:
        for path in re.findall(r"`((?:server|providers|handlers|tests|docs)/[\w./]*|(?!\d)[\w.]+\.sql)`", page.read_text("utf-8")):
            assert (ROOT / path).exists(), f"{page.name}: {path}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pages_name_no_place_of_one_machine(page: Path) -> None:
    assert re.search(r"/(?:work|home|root|Users)/", page.read_text("utf-8")) is None
