"""What the tests share: a kit a file, and where things are in the checkout."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"


def doc_pages() -> list[Path]:
    """Every page below docs/."""
    return sorted(DOCS.rglob("*.md"))


def doc_page(name: str) -> Path:
    """The one page of this name below docs/, such as `clerk.md`."""
    [found] = DOCS.rglob(name)
    return found


def test_exists(file: str, name: str) -> bool:
    """Whether the test file of this name, anywhere below tests/, has a test of this name."""
    [found] = (ROOT / "tests").rglob(file)
    return re.search(rf"^(?:async )?def {name}\(", found.read_text("utf-8"), re.MULTILINE) is not None


test_exists.__test__ = False  # type: ignore[attr-defined]
