"""--out: the folder runs the winner, every plan shown can be emitted, and nothing is half-written or overwritten."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from roofplan.planner.answer import as_json
from roofplan.planner.cli import plan
from roofplan.planner.command import run
from roofplan.planner.decide import decide
from roofplan.planner.emit.registry import emit_plan
from roofplan.planner.engines import ENGINES
from roofplan.planner.export import export
from roofplan.scenarios.scenario import Scenario

QUESTIONS = [
    Scenario(model="llama3-8b", n_gpus=8, seq_tokens=2**20, top=10),
    Scenario(model="llama3-8b", n_gpus=8, seq_tokens=8192, top=10),
    Scenario(model="llama3-70b", n_gpus=64, seq_tokens=8192, top=10),
    Scenario(model="mixtral-8x7b", n_gpus=32, seq_tokens=4096, top=10),
    Scenario(model="deepseek-v3", n_gpus=256, seq_tokens=4096, top=5),
    Scenario(model="qwen2.5-32b", n_gpus=16, seq_tokens=65536, top=10, allow=("quant",)),
    Scenario(model="llama3-8b", n_gpus=8, seq_tokens=0, objective="max-seq", top=10),
]


@pytest.mark.parametrize("question", QUESTIONS, ids=lambda q: f"{q.model}-{q.n_gpus}-{q.seq_tokens}")
def test_every_plan_shown_is_written_by_its_own_framework(question: Scenario) -> None:
    decision = decide(question)
    assert decision.choices
    for choice in [*decision.choices, *decision.by_framework.values()]:
        problem, engine = choice.problem, ENGINES[choice.plan.framework]
        found = emit_plan(model=problem.model, plan=choice.plan, work=choice.work, cluster=problem.cluster, accelerator=problem.accelerator)
        assert engine.target in found.written, f"{choice.plan}: {found.omitted.get(engine.target)}"


def test_each_framework_alone_can_be_written() -> None:
    for name, engine in ENGINES.items():
        decision = decide(Scenario(model="llama3-8b", n_gpus=8, seq_tokens=8192, framework=name, top=10))
        for choice in decision.choices:
            problem = choice.problem
            found = emit_plan(
                model=problem.model, plan=choice.plan, work=choice.work, cluster=problem.cluster, accelerator=problem.accelerator
            )
            assert engine.target in found.written, f"{choice.plan}: {found.omitted.get(engine.target)}"


def test_the_folder_holds_the_winner_the_answer_and_the_alternatives(tmp_path: Path) -> None:
    decision = decide(Scenario(model="llama3-8b", n_gpus=8, seq_tokens=2**20))
    out = tmp_path / "run"
    written = export(decision, out)
    assert all(path.exists() for path in written)
    names = {path.relative_to(out).as_posix() for path in written}
    assert {"README.md", "plan.json", "answer.json", "ds_config.json", "train.py", "launch_deepspeed.sh"} <= names
    assert "alternatives/fsdp2/train_fsdp2.py" in names
    assert json.loads((out / "answer.json").read_text()) == as_json(decision) | {
        "solver": json.loads((out / "answer.json").read_text())["solver"]
    }
    job = json.loads((out / "plan.json").read_text())
    assert job["workload"] == {"seq_tokens": 2**20, "global_batch": decision.choices[0].work.global_batch}
    assert job["predicted"]["step_time_s"] == pytest.approx(decision.choices[0].step_time_s)
    config = json.loads((out / "ds_config.json").read_text())
    assert config["train_batch_size"] == decision.choices[0].work.global_batch
    assert config["gradient_clipping"] == 1.0


def test_foreign_folders_are_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(SystemExit) as left:
        run(plan, "plan", ["--model", "llama3.2-1b", "--gpus", "1", "--out", str(tmp_path)])
    out, err = capsys.readouterr()
    assert left.value.code == 2
    assert out == ""
    assert "not an earlier plan's" in err
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


def test_a_second_plan_replaces_the_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    for gpus in ("1", "2"):
        with pytest.raises(SystemExit) as left:
            run(plan, "plan", ["--model", "llama3.2-1b", "--gpus", gpus, "--out", str(out)])
        assert not left.value.code
    assert "Wrote" in capsys.readouterr().out
    assert json.loads((out / "plan.json").read_text())["cluster"]["n_gpus"] == 2
