"""The folder of a serving plan: a mix of layouts gets a folder each, and the curve belongs to the part."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from roofplan.planner.serve_answer import as_json
from roofplan.planner.serve_export import CURVE, curve, export
from roofplan.planner.serve_search import plan_serving
from serve_asks import ask


def test_a_mix_writes_one_folder_a_layout(tmp_path):
    question = ask()
    decision = plan_serving(question)
    parts = tuple(replace(c.parts[0], copies=1) for c in decision.choices[:2])
    good = sum(p.played.goodput_per_s for p in parts)
    mix = replace(decision, choices=(replace(decision.choices[0], parts=parts, goodput_per_s=good, load_per_s=good),))
    data = as_json(question, mix, list(mix.choices), [], 0.1)
    written = {p.relative_to(tmp_path / "run").as_posix() for p in export(question, mix, data, tmp_path / "run")}
    assert {"answer.json", "part-1/README.md", "part-2/README.md", "part-1/bench/predicted.json"} <= written
    assert json.loads((tmp_path / "run" / "answer.json").read_text()) == data
    assert len(data["plans"][0]["parts"]) == 2
    files = [tmp_path / "run" / f"part-{i}" / "bench" / "predicted.json" for i in (1, 2)]
    most = [max(row["rate_per_s"] for row in json.loads(file.read_text())["curve"]) for file in files]
    assert sum(most) == pytest.approx(good)


def test_the_curve_rises_to_the_goodput_of_all_copies():
    question = ask()
    decision = plan_serving(question)
    part = decision.choices[0].parts[0]
    rows = curve(question, decision, part)
    assert [row["rate_per_s"] for row in rows] == pytest.approx([f * part.copies * part.played.goodput_per_s for f in CURVE])
    late = [row["tpot_s_mean"] for row in rows]
    assert late == sorted(late)
