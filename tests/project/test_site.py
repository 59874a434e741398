"""The site of docs/: it builds without a warning, names every page, and loads nothing from anywhere."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from kits import DOCS, ROOT, doc_pages

CONFIG: dict[str, Any] = yaml.safe_load((ROOT / "mkdocs.yml").read_text("utf-8"))

needs_zensical = pytest.mark.skipif(importlib.util.find_spec("zensical") is None, reason="zensical is not installed (make deploy-tools)")


def in_order(nav: list[Any]) -> Iterator[str]:
    """The pages of the navigation, in their order."""
    for entry in nav:
        (value,) = entry.values()
        if isinstance(value, str):
            yield value
        else:
            yield from in_order(value)


def build(folder: Path) -> subprocess.CompletedProcess[str]:
    """Build the site of a folder, strictly and without network access."""
    wall = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy", "ALL_PROXY"), "http://127.0.0.1:9")
    words = [sys.executable, "-m", "zensical", "build", "--clean", "--strict"]
    return subprocess.run(words, cwd=folder, env=os.environ | wall, capture_output=True, text=True, check=False, timeout=120)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    shutil.copy(ROOT / "mkdocs.yml", tmp_path)
    return tmp_path


def test_every_page_is_in_the_navigation_once() -> None:
    named = list(in_order(CONFIG["nav"]))
    assert sorted(named) == sorted(str(path.relative_to(DOCS)) for path in doc_pages())
    assert len(set(named)) == len(named)


def test_every_page_but_the_first_ones_is_named_by_another() -> None:
    """Readers find it without the navigation, too."""
    texts = {path.name: path.read_text("utf-8") for path in [ROOT / "README.md", *doc_pages()]}
    for name in texts:
        others = "".join(text for other, text in texts.items() if other != name)
        assert name in ("README.md", "index.md") or re.search(rf"\]\((?:[\w./-]+/)?{re.escape(name)}", others), name


@needs_zensical
def test_it_builds_without_a_warning_and_loads_nothing_from_elsewhere(copy: Path) -> None:
    done = build(copy)
    assert done.returncode == 0, done.stdout + done.stderr
    site = copy / "build" / "site"
    for name in in_order(CONFIG["nav"]):
        html = (site / name).with_suffix(".html").read_text("utf-8")
        loaded = re.findall(r'<(?:script|img|iframe|source)\b[^>]*\bsrc="([^"]+)"', html)
        loaded += re.findall(r'<link\b(?=[^>]*rel="(?:stylesheet|icon|preload|modulepreload)")[^>]*href="([^"]+)"', html)
        assert loaded, name
        assert [one for one in loaded if re.match(r"(?:[a-z]+:)?//", one)] == [], name
    assert not (site / "diagrams").exists()


@needs_zensical
@pytest.mark.parametrize("bad", ["[x](nowhere.md)", "[x](plugins.md#nowhere)"])
def test_a_link_that_leads_nowhere_stops_it(copy: Path, bad: str) -> None:
    with (copy / "docs" / "guides" / "index.md").open("a") as page:
        page.write(f"\n{bad}\n")
    assert build(copy).returncode != 0


# Diagrams ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", sorted((ROOT / "docs" / "diagrams").glob("*.mmd")), ids=lambda path: path.name)
def test_a_picture_is_drawn_from_the_text_that_is_here(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(source.parent)
    import render

    drawn = (ROOT / "docs" / "images" / f"{source.stem}.svg").read_text("utf-8")
    assert drawn.startswith(render.mark(source.read_text("utf-8"))), "run `make diagrams`"
    assert "http" not in re.sub(r"http://www\.w3\.org/\S+", "", drawn)
