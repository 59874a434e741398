"""`help`, mistakes in the arguments, and colours on a terminal."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest
from kits import ROOT

from server.commands.help import instead
from server.settings.core import CORE
from server.settings.sources import env_name

PROGRAM = (sys.executable, "-m", "server")


def environment(folder: Path, **more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("GATEPOST_", "DATABASE_", "CLERK_", "NO_COLOR"))}
    return kept | {"PYTHONPATH": str(ROOT), "COLUMNS": "100"} | more


def gatepost(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*PROGRAM, *words], cwd=folder, env=environment(folder), text=True, capture_output=True, timeout=60, check=False)


def on_a_terminal(folder: Path, *words: str, **more: str) -> str:
    """What a command prints where its output and its errors are a terminal."""
    ours, theirs = pty.openpty()
    with subprocess.Popen([*PROGRAM, *words], cwd=folder, env=environment(folder, **more), stdin=theirs, stdout=theirs, stderr=theirs) as done:
        os.close(theirs)
        shown = b""
        try:
            while piece := os.read(ours, 65536):
                shown += piece
        except OSError:  # Linux reports the end of a terminal as an error
            pass
        done.wait(60)
    os.close(ours)
    return shown.decode().replace("\r\n", "\n")


# Help --------------------------------------------------------------------------------------------------------------------


def test_help_names_every_status_and_where_the_variables_are(tmp_path: Path) -> None:
    shown = gatepost(tmp_path, "--help").stdout
    for status in ("0    success", "1    failure", "2    a mistake", "130  interrupted"):
        assert f"\n  {status}" in shown
    assert "`python -m server help environment`" in shown
    assert "NO_COLOR" in shown


def test_help_of_a_command_is_its_help(tmp_path: Path) -> None:
    for words in (("serve",), ("keys", "create"), ()):
        one, other = gatepost(tmp_path, "help", *words), gatepost(tmp_path, *words, "--help")
        assert (one.returncode, one.stdout, one.stderr) == (0, other.stdout, "")
    assert instead(["serve"]) == ["serve", "--help"]
    assert instead(["environment", "--json"]) is None


def test_help_keeps_the_settings_file(tmp_path: Path) -> None:
    (tmp_path / "acme.py").write_text(
        "from server import Command, hookimpl\n"
        "async def greet(args, context):\n    return 0\n"
        "@hookimpl\ndef register_commands():\n    return {'greet': Command('say hello', lambda parser: None, greet)}\n"
    )
    (tmp_path / "own.toml").write_text('plugins = ["module:acme"]\n')
    done = gatepost(tmp_path, "--config", "own.toml", "help", "greet")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("usage: python -m server greet [")


def test_help_environment_lists_every_variable(tmp_path: Path) -> None:
    shown = gatepost(tmp_path, "help", "environment").stdout
    lines = shown.splitlines()
    for key, setting in CORE.items():
        if setting.kind not in ("table", "tables"):
            assert f"{env_name(key, setting)}  ({key})" in lines
    assert "CLERK_SECRET_KEY  (clerk.secret_key)" in lines  # of a plugin
    assert {"GATEPOST_CONFIG", "NO_COLOR"} <= set(lines)
    found = json.loads(gatepost(tmp_path, "help", "environment", "--json").stdout)
    assert [one["variable"] for one in found] == [line.split()[0] for line in lines if not line.startswith(" ")]
    port = next(one for one in found if one["variable"] == "GATEPOST_PORT")
    assert (port["setting"], f"default: {CORE['port'].default}" in port["help"]) == ("port", True)


def test_help_environment_prints_no_value(tmp_path: Path) -> None:
    done = subprocess.run(
        [*PROGRAM, "help", "environment"], cwd=tmp_path, text=True, capture_output=True, timeout=60, check=True,
        env=environment(tmp_path, DATABASE_URL="postgresql://u:a-password@h/d", CLERK_SECRET_KEY="sk_test_a_secret"),
    )  # fmt: skip
    assert "a-password" not in done.stdout
    assert "a_secret" not in done.stdout


# Mistakes ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("serv", "no command is named 'serv'; did you mean serve?; see `python -m server --help`"),
        ("help acess", "no command is named 'acess'; did you mean access?; see `python -m server --help`"),
        ("keys creat", "no command is named 'creat'; did you mean create?; see `python -m server keys --help`"),
        ("serve --prot 1", "unrecognized arguments: --prot 1; did you mean --port?; see `python -m server serve --help`"),
        ("--prot=1 serve", "unrecognized arguments: --prot=1; did you mean --port?; see `python -m server serve --help`"),
        ("routes extra", "unrecognized arguments: extra; see `python -m server routes --help`"),
        ("--port x", "argument --port: invalid int value: 'x'; see `python -m server --help`"),
        ("completion csh", "argument SHELL: 'csh' is not one of bash, zsh, fish; did you mean zsh?; see `gatepost completion --help`"),
        ("explain GET", "the following arguments are required: PATH; see `python -m server explain --help`"),
    ],
)
def test_a_mistake_is_one_line(tmp_path: Path, words: str, line: str) -> None:
    done = gatepost(tmp_path, *words.split())
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"gatepost: {line}\n")


def test_a_name_that_is_near_no_command_gets_all_of_them(tmp_path: Path) -> None:
    done = gatepost(tmp_path, "xyzzy")
    assert done.returncode == 2
    assert done.stderr.startswith("gatepost: no command is named 'xyzzy': it is one of serve, init, ")
    assert done.stderr.count("\n") == 1


# Colours -----------------------------------------------------------------------------------------------------------------


def test_colours_are_for_terminals(tmp_path: Path) -> None:
    shown = on_a_terminal(tmp_path, "access", TERM="xterm")
    assert "\x1b[32myes\x1b[0m" in shown
    assert "\x1b[33m403 role\x1b[0m" in shown
    assert on_a_terminal(tmp_path, "acess", TERM="xterm").startswith("\x1b[31mgatepost:\x1b[0m no command")
    plain = gatepost(tmp_path, "access").stdout
    for name in ("31", "32", "33", "2", "0"):
        shown = shown.replace(f"\x1b[{name}m", "")
    assert shown == plain  # the columns are where they are without colours


@pytest.mark.parametrize("more", [{"TERM": "xterm", "NO_COLOR": "1"}, {"TERM": "dumb"}, {"TERM": ""}])
def test_no_colours_where_they_are_not_wanted(tmp_path: Path, more: dict[str, str]) -> None:
    for words in (("access",), ("acess",), ("--help",)):
        assert "\x1b" not in on_a_terminal(tmp_path, *words, **more)


def test_json_has_no_colours(tmp_path: Path) -> None:
    shown = on_a_terminal(tmp_path, "access", "--json", TERM="xterm")
    assert "\x1b" not in shown
    assert json.loads(shown)[0]["method"] == "GET"
