"""docs/accuracy.md lists every published number we miss, as `roofplan validate` finds it today."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from roofplan.calibrate.validate import run_cases
from roofplan.scenarios.reference import select

PAGE = Path(__file__).resolve().parent.parent / "docs/accuracy.md"
START = "<!-- written by `make golden` from `roofplan validate` -->\n"


def table(result: dict[str, Any]) -> str:
    """Counts by system, then the misses with published, predicted and why."""
    lines = ["| system | inside its bar | missed | claimed only |", "|---|---|---|---|"]
    for system, count in sorted(result["summary"]["systems"].items()):
        lines.append(f"| {system} | {count['pass']} | {count['miss']} | {count['claimed']} |")
    lines += ["", "| missed case | published | predicted | error | bar | why |", "|---|---|---|---|---|---|"]
    for row in result["rows"]:
        if row["status"] == "miss":
            error, bar = f"{100 * row['error_frac']:+.0f} %", f"{100 * row['tolerance_frac']:.0f} %"
            lines.append(f"| `{row['case']}` | {row['published']:.4g} | {row['predicted']:.3g} | {error} | {bar} | {row['note']} |")
    return "\n".join(lines) + "\n"


def test_recorded_misses_are_those_of_today() -> None:
    text = PAGE.read_text(encoding="utf-8")
    head = text[: text.index(START) + len(START)]
    wanted = head + table(run_cases(select(())))
    if os.environ.get("ROOFPLAN_GOLDEN") == "write":
        PAGE.write_text(wanted, encoding="utf-8")
    assert wanted == text or os.environ.get("ROOFPLAN_GOLDEN") == "write", "docs/accuracy.md is stale: run `make golden` and read the diff"
