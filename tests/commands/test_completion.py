"""`completion`: what real shells complete."""

from __future__ import annotations

import contextlib
import os
import pty
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from kits import ROOT

from server.commands.completion import SHELLS

# (what is typed, what it becomes or what is offered)
CASES = [
    ("gatepost serv", {"serve"}),
    ("gatepost ex", {"explain"}),
    ("gatepost serve --rel", {"--reload"}),
    ("gatepost keys cr", {"create"}),
    ("gatepost keys create --n", {"--name"}),
    ("gatepost access --token-type sess", {"session_token"}),
    ("gatepost --config own", {"own.toml"}),
]


@pytest.fixture(scope="module")
def scripts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the script for each shell, as `completion` prints it."""
    folder = tmp_path_factory.mktemp("scripts")
    for shell, name in zip(SHELLS, ("gatepost.bash", "_gatepost", "gatepost.fish"), strict=True):
        done = subprocess.run(
            [sys.executable, "-m", "server", "completion", shell],
            cwd=folder, env={**os.environ, "PYTHONPATH": str(ROOT)}, text=True, capture_output=True, timeout=60, check=True,
        )  # fmt: skip
        assert done.stderr == ""
        (folder / name).write_text(done.stdout)
    (folder / "own.toml").write_text("")
    return folder


def program(name: str) -> str:
    if (found := shutil.which(name)) is None:
        pytest.skip(f"{name} is not installed")
    return found


@pytest.mark.parametrize(("typed", "offered"), CASES)
def test_bash(scripts: Path, typed: str, offered: set[str]) -> None:
    words = typed.split()
    code = f"""
      source gatepost.bash
      COMP_WORDS=({typed}); COMP_CWORD={len(words) - 1}; COMP_LINE='{typed}'; COMP_POINT={len(typed)}
      spec=$(complete -p gatepost); function=${{spec##*-F }}; function=${{function%% *}}
      "$function" gatepost '{words[-1]}' '{words[-2]}'; printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    done = subprocess.run([program("bash"), "--norc", "-c", code], cwd=scripts, text=True, capture_output=True, timeout=30, check=True)
    assert done.stderr == ""
    assert {word.strip() for word in done.stdout.split()} == offered


@pytest.mark.parametrize(("typed", "offered"), CASES)
def test_fish(scripts: Path, tmp_path: Path, typed: str, offered: set[str]) -> None:
    (tmp_path / "gatepost").write_text("#!/bin/sh\n")
    (tmp_path / "gatepost").chmod(0o755)
    environment = {"HOME": str(tmp_path), "PATH": f"{tmp_path}:{os.environ['PATH']}", "TERM": "dumb"}
    code = f"source gatepost.fish; complete -C '{typed}'"
    done = subprocess.run(
        [program("fish"), "--no-config", "-c", code], cwd=scripts, env=environment, text=True, capture_output=True, timeout=30, check=True
    )
    assert {line.partition("\t")[0] for line in done.stdout.splitlines()} == offered


def test_zsh(scripts: Path, tmp_path: Path) -> None:
    """zsh completes only at its prompt: on a terminal, with the tab key."""
    zsh = program("zsh")
    ours, theirs = pty.openpty()
    environment = {"HOME": str(tmp_path), "PATH": os.environ["PATH"], "TERM": "dumb", "PS1": "> ", "ZDOTDIR": str(tmp_path)}
    shell = subprocess.Popen(
        [zsh, "-f", "-i"], cwd=scripts, env=environment, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True
    )
    os.close(theirs)
    try:
        os.write(ours, f"fpath=({scripts} $fpath); autoload -U compinit; compinit -u -D; unsetopt beep; echo REA''DY\n".encode())
        _until(ours, "READY")
        for typed, offered in CASES:
            os.write(ours, f"{typed}\t".encode())
            _until(ours, typed.rpartition(" ")[0] + " " + min(offered))
            os.write(ours, b"\x15")  # clear the line
    finally:
        shell.kill()
        shell.wait(10)
        os.close(ours)


def _until(terminal: int, text: str) -> None:
    """Read what the terminal shows until it shows this."""
    shown, end = "", time.monotonic() + 30
    while text not in shown.replace("\x08", "").replace("\r", ""):
        left = end - time.monotonic()
        assert left > 0, f"{text!r} was not shown: {shown!r}"
        if select.select([terminal], [], [], left)[0]:
            with contextlib.suppress(OSError):
                shown += os.read(terminal, 65536).decode(errors="replace")


def test_serving_does_not_load_what_only_completion_needs(tmp_path: Path) -> None:
    code = "import sys; from server.commands import run; run(['routes']); print('shtab' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, text=True, capture_output=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "False"


def test_without_the_package_the_line_says_how_to_get_it(tmp_path: Path) -> None:
    code = "import sys; sys.modules['shtab'] = None; from server.commands import run; sys.exit(run(['completion', 'bash']))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, text=True, capture_output=True, check=False
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "gatepost: completion: the package shtab is not installed; run: pip install 'gatepost[completion]'\n"
