"""Values as people paste them: blanks, line ends, byte order marks, quotes, `NAME=value`; from variables, files and the settings file."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from server.plugins.loader import Plugins
from server.settings.setting import ConfigError
from server.settings.sources import Settings
from tests.settings.test_settings import made, refusal

CANARY = "canary-5c1e07"
MEANT = {
    "GATEPOST_ACME_A_STR": ("a_str", "word", "word"),
    "GATEPOST_ACME_TOKEN": ("token", CANARY, CANARY),
    "GATEPOST_ACME_AN_INT": ("an_int", "5", 5),
    "GATEPOST_ACME_A_FLOAT": ("a_float", "2.5", 2.5),
    "GATEPOST_ACME_A_BOOL": ("a_bool", "true", True),
    "GATEPOST_ACME_A_LIST": ("a_list", "a,b", ["a", "b"]),
}


@pytest.mark.parametrize("name", MEANT)
@pytest.mark.parametrize(("before", "after"), [
    ("", "\n"), ("", "\r\n"), ("", "\r"), (" ", " "), ("\t", "\t\n\n"), ("\ufeff", ""), (" \ufeff ", "\n"), ("\u00a0", "\u00a0"), ("\u200b", "\u200b"),
])  # fmt: skip
@pytest.mark.parametrize("in_file", [False, True])
def test_what_surrounds_a_value_is_no_part_of_it(name: str, before: str, after: str, in_file: bool, tmp_path: Path) -> None:
    key, text, value = MEANT[name]
    environ = {name: before + text + after}
    if in_file:
        (tmp_path / "value").write_bytes(environ[name].encode())
        environ = {f"{name}_FILE": f" {tmp_path / 'value'}\n"}
    assert made(environ=environ).table("acme")[key] == value


@pytest.mark.parametrize("name", MEANT)
@pytest.mark.parametrize("empty", ["", " ", "\n", "\r\n", "\ufeff", "\t \n"])
def test_a_blank_variable_is_not_set(name: str, empty: str) -> None:
    assert made(environ={name: empty}).table("acme") == made().table("acme")


@pytest.mark.parametrize("name", MEANT)
@pytest.mark.parametrize(("form", "said"), [
    ("'{}'", "quotes"), ('"{}"', "quotes"), ("\u201c{}\u201d", "quotes"), ("\u2018{}\u2019", "quotes"), ('"{}', "quotes"), ('{}"', "quotes"), ("`{}`", "quotes"),
    ("{name}={}", "leave the name out"), ("export {name}={}", "leave the name out"), ("{name} = {}", "leave the name out"),
    ("${{OTHER_VARIABLE}}", "reference to a variable"), ("$OTHER_VARIABLE", "reference to a variable"), ("$(op read {})", "reference to a variable"),
])  # fmt: skip
@pytest.mark.parametrize("in_file", [False, True])
def test_what_a_shell_would_have_removed_is_named(name: str, form: str, said: str, in_file: bool, tmp_path: Path) -> None:
    text = form.format(MEANT[name][1], name=name)
    if in_file:
        (tmp_path / "value").write_text(text + "\n")
    told = refusal(environ={f"{name}_FILE": str(tmp_path / "value")} if in_file else {name: text})
    assert told.startswith(f"{name}_FILE: " if in_file else f"{name}: ")
    assert said in told
    assert CANARY not in told


def test_quotes_inside_a_value_stay() -> None:
    assert made(environ={"GATEPOST_OPENAPI_TITLE": 'The "best" API'}).get("openapi.title") == 'The "best" API'
    assert made(environ={"GATEPOST_OPENAPI_TITLE": '"Best" API of James'}).get("openapi.title") == '"Best" API of James'


@pytest.mark.parametrize(("text", "said"), [
    ('["a", "b"]', "between commas"), ("[a]", "between commas"), ("a\nb", "by commas, not by lines"), ('a,"b"', "quotes around a word"),
])  # fmt: skip
def test_another_notation_of_a_list_is_named(text: str, said: str) -> None:
    told = refusal(environ={"GATEPOST_ACME_A_LIST": text})
    assert told.startswith("GATEPOST_ACME_A_LIST: ")
    assert said in told


@pytest.mark.parametrize(("content", "said"), [
    (b"", "is empty"), (b"\r\n", "is empty"), (b"\xef\xbb\xbf\n", "is empty"), (CANARY.encode("utf-16"), "not UTF-8"), (CANARY.encode() + b"\0", "NUL"),
    (b"a" * 1_048_577, "larger than 1 MiB"), (None, "No such file"), ("folder", "Is a directory"), ("dangling", "No such file"), ("endless", "larger than 1 MiB"),
])  # fmt: skip
def test_a_secrets_file_that_is_none_is_named(content: bytes | str | None, said: str, tmp_path: Path) -> None:
    path = tmp_path / CANARY
    if content == "folder":
        path.mkdir()
    elif content == "dangling":
        path.symlink_to(tmp_path / "nowhere")
    elif isinstance(content, bytes):
        path.write_bytes(content)
    told = refusal(environ={"GATEPOST_ACME_TOKEN_FILE": "/dev/zero" if content == "endless" else str(path)})
    assert told.startswith("GATEPOST_ACME_TOKEN_FILE: ")
    assert said in told
    assert CANARY not in told


@pytest.mark.parametrize(("content", "said"), [
    (b"port = 0\n[limits\n", "line 2"), (b"port = 0\nport = 1\n", "given twice"), (b"env = production\n", "needs quotes"), (b"[audit]\ndenials = True\n", "needs quotes"),
    ("port = 0\n".encode("utf-16"), "save it as UTF-8"), (b"# \xfc\n", "save it as UTF-8"), (b"port = 0\0\n", "line 1"), (b'{"port": 0}', "line 1"),
    (b"GATEPOST_PORT = 5\n", "'port'"), (b"DATABASE_URL = 'x'\n", "'database.url'"), (b"[database]\npool-size = 5\n", "'database.pool_size'"),
    (b"Port = 5\n", "'port'"), (b"host = ''\n", "host: is empty"), (b"[database]\nurl = ''\n", "database.url: is empty"), (b"data_folder = '~/x'\n", "begins with ~"), (b"data_folder = '$HOME/x'\n", "begins with $"),
    (b'data_folder = "a\\u0000"\n', "data_folder: has a NUL character"),
    (b"[limits]\ncaller = ''\n", "limits.caller: is empty"), (b"[revocation]\nmax_staleness = 0\n", "revocation.max_staleness: must be at least 0.5"),
    (b"[clerk]\nsecret_key = sk_live_" + CANARY.encode(), "line 2"),
])  # fmt: skip
def test_a_mistake_in_the_settings_file_is_named_with_its_place(content: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / "gatepost.toml").write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        made_from(tmp_path / "gatepost.toml")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert CANARY not in str(caught.value)


def made_from(path: Path) -> Settings:
    settings = Settings(file=path, environ={})
    settings.refuse_unknown()
    return settings


@pytest.mark.parametrize("content", [b"\xef\xbb\xbfport = 1\n", b"port = 1\r\n[limits]\r\nbody_bytes = 5000\r\n"])
def test_a_settings_file_of_another_editor_is_read(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "gatepost.toml").write_bytes(content)
    assert made_from(tmp_path / "gatepost.toml").get("port") == 1


def test_a_settings_file_that_is_named_and_missing_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert refusal(environ={"GATEPOST_CONFIG": "nope.toml\r\n"}) == "nope.toml: cannot be read: No such file or directory (GATEPOST_CONFIG names it)"
    assert "quotes" in refusal(environ={"GATEPOST_CONFIG": '"nope.toml"'})
    assert made(environ={"GATEPOST_CONFIG": " \n"}).get("port") == 8080
    assert refusal(environ={"GATEPOST_CONFIG": "/dev/zero"}) == "/dev/zero: is larger than 1 MiB: is it the settings file?"
    with pytest.raises(ConfigError, match="unknown variable GATEPOST_CONFIG_FILE; the nearest known one is 'GATEPOST_CONFIG'$"):
        Plugins(Settings(environ={"GATEPOST_CONFIG_FILE": "x"}))
    (tmp_path / "gatepost.toml").symlink_to("nowhere")
    assert refusal() == "gatepost.toml: cannot be read: No such file or directory"
    os.unlink("gatepost.toml")
    os.mkdir("gatepost.toml")
    assert refusal() == "gatepost.toml: cannot be read: Is a directory"


@pytest.mark.parametrize(("name", "near"), [
    ("GATEPOST_DATABASE_URL", "DATABASE_URL"), ("GATEPOST_DATABASE_OWNER_URL", "DATABASE_OWNER_URL"), ("GATEPOST_DATABASE_URL_FILE", "DATABASE_URL_FILE"),
    ("GATEPOST_CLERK_SECRET_KEY", "CLERK_SECRET_KEY"), ("GATEPOST_CLERK_AUTHORIZED_PARTIES", "CLERK_AUTHORIZED_PARTIES"),
])  # fmt: skip
def test_a_prefix_too_many_is_named(name: str, near: str) -> None:
    with pytest.raises(ConfigError, match=f"unknown variable {name}; the nearest known one is '{near}'$"):
        Plugins(Settings(environ={name: "x"}))
