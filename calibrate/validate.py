"""Runs catalogue cases: each published number beside the prediction of the function its case names."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ..scenarios.reference import Case
from .cases import predict


def run_cases(cases: Iterable[Case]) -> dict[str, Any]:
    """``{"rows": […], "summary": {…}}``: status ``pass`` or ``miss`` for numbers read in a primary source, ``claimed`` for others."""
    rows = [case_row(case) for case in cases]
    counts = {status: sum(row["status"] == status for row in rows) for status in ("pass", "miss", "claimed")}
    systems: dict[str, dict[str, int]] = {}
    for row in rows:
        systems.setdefault(row["system"], {"pass": 0, "miss": 0, "claimed": 0})[row["status"]] += 1
    return {"rows": rows, "summary": {"n": len(rows), **counts, "systems": systems}}


def case_row(case: Case) -> dict[str, Any]:
    """One case predicted and judged; ``within`` tells whether a merely claimed number is met."""
    predicted = predict(case)
    within = case.passes(predicted)
    bar = case.tolerance_frac or (case.tolerance_abs / abs(case.published) if case.published else case.tolerance_abs)
    return {
        "case": case.name,
        "system": case.system,
        "claim": case.claim,
        "class": case.evidence,
        "metric": case.metric,
        "unit": case.unit,
        "published": case.published,
        "predicted": predicted,
        "error_frac": predicted / case.published - 1 if case.published else predicted,
        "tolerance_frac": bar,
        "status": ("pass" if within else "miss") if case.is_hard else "claimed",
        "within": within,
        "note": case.note,
        "source": case.source,
    }
