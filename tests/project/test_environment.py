"""What `make run` installs, and how."""

from __future__ import annotations

import importlib.util
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

_spec = importlib.util.spec_from_file_location("environment", ROOT / "deploy" / "environment.py")
assert _spec is not None
assert _spec.loader is not None
environment = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(environment)


def needed(lines: list[str]) -> set[str]:
    """The packages that these requirements bring into an environment, by the metadata of what is installed here."""
    seen: set[str] = set()
    waiting = [(Requirement(line), "") for line in lines]
    while waiting:
        wanted, extra = waiting.pop()
        if wanted.marker is not None and not wanted.marker.evaluate({"extra": extra}):
            continue
        name = environment.plain(wanted.name)
        seen.add(name)
        for line in metadata.requires(name) or ():
            inner = Requirement(line)
            waiting += [(inner, one) for one in ("", *wanted.extras) if environment.plain(inner.name) not in seen or wanted.extras]
    return seen


def test_the_quick_way_installs_what_serving_needs_and_no_more() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    extras = project["optional-dependencies"]
    assert set(environment.QUICK.split(",")) == {"embedded", "reload"}
    wanted = needed([*project["dependencies"], *extras["embedded"], *extras["reload"]])
    assert {environment.plain(name) for name in environment.SERVING} == wanted
    assert len(environment.pins(environment.SERVING)) == len(environment.SERVING)


def test_what_it_is_built_with_is_pinned() -> None:
    backend = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["build-system"]["requires"]
    names = {environment.plain(name) for name in environment.BUILDING}
    assert needed(backend) | {"editables"} == names  # hatchling asks for editables when it builds an editable install
    assert all(re.fullmatch(r"[\w.-]+==\S+", pin) for pin in environment.pins((*environment.BUILDING, "pip")))


def test_the_makefile_uses_it() -> None:
    made = (ROOT / "Makefile").read_text("utf-8")
    assert f"python3 deploy/environment.py $(VENV) {environment.QUICK}" in made


@pytest.mark.parametrize("status", [0, 1])
def test_uv_is_used_where_it_is_and_pip_if_it_fails(tmp_path: Path, status: int) -> None:
    """The programs are scripts that write down how they were started."""
    (tmp_path / "bin").mkdir()
    folder, log = tmp_path / "venv", tmp_path / "log"
    (tmp_path / "bin" / "uv").write_text(f'#!/bin/sh\necho "uv $*" >> {log}\nexit {status}\n')
    (tmp_path / "bin" / "uv").chmod(0o755)
    (folder / "bin").mkdir(parents=True)
    (folder / "bin" / "python").write_text(f'#!/bin/sh\necho "python $*" >> {log}\n')
    (folder / "bin" / "python").chmod(0o755)
    subprocess.run(
        [sys.executable, ROOT / "deploy" / "environment.py", folder, "embedded,reload"],
        env={"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}, check=True,
    )  # fmt: skip
    lines = log.read_text().splitlines()
    wanted = f"-e {ROOT}[embedded,reload] -c {ROOT}/requirements.txt"
    assert lines[0] == f"uv pip install --quiet --python {folder}/bin/python {wanted}"
    assert lines[1:] == ([f"python -m pip install --quiet {wanted}"] if status else [])


@pytest.mark.long
def test_a_new_environment_serves(tmp_path: Path) -> None:
    """The real thing: everything is installed from the package index, without uv."""
    folder = tmp_path / "venv"
    path = ":".join(part for part in os.environ["PATH"].split(":") if not (Path(part) / "uv").exists())
    subprocess.run([sys.executable, ROOT / "deploy" / "environment.py", folder, "embedded,reload"], env={**os.environ, "PATH": path}, check=True)
    python = folder / "bin" / "python"
    subprocess.run([python, "-m", "pip", "check"], check=True)
    installed = subprocess.run([python, "-m", "pip", "freeze"], text=True, capture_output=True, check=True).stdout
    names = {environment.plain(re.split(r"==| @|#egg=", line)[0]) for line in installed.splitlines() if re.match(r"[\w.-]+(==| @)", line)}
    assert names - {"gatepost"} == {environment.plain(name) for name in environment.SERVING}
    done = subprocess.run([folder / "bin" / "gatepost", "routes"], cwd=tmp_path, text=True, capture_output=True, check=True)
    assert "/api/health" in done.stdout
