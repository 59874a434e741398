"""The pages that are generated from the code, `init`, and the JSON and progress that commands print."""

from __future__ import annotations

import importlib
import json
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import reference_pages
from kits import ROOT, doc_page
from kits.app import build_app

import server
from server import Setting
from server.commands import run
from server.plugins.loader import GROUP, Plugins
from server.serving.process_metrics import families_of
from server.settings.core import BUILT_IN, OPTIONAL
from server.settings.sample import sample
from server.settings.sources import Settings
from tests.conftest import Serve

# Pages -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", reference_pages.WHAT, ids=lambda path: path.name)
def test_what_is_written_from_the_code_is_up_to_date(path: Path) -> None:
    assert path.read_text("utf-8") == reference_pages.WHAT[path](), "run `make docs`"


def test_the_plugin_api_is_complete() -> None:
    named = [name for names in reference_pages.GROUPS.values() for name in names]
    assert sorted(named) == sorted(server.__all__)


def test_a_page_of_reference_holds_no_address_of_an_object() -> None:
    assert " at 0x" not in reference_pages.plugin_api()
    assert "<class" not in reference_pages.plugin_api()


async def test_the_table_of_metrics_is_what_is_exported(serve: Serve) -> None:
    """Every metric of a running server is in the table with its kind and labels."""
    client = await serve({"limits.caller": "1/minute"})
    for _ in range(2):
        await client.get("/api/me", {"Authorization": 'Stub user_id="alice"'})
    told = {family.name: (family.kind, set(family.labels)) for family in await families_of(client.app)}
    table = doc_page("observability.md").read_text("utf-8").partition("| metric |")[2].partition("\n\n")[0]
    shown: dict[str, tuple[str, set[str]]] = {}
    for line in table.splitlines()[2:]:
        names, kind, labels, _ = (cell.strip() for cell in line.strip("|").split("|"))
        whole = re.findall(r"`(\S+)`", names)
        for name in whole:
            # `…_cache_misses_total` is short for the provider's family of that name.
            shown[name.replace("…", "gatepost_provider")] = (kind, set(re.findall(r"`(\w+)`", labels)))
    assert {name: shown[name][1] for name in told} == {name: labels for name, (_, labels) in told.items()}
    for name, (kind, _) in told.items():
        assert kind in shown[name][0].split(", "), name


# init --------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("GATEPOST_CONFIG", "GATEPOST_PLUGINS"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def switched_on(text: str) -> str:
    return re.sub(r"^#(?! )", "", text, flags=re.MULTILINE)


def test_the_sample_names_every_built_in_handler() -> None:
    settings = Settings(environ={}, given={"handlers": list(BUILT_IN)})
    plugins = Plugins(settings)
    serving = {name for name, _ in plugins.offers().routes}
    assert serving == set(BUILT_IN) - {"oidc"}, "oidc serves routes where issuers are named"
    assert serving == {name for name, _ in Plugins(Settings(environ={})).offers().routes}


def test_the_built_in_handlers_are_entry_points_of_this_project() -> None:
    """The settings cannot read the entry points: they are needed before a plugin is looked for. So both lists are compared."""
    points = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["entry-points"][GROUP]
    serving = [name for name, module in points.items() if hasattr(importlib.import_module(module), "register_handlers")]
    assert sorted((*BUILT_IN, *OPTIONAL)) == sorted(serving)


def test_init_writes_the_sample_and_it_is_taken(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["init"]) == 0
    assert capsys.readouterr().out.startswith("written: gatepost.toml")
    assert (folder / "gatepost.toml").read_text("utf-8") == (ROOT / "gatepost.example.toml").read_text("utf-8")
    assert run(["routes"]) == 0


def test_init_never_writes_over_a_file(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "gatepost.toml").write_text('env = "test"\n')
    (folder / "mine.toml").symlink_to(folder / "nowhere")
    assert run(["init"]) == 2
    assert capsys.readouterr().err == "gatepost: init: gatepost.toml already exists; not overwritten\n"
    assert (folder / "gatepost.toml").read_text("utf-8") == 'env = "test"\n'
    assert run(["init", "mine.toml"]) == 2  # a link that leads nowhere is a file that is there
    assert run(["init", "no/such/folder.toml"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 2
    assert run(["init", "other.toml"]) == 0


def test_init_to_standard_output_writes_nothing(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["init", "-"]) == 0
    assert capsys.readouterr().out == reference_pages.example()
    assert list(folder.iterdir()) == []


PLUGIN = '''
from server import Setting, hookimpl

@hookimpl
def register_settings():
    return {"url": Setting(example="https://acme.example", help="where Acme is"), "more": Setting("int", 3), "bare": Setting("table")}
'''


def test_init_has_the_tables_of_named_plugins(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "gp_init_acme.py").write_text(PLUGIN)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setenv("GATEPOST_PLUGINS", "module:gp_init_acme")
    assert run(["init"]) == 0
    text = (folder / "gatepost.toml").read_text("utf-8")
    monkeypatch.delenv("GATEPOST_PLUGINS")
    assert tomllib.loads(text)["plugins"] == ["module:gp_init_acme"]
    Plugins(Settings(environ={}))  # its table would be unknown without the plugin
    said = tomllib.loads(switched_on(text))["gp_init_acme"]
    assert said == {"url": "https://acme.example", "more": 3, "bare": {}}
    assert "# where Acme is (GATEPOST_GP_INIT_ACME_URL)" in text


def test_a_sample_of_odd_values_is_toml() -> None:
    odd = 'a "quoted" \\ back\u00e9\n\u2028'
    keys = {
        "acme.text": Setting(default=odd, help="x " * 200),
        "acme.many": Setting("tables", (), example=({"a": [1.5, True], "b": {"c": odd}}, {"a": []})),
        "acme.after": Setting("bool", True),
    }
    text = sample(keys)
    assert max(map(len, text.splitlines())) <= 128
    said = tomllib.loads(switched_on(text))["acme"]
    assert said == {"text": odd, "after": True, "many": [{"a": [1.5, True], "b": {"c": odd}}, {"a": []}]}
    assert tomllib.loads(text) == {"acme": {}}


# For machines ------------------------------------------------------------------------------------------------------------


def test_token_for_machines(folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CLERK_SECRET_KEY", "CLERK_PUBLISHABLE_KEY", "CLERK_JWT_KEY"):
        monkeypatch.delenv(name, raising=False)
    assert run(["token", "--user", "user_7", "--org", "org_7", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["claims"]["sub"] == "user_7"
    assert told["header"] == {"Authorization": f"Bearer {told['token']}"}


@pytest.mark.parametrize("words", [["routes", "--json"], ["explain", "GET", "/api/me", "--json"], ["openapi"]])
def test_what_is_for_machines_is_json_and_nothing_else(words: list[str], folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(words) == 0
    assert json.loads(capsys.readouterr().out)


def test_the_commands_of_the_page_are_those_of_the_program() -> None:
    app: Any = build_app()  # the built-in plugins load
    assert app is not None
    headings = re.findall(r"^## `([\w-]+)`$", doc_page("commands.md").read_text("utf-8"), re.MULTILINE)
    assert {"serve", "init", "check", "migrate", "keys", "token", "replay"} <= set(headings)
