"""docs/techniques.md is written from the rows: ROOFPLAN_GOLDEN=write writes it anew, otherwise it must be up to date."""

from __future__ import annotations

import dataclasses
import inspect
import os
import re
import tomllib
from pathlib import Path

from roofplan.calibrate.cases import predict
from roofplan.costmodels.apply import check, families, family, parameters, stage, subject
from roofplan.costmodels.step import Stage
from roofplan.scenarios.load import build
from roofplan.scenarios.reference import Case, cases, merged
from roofplan.scenarios.technique import LEVELS, Technique, techniques

PAGE = Path(__file__).resolve().parent.parent / "docs" / "techniques.md"


ELSEWHERE = """## Not rows

Some published systems are not a rewrite of one pass or plan. Planners and assigners of sequences (Galvatron, FlexSP, Zeppelin, Pangu's
simulated search) are what `planner` does. Schedulers and clusters (Orca, semi-PD, attention-FFN disaggregation in time, prefill-decode
pools) and reinforcement learning on spot machines (RLBoost, UloRL) are for `sim`; the price of attention and FFN on different cards is
`costmodels/attention_ffn.py`. Papers without a cost that could be predicted (ActQKV, LongHeads, LaCache, S2D, FSPAD, BlockLLM, Duo-LLM,
FiRST, PALBERT, benchmarks) have no row.
"""


def page() -> str:
    """The whole page: how to read it, then one section a family in order of application."""
    rows = techniques()
    levels = "\n".join(f"- **{level}**: {meaning}" for level, meaning in LEVELS.items())
    head = f"""# Techniques

{len(rows)} published techniques as rows of {len(families())} families. This page is written from `scenarios/techniques` by a test
(`make golden` rewrites it). A family rewrites a training plan, or a pass: the FLOPs, bytes and messages of one prefill, decode or
training step. Several techniques apply in the order of the sections below, whatever the order in which they are named.

What a technique asks of you, by level:

{levels}

*Soft* rows have parameters that were not read in a primary source. A technique without a mainline switch is research-only: the page
names its repository, where known, and the nearest thing that can be deployed. `roofplan validate <case>` shows the cases.
"""
    order = sorted(families(), key=lambda name: (stage(name), name))
    return "\n".join([head, *(section(name, rows) for name in order), ELSEWHERE]).rstrip() + "\n"


def section(name: str, rows: dict[str, Technique]) -> str:
    """One family: what it does, its parameters, its rows."""
    module = inspect.getmodule(family(name))
    idea = (module.__doc__ or "").strip() if module else ""
    text = " ".join((family(name).__doc__ or "").split()).replace("``", "`")
    where = "rewrites the plan" if subject(name) == "plan" else f"rewrites the pass, stage {Stage(stage(name)).name.lower()}"
    schema = ", ".join(f"`{p.name}`" if p.default is p.empty else f"`{p.name}={p.default}`" for p in parameters(name).values())
    table = ["| technique | level | parameters | published retention | how to switch it on |", "|---|---|---|---|---|"]
    table += [line(row) for row in rows.values() if row.family == name]
    return "\n".join([f"## {name}", "", f"{idea} ({where})", "", text, "", f"Parameters: {schema}", "", *table, ""])


def line(row: Technique) -> str:
    """One row of a table."""
    settings = ", ".join(f"{k}={v}" for k, v in row.params.items())
    switch = "; ".join(f"{target}: `{text}`" for target, text in row.deploy.items())
    if not switch:
        switch = "research-only" + (f" ({row.repository})" if row.repository else "") + f"; nearest: {row.nearest}"
    soft = " (soft)" if row.is_soft else ""
    scope = f" (note: {row.scope})" if row.scope else ""
    tested = ", ".join(sorted({c.name for c in cases().values() if row.name in c.words.get("techniques", "").split()})[:3])
    label = f"{row.title} `{row.name}`" + (f" [{tested}]" if tested else "")
    cells = (label, "+".join(row.levels) + soft, settings or "-", row.retention + scope, switch)
    return "| " + " | ".join(cell.replace("|", "/") for cell in cells) + " |"


def test_docs_contributing_examples_are_rows() -> None:
    """The two files that CONTRIBUTING shows are a technique its family takes and a case its predictor answers."""
    text = (PAGE.parent.parent / "CONTRIBUTING.md").read_text(encoding="utf-8")
    opening = text[text.index("## Add a technique in one file") : text.index("## Add a GPU")]
    row, case = (tomllib.loads(block) for block in re.findall(r"```toml\n(.*?)```", opening, re.DOTALL))
    found = build(Technique, {"name": "my-cache", **row}, "CONTRIBUTING.md")
    check(found)
    merged_case = build(Case, merged({k: v for k, v in case.items() if k != "row"}, case["row"][0]), "CONTRIBUTING.md")
    assert merged_case.passes(predict(dataclasses.replace(merged_case, words={**merged_case.words, "techniques": "h2o"})))


def test_docs_techniques_page_is_as_recorded() -> None:
    if os.environ.get("ROOFPLAN_GOLDEN") == "write":
        PAGE.write_text(page(), encoding="utf-8")
    assert PAGE.read_text(encoding="utf-8") == page(), "run `make golden` to rewrite docs/techniques.md"
