"""The site of docs/: it builds without a warning, names every page, has the Markdown of each, and loads nothing from elsewhere."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import site_pages
from aiohttp import web
from kits import DOCS, ROOT, doc_pages
from kits.chromium import CHROMIUM, browser
from kits.pages import blocks, steps

PAGES = [path for _, _, path in site_pages.pages(site_pages.config()["nav"])]

needs_zensical = pytest.mark.skipif(importlib.util.find_spec("zensical") is None, reason="zensical is not installed (make deploy-tools)")


def build(folder: Path) -> subprocess.CompletedProcess[str]:
    """Build the site of a folder, strictly and without network access."""
    wall = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy", "ALL_PROXY"), "http://127.0.0.1:9")
    words = [sys.executable, str(ROOT / "docs" / "generate" / "site_pages.py"), str(folder)]
    return subprocess.run(words, env=os.environ | wall, capture_output=True, text=True, check=False, timeout=120)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the site, built as `make site` builds it."""
    folder = tmp_path_factory.mktemp("site")
    shutil.copytree(ROOT / "docs", folder / "docs")
    shutil.copy(ROOT / "mkdocs.yml", folder)
    done = build(folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "build" / "site"


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    shutil.copy(ROOT / "mkdocs.yml", tmp_path)
    return tmp_path


def test_every_page_is_in_the_navigation_once() -> None:
    assert sorted(PAGES) == sorted(str(path.relative_to(DOCS)) for path in doc_pages())
    assert len(set(PAGES)) == len(PAGES)


def test_the_navigation_has_a_section_for_each_kind_of_reading() -> None:
    sections = list(dict.fromkeys(section for section, _, _ in site_pages.pages(site_pages.config()["nav"])))
    assert sections == ["Start", "Tutorials", "How-to guides", "Reference", "Explanation"]


def linked(page: Path) -> set[Path]:
    """The pages under docs/ that this one links to."""
    targets = re.findall(r"\]\((?!https?:)([^)#\s]+\.md)", page.read_text("utf-8"))
    return {(page.parent / target).resolve() for target in targets} & set(doc_pages())


@pytest.mark.parametrize("start", [DOCS / "index.md", ROOT / "README.md"], ids=["the first page", "the README"])
def test_a_reader_who_follows_links_reaches_every_page(start: Path) -> None:
    """Without the navigation, too."""
    reached, ahead = set[Path](), [start]
    while ahead:
        new = linked(ahead.pop()) - reached
        reached |= new
        ahead += new
    assert sorted(page.name for page in set(doc_pages()) - reached - {DOCS / "index.md"}) == []


@needs_zensical
def test_it_loads_nothing_from_elsewhere(site: Path) -> None:
    for name in PAGES:
        html = (site / name).with_suffix(".html").read_text("utf-8")
        loaded = re.findall(r'<(?:script|img|iframe|source)\b[^>]*\bsrc="([^"]+)"', html)
        loaded += re.findall(r'<link\b(?=[^>]*rel="(?:stylesheet|icon|preload|modulepreload)")[^>]*href="([^"]+)"', html)
        assert loaded, name
        assert [one for one in loaded if re.match(r"(?:[a-z]+:)?//", one)] == [], name
    assert [name for name in ("diagrams", "generate", "theme") if (site / name).exists()] == []


@needs_zensical
def test_beside_each_page_is_its_markdown_and_the_page_names_it(site: Path) -> None:
    for name in PAGES:
        assert (site / name).read_bytes() == (DOCS / name).read_bytes()
        html = (site / name).with_suffix(".html").read_text("utf-8")
        assert re.search(rf'<link rel="alternate" type="text/markdown" href="(?:\./)?{Path(name).name}">', html), name


@needs_zensical
def test_llms_txt_lists_every_page_with_a_sentence_about_it(site: Path) -> None:
    text = (site / "llms.txt").read_text("utf-8")
    assert re.match(r"# Gatepost\n\n> [A-Z][^\n]+\n\n## ", text)
    listed = re.findall(r"^- \[[^\]]+\]\(([^)]+)\): (.+)$", text, re.MULTILINE)
    assert [path for path, _ in listed] == PAGES
    assert [path for path, said in listed if not re.match(r"[A-Z`0-9].{20,}", said) or "](" in said] == []


@needs_zensical
def test_the_page_for_an_address_that_does_not_exist_leads_on(site: Path) -> None:
    content = re.search(r"<article.*?</article>", (site / "404.html").read_text("utf-8"), re.DOTALL)
    assert content is not None
    links = re.findall(r'href="/([^"#]+)"', content[0])
    assert len(links) >= 4
    assert [link for link in links if not (site / link).exists()] == []


@needs_zensical
@pytest.mark.long
@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
async def test_what_is_copied_from_a_console_block_is_its_commands(site: Path) -> None:
    """Without the prompt, and without what the commands print."""
    app = web.Application()
    app.router.add_static("/", site)
    runner = web.AppRunner(app)
    await runner.setup()
    await (listener := web.TCPSite(runner, "127.0.0.1", 0)).start()
    assert listener._server is not None
    origin = f"http://127.0.0.1:{listener._server.sockets[0].getsockname()[1]}"  # type: ignore[attr-defined]
    try:
        async with browser() as tab:
            await tab.open(f"{origin}/index.html")
            await tab.call("Emulation.setFocusEmulationEnabled", enabled=True)
            await tab.call("Browser.grantPermissions", permissions=["clipboardReadWrite", "clipboardSanitizedWrite"], origin=origin)
            button = "[...document.querySelectorAll('.highlight')].find((it) => it.querySelector('.gp'))?.querySelector('button')"
            await tab.until(button)
            await tab.call("Runtime.evaluate", expression=f"{button}.click()", userGesture=True)
            await asyncio.sleep(0.5)
            copied = await tab.run("navigator.clipboard.readText()")
    finally:
        await runner.cleanup()
    (block,) = blocks("console", page="docs/index.md")
    assert [line for line in copied.splitlines() if line] == [step.command for step in steps(block.text)]


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
