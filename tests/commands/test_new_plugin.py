"""`init --plugin NAME`: what it writes passes its own tests, is served, and never writes over a file."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from kits import ROOT

from server.commands import run

RUFF = Path(sys.executable).parent / "ruff"
FILES = ["{}/__init__.py", "{}/handlers.py", "schema.sql", "gatepost.toml", "pyproject.toml", "tests/test_{}.py"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in [name for name in os.environ if name.startswith(("GATEPOST_", "DATABASE_", "CLERK_", "TEST_DATABASE"))]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def program(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}", "PYTHONDONTWRITEBYTECODE": "1", "HOME": str(folder)}
    return subprocess.run([sys.executable, "-m", *words], cwd=folder, env=environment, text=True, capture_output=True, timeout=240, check=False)


def test_it_writes_a_plugin_and_says_what_comes_next(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["init", "--plugin", "todo_lists"]) == 0
    out = capsys.readouterr().out.splitlines()
    written = [path.format("todo_lists") for path in FILES]
    assert out[0] == f"written: {', '.join(written)}"
    assert any("python -m server migrate --schema schema.sql" in line for line in out)
    assert sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()) == sorted(written)
    for path in written:
        text = (folder / path).read_text("utf-8")
        assert "@" not in text.replace("@hookimpl", "").replace("@requires", "").replace("@describe", "").replace("@pytest", ""), path
        assert max(map(len, text.splitlines())) <= 128
    project = tomllib.loads((folder / "pyproject.toml").read_text("utf-8"))["project"]
    assert project["entry-points"]["gatepost.plugins"] == {"todo_lists": "todo_lists"}
    checked = subprocess.run([RUFF, "check", "--isolated", "--line-length", "128", "--select", "E,F,W,I,UP,B", folder], text=True, capture_output=True, check=False)
    assert checked.returncode == 0, checked.stdout


def test_its_routes_are_those_of_the_program(folder: Path) -> None:
    assert run(["init", "--plugin", "todo_lists"]) == 0
    done = program(folder, "server", "routes")
    assert done.returncode == 0, done.stderr
    found = [line.split()[:2] for line in done.stdout.splitlines() if "todo-lists" in line]
    items = "/api/orgs/{org_id}/todo-lists/items"
    assert sorted(found) == [["DELETE", f"{items}/{{id}}"], ["GET", items], ["PATCH", f"{items}/{{id}}"], ["POST", items]]
    assert "/api/invoices" not in done.stdout


@pytest.mark.long
@pytest.mark.parametrize("name", ["notes", "todo_lists"])
def test_its_tests_pass_and_it_is_migrated_and_checked(folder: Path, name: str) -> None:
    assert run(["init", "--plugin", name]) == 0
    done = program(folder, "pytest", "-q", "-p", "no:cacheprovider")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "8 passed" in done.stdout
    for _ in range(2):
        done = program(folder, "server", "migrate", "--schema", "schema.sql")
        assert (done.returncode, done.stdout) == (0, "migrated\n"), done.stderr
    done = program(folder, "server", "check")
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "problems: none"), done.stdout + done.stderr
    assert "warning" not in done.stdout.replace("warning: the schema", "")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("", "a name has lower-case letters"),
        ("Todo", "a name has lower-case letters"),
        ("to-do", "a name has lower-case letters"),
        ("to do", "a name has lower-case letters"),
        ("1todo", "a name has lower-case letters"),
        ("_todo", "a name has lower-case letters"),
        ("a__b", "a name has lower-case letters"),
        ("../todo", "a name has lower-case letters"),
        ("größe", "a name has lower-case letters"),
        ("todo\n", "a name has lower-case letters"),
        ("a" * 41, "a name has lower-case letters"),
        ("class", "a Python keyword"),
        ("match", "a Python keyword"),
        ("json", "a module of its standard library"),
        ("server", "Gatepost uses this name"),
        ("data", "Gatepost uses this name"),
        ("limits", "Gatepost uses this name"),
        ("clerk", "Gatepost uses this name"),
        ("aiohttp", "a package of this name is installed"),
    ],
)
def test_a_name_that_cannot_be_one(folder: Path, name: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["init", "--plugin", name]) == 2
    err = capsys.readouterr().err
    assert err.startswith("gatepost: init: --plugin ")
    assert message in err
    assert err.count("\n") == 1
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("path", [*FILES, "{}", "{}@nowhere"])
def test_a_file_that_exists_is_never_written_over(folder: Path, path: str, capsys: pytest.CaptureFixture[str]) -> None:
    """@: a symbolic link to."""
    file, _, target = path.format("notes").partition("@")
    (folder / file).parent.mkdir(exist_ok=True)
    if target:
        (folder / file).symlink_to(target)
    else:
        (folder / file).write_text("# mine")
    before = sorted(folder.rglob("*"))
    assert run(["init", "--plugin", "notes"]) == 2
    assert "already exists; nothing was written" in capsys.readouterr().err
    assert sorted(folder.rglob("*")) == before
    assert target or (folder / file).read_text() == "# mine"


def test_a_file_and_a_plugin_exclude_each_other(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["init", "other.toml", "--plugin", "notes"]) == 2
    assert "exclude each other" in capsys.readouterr().err
    assert list(folder.iterdir()) == []
