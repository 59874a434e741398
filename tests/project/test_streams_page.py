"""The page of live answers is true: its plugin is served, and its test passes with the test kit."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest
from kits import ROOT, doc_page
from kits import pages as page_kit
from kits.pages import blocks

from server.streams import ends
from server.streams.ends import End

PAGE = "docs/guides/streams.md"
CONFTEST = """
import pytest

pytest_plugins = ["server.testing"]

@pytest.fixture
def gatepost_settings():
    return {"plugins": ["module:clock_plugin"]}
"""


async def test_the_page_is_true(tmp_path: Path) -> None:
    """Its handlers are one plugin; pytest runs its test as a reader does. The changes of a table have tests of their own."""
    texts = [block.text for block in blocks("python", page=PAGE)]
    [test] = [text for text in texts if "client_as" in text]
    handlers = [text for text in texts if text != test]
    (tmp_path / "clock_plugin.py").write_text("\n".join(handlers))
    (tmp_path / "conftest.py").write_text(CONFTEST)
    (tmp_path / "test_clock.py").write_text(test)
    (tmp_path / "pytest.ini").write_text("[pytest]\nasyncio_mode = auto\n")
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", cwd=tmp_path,
        env={**page_kit.environment(tmp_path), "PYTHONPATH": f"{tmp_path}:{ROOT}"}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    said = (await asyncio.wait_for(process.communicate(), 120))[0].decode()
    assert process.returncode == 0, said
    assert "1 passed" in said


@pytest.mark.parametrize("end", [one for one in vars(ends).values() if isinstance(one, End) and one.code is not None], ids=lambda end: end.reason)
def test_every_reason_is_in_the_table(end: End) -> None:
    assert f"| `{end.reason}` | {end.code} |" in doc_page("streams.md").read_text("utf-8")
