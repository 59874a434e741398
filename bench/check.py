"""Has it become slower? `make bench-check`, or `python bench/check.py`: run.py's main cases, shortly, against baseline.json.

Ratios are compared, never times: they hold on another machine. A ratio is worse where it is more than the baseline's by the
tolerance of its kind, and a little. Exit status 1 where any is. `--write` makes what was measured the new baseline, and is for a
quiet machine. Not part of the CI, whose machines are shared with others.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import run
from stats import table

BASELINE = Path(__file__).resolve().parent / "baseline.json"
TOLERANCE = {"server": 0.15, "both": 0.15, "verify": 0.25, "p99": 0.75}
"""How much more of the baseline each kind of ratio may be. Of all that is measured p99 is disturbed most by other work."""
A_LITTLE = 0.05
"""And this much more than that, so that a ratio near zero is not held to parts of itself."""


def main(words: list[str] | None = None) -> int:
    """Measure (or read what was measured) and compare; 1 where something got worse."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--baseline", type=Path, default=BASELINE, metavar="FILE")
    parser.add_argument(
        "--measured", type=Path, metavar="FILE", help="what run.py --json has written, in place of measuring now"
    )
    parser.add_argument("--write", action="store_true", help="make it the new baseline")
    args, rest = parser.parse_known_args(words)
    if args.measured is not None:
        result = json.loads(args.measured.read_text())
    else:
        result = run.measured(run.parse(["--rounds", "3", "--seconds", "1.5", "--workers", "0", "--starts", "0", *rest]))
    if args.write:
        args.baseline.write_text(json.dumps(baseline_of(result), indent=1) + "\n")
        return 0
    baseline = json.loads(args.baseline.read_text())["ratios"]
    asked = result.get("args", {}).get("cases", list(baseline))
    lines, worse = compare({case: kinds for case, kinds in baseline.items() if case in asked}, result["summary"])
    print(table(["ratio", "baseline", "now", "allowed", ""], lines))
    if left_out := [case for case in baseline if case not in asked]:
        print("\nnot asked for (--only): " + ", ".join(left_out))
    print("\n" + ("worse: " + ", ".join(worse) if worse else "nothing got worse"))
    return 1 if worse else 0


def compare(
    baseline: Mapping[str, Mapping[str, float]], now: Mapping[str, Mapping[str, Any]]
) -> tuple[list[list[str]], list[str]]:
    """(a line for each ratio of the baseline, the names of those that got worse). One that was not measured counts as worse."""
    lines, worse = [], []
    for case, ratios in baseline.items():
        for kind, before in ratios.items():
            name, allowed = f"{case}: {kind}", before * (1 + TOLERANCE[kind]) + A_LITTLE
            measured = now.get(case, {}).get(kind)
            if measured is None:
                lines.append([name, f"{before:.2f}", "", f"{allowed:.2f}", "not measured"])
            else:
                median, half_range = measured
                word = "**worse**" if median > allowed else ""
                lines.append([name, f"{before:.2f}", f"{median:.2f} ± {half_range:.2f}", f"{allowed:.2f}", word])
            if measured is None or measured[0] > allowed:
                worse.append(name)
    return lines, worse


def baseline_of(result: Mapping[str, Any]) -> dict[str, Any]:
    """What is kept of a result: its ratios, and of which machine and versions they are."""
    ratios = {case: {kind: round(found[0], 3) for kind, found in kinds.items()} for case, kinds in result["summary"].items()}
    return {"facts": result["facts"], "ratios": ratios}


if __name__ == "__main__":
    sys.exit(main())
