"""Writes results into docs/explanation/performance.md: `python bench/report.py FILE...`, files that the benchmarks wrote with --json.

Each kind of result has its place in the page, between `<!-- results: KIND -->` and `<!-- end of KIND -->`.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path

from tables import text_of

PAGE = Path(__file__).resolve().parent.parent / "docs" / "explanation" / "performance.md"


def main(words: list[str] | None = None) -> int:
    """Put each result into its place; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE")
    parser.add_argument("--page", type=Path, default=PAGE)
    args = parser.parse_args(words)
    page = args.page.read_text("utf-8")
    for file in args.files:
        result = json.loads(file.read_text())
        page = placed(page, result["kind"], text_of(result))
    args.page.write_text(page, "utf-8")
    return 0


def placed(page: str, kind: str, text: str) -> str:
    """The page with this text in the place of its kind. Raises ValueError where the page has no such place."""
    start, end = f"<!-- results: {kind} -->", f"<!-- end of {kind} -->"
    new, places = re.subn(
        rf"{re.escape(start)}.*?{re.escape(end)}", lambda _: f"{start}\n\n{text}\n\n{end}", page, flags=re.DOTALL
    )
    if places != 1:
        raise ValueError(f"the page has {places} places for {kind}, not one")
    return new


if __name__ == "__main__":
    sys.exit(main())
