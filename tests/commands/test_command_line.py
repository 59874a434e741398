"""The command line as a whole: what is loaded for which command, `--help`, `--version`, and the dependencies it needs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from kits import ROOT
from packaging.requirements import Requirement

from server.commands import run
from server.installation import NEEDED

COMMANDS = (
    "serve", "init", "check", "routes", "explain", "access", "tables", "migrate", "openapi", "revoke", "help", "completion",
    "keys", "token", "replay",
)  # fmt: skip
COUNTING = """
from pathlib import Path
from server import Command, Setting, hookimpl

def note(hook):
    with Path("hooks").open("a") as file:
        file.write(hook + "\\n")

@hookimpl
def register_settings():
    note("settings")
    return {"colour": Setting("str", "red", help="a colour")}

@hookimpl
def register_handlers(settings):
    note("handlers")
    return []

async def greet(args, context):
    print("hello")
    return 0

@hookimpl
def register_commands():
    note("commands")
    return {"greet": Command("say hello", lambda parser: None, greet)}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder of an operator with a plugin that counts its hooks."""
    (tmp_path / "counting.py").write_text(COUNTING)
    for name in [name for name in os.environ if name.startswith(("GATEPOST_", "DATABASE_", "CLERK_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("GATEPOST_PLUGINS", "module:counting")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def gatepost(folder: Path, *words: str, program: tuple[str, ...] = (sys.executable, "-m", "server")) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{folder}", "COLUMNS": "200"}
    return subprocess.run([*program, *words], cwd=folder, env=environment, text=True, capture_output=True, timeout=60, check=False)


def hooks(folder: Path) -> list[str]:
    return (folder / "hooks").read_text().split() if (folder / "hooks").exists() else []


@pytest.mark.parametrize("words", [(), ("serve",)], ids=["bare", "serve"])
def test_serving_runs_every_hook_once(folder: Path, words: tuple[str, ...]) -> None:
    (folder / ".gatepost").write_text("no folder: everything is loaded, and then the embedded Postgres cannot start")
    done = gatepost(folder, *words)
    assert done.returncode == 2, done.stderr
    assert sorted(hooks(folder)) == ["commands", "handlers", "settings"]


def test_a_plugins_command_runs_every_hook_once(folder: Path) -> None:
    done = gatepost(folder, "greet")
    assert (done.returncode, done.stdout) == (0, "hello\n"), done.stderr
    assert sorted(hooks(folder)) == ["commands", "handlers", "settings"]


def listed(text: str) -> set[str]:
    return set(re.findall(r"^    (\w+)(?:  |$)", text, re.MULTILINE))


def test_help_lists_every_command(folder: Path) -> None:
    for word in ("--help", "-h"):
        done = gatepost(folder, word)
        assert (done.returncode, done.stderr) == (0, "")
        assert listed(done.stdout) == {*COMMANDS, "greet"}
    assert sorted(hooks(folder)) == sorted(2 * ["commands", "handlers", "settings"])


@pytest.mark.parametrize(
    ("file", "commands", "said"),
    [
        ("port = 'none'", COMMANDS, "port"),
        ("plugins = [", COMMANDS, "not valid TOML"),
        ("prot = 1", (*COMMANDS, "greet"), "unknown key 'prot'"),
    ],
)
def test_help_works_where_a_setting_is_wrong(folder: Path, file: str, commands: tuple[str, ...], said: str) -> None:
    (folder / "gatepost.toml").write_text(file)
    done = gatepost(folder, "--help")
    assert done.returncode == 0
    assert listed(done.stdout) == set(commands)
    assert done.stderr.startswith("gatepost: ")
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
    for words in (("routes", "--help"), ("--version",)):
        done = gatepost(folder, *words)
        assert (done.returncode, done.stderr) == (0, "")
    assert gatepost(folder, "token", "--help").returncode == 0
    assert gatepost(folder, "routes").returncode == 2


def test_help_works_where_a_plugin_is_not_installed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GATEPOST_PLUGINS", "no_such_plugin")
    done = gatepost(folder, "--help")
    assert (done.returncode, listed(done.stdout)) == (0, set(COMMANDS))
    assert "'no_such_plugin' is not installed" in done.stderr


def test_version(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        run(["--version"])
    assert (ended.value.code, capsys.readouterr().out) == (0, f"gatepost {metadata.version('gatepost')}\n")
    assert hooks(folder) == []


def test_the_usage_line_names_the_program_that_was_started(folder: Path) -> None:
    script = (str(Path(sys.executable).parent / "gatepost"),)
    assert gatepost(folder, "--help").stdout.startswith("usage: python -m server [")
    assert gatepost(folder, "--help", program=script).stdout.startswith("usage: gatepost [")


def test_a_command_of_a_plugin_cannot_take_the_name_of_one_of_the_servers(folder: Path) -> None:
    (folder / "counting.py").write_text(COUNTING.replace('"greet"', '"routes"'))
    done = gatepost(folder, "keys", "hash")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "its command 'routes'" in done.stderr


def test_what_is_needed_is_what_the_distribution_depends_on() -> None:
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["dependencies"]
    names = {Requirement(text).name for text in declared} - {"uvloop"}  # asyncio's own loop serves without it
    modules = metadata.packages_distributions()
    needed = {distribution.lower().replace("_", "-") for module in NEEDED for distribution in modules[module]}
    assert needed == names
    assert list(NEEDED) == sorted(NEEDED)
