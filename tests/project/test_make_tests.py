"""`make test-long` and `make test-all`: what is run beside other tests, what alone, and what their end says."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from kits import ROOT

PYTHON = """#!/bin/sh
if [ "$1" = -c ]; then echo {root}; exit; fi
echo "$*" >> {calls}
echo "FAILED $*"
case "$*" in *"not alone"*) exit $BESIDE ;; *) exit $ALONE ;; esac
"""

TESTS = """
from pathlib import Path
import pytest
pytestmark = [pytest.mark.long{mark}]
def test_good(): pass
def test_bad(): assert Path({mended!r}).exists()
"""


def make(folder: Path, *words: str, python: str = "", **env: str) -> tuple[int, str]:
    """(status, what was printed) of make with this Python, or one that only notes how it is called."""
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    noting = folder / "python"
    noting.write_text(PYTHON.format(root=shlex.quote(str(ROOT)), calls=shlex.quote(str(folder / "calls"))))
    noting.chmod(0o755)
    (folder / "calls").write_text("")
    for name in ("serving", "installed"):
        (folder / name).write_text(str(ROOT))
    variables = [f"PYTHON={python or noting}", f"SERVING={folder / 'serving'}", f"STAMP={folder / 'installed'}"]
    done = subprocess.run(["make", "--no-print-directory", *words, *variables], cwd=ROOT, check=False, capture_output=True, text=True,
                          env={"PATH": "/usr/bin:/bin", "HOME": str(folder), **env})  # fmt: skip
    return done.returncode, done.stdout + done.stderr


def calls(folder: Path) -> list[str]:
    return [line.rstrip() for line in (folder / "calls").read_text().splitlines()]


def test_the_parts(tmp_path: Path) -> None:
    good = {"BESIDE": "0", "ALONE": "0"}
    assert make(tmp_path, "test-long", "ARGS=-n 0 --last-failed", **good)[0] == 0
    assert calls(tmp_path) == ["-m pytest -n 2 --dist worksteal -m long and not alone -n 0 --last-failed",
                               "-m pytest -n 0 -m long and alone -n 0 --last-failed"]  # fmt: skip
    make(tmp_path, "test-all", **good)
    assert calls(tmp_path) == ["-m pytest -n 2 --dist worksteal -m not alone", "-m pytest -n 0 -m alone"]
    make(tmp_path, "test", **good)
    assert calls(tmp_path) == ["-m pytest -n 2 --dist worksteal -m not long"]


@pytest.mark.parametrize(
    ("beside", "alone", "good", "parts"),
    [("1", "0", False, 2), ("0", "1", False, 2), ("5", "0", True, 2), ("0", "5", True, 2), ("5", "5", False, 2), ("1", "5", False, 2),
     ("5", "1", False, 2), ("2", "0", False, 1)],
)  # fmt: skip
def test_their_end(tmp_path: Path, beside: str, alone: str, good: bool, parts: int) -> None:
    """1: a test failed, 5: there was none, 2: Ctrl-C. What failed in either part is printed."""
    status, printed = make(tmp_path, "test-long", BESIDE=beside, ALONE=alone)
    assert (status == 0, len(calls(tmp_path)), printed.count("FAILED ")) == (good, parts, parts)


@pytest.mark.long
def test_the_failures_of_both_parts_are_remembered(tmp_path: Path) -> None:
    """Of four tests two fail, one in each part. Only they are run again, each in its part, until they pass."""
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers =\n  long\n  alone\n")
    for name, mark in (("beside", ""), ("apart", ", pytest.mark.alone")):
        (tmp_path / f"test_{name}.py").write_text(TESTS.format(mark=mark, mended=str(tmp_path / f"mended_{name}")))
    (tmp_path / "make").mkdir()

    def run(*more: str) -> tuple[bool, list[str]]:
        """(whether make is content, the results)."""
        args = f"ARGS=-c {tmp_path}/pytest.ini --rootdir {tmp_path} {tmp_path} -rA -n 0 {' '.join(more)}"
        status, printed = make(tmp_path / "make", "test-long", args, python=sys.executable)
        return status == 0, [" ".join(one) for one in re.findall(r"^(PASSED|FAILED) \S*/(\S+)", printed, re.MULTILINE)]

    again = ("--last-failed", "--last-failed-no-failures=none")
    assert run() == (False, ["PASSED test_beside.py::test_good", "FAILED test_beside.py::test_bad",
                             "PASSED test_apart.py::test_good", "FAILED test_apart.py::test_bad"])  # fmt: skip
    (tmp_path / "mended_beside").touch()
    assert run(*again) == (False, ["PASSED test_beside.py::test_bad", "FAILED test_apart.py::test_bad"])
    (tmp_path / "mended_apart").touch()
    assert run(*again) == (True, ["PASSED test_apart.py::test_bad"])
