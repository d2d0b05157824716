"""What the frameworks can run: every engine has a price profile and an emitter, and says why it cannot train a model."""

from __future__ import annotations

import pytest
from roofplan.planner.emit.registry import targets
from roofplan.planner.engines import ENGINES, FSDP2, MEGATRON, TORCHTITAN, Engine, why_not
from roofplan.planner.scenario_io import resolve
from roofplan.scenarios import registry
from roofplan.scenarios.errors import BadInput
from roofplan.scenarios.load import names
from roofplan.scenarios.scenario import Scenario

H100 = registry.cluster("h100-sxm", 8), registry.accelerator("h100-sxm")


@pytest.mark.parametrize("engine", ENGINES.values(), ids=lambda e: e.name)
def test_every_engine_has_a_profile_and_an_emitter(engine: Engine) -> None:
    assert registry.framework(engine.priced_as).error_frac > 0
    assert engine.target in targets()
    assert engine.source


def test_every_model_can_be_trained_by_some_framework() -> None:
    """All but ALiBi and no-position models with RMSNorm have at least DeepSpeed's configuration."""
    for name in names("models"):
        model = registry.model(name)
        assert any(not why_not(engine, model, *H100) for engine in ENGINES.values()), name


def test_models_a_framework_cannot_train_are_explained() -> None:
    assert "gemma2-9b" in why_not(TORCHTITAN, registry.model("gemma2-9b"), *H100)
    assert "sliding window" in why_not(FSDP2, registry.model("gemma2-9b"), *H100)
    assert why_not(MEGATRON, registry.model("gemma2-9b"), *H100) == ""
    assert why_not(TORCHTITAN, registry.model("llama3-8b"), *H100) == ""


def test_left_out_frameworks_are_noted() -> None:
    problem = resolve(Scenario(model="gemma2-9b", n_gpus=8))
    assert {e.name for e in problem.engines} == {"deepspeed", "megatron"}
    assert [note.split(" ")[0] for note in problem.notes] == ["torchtitan", "fsdp2"]


def test_research_only_optimizers_are_priced_and_said_to_be() -> None:
    problem = resolve(Scenario(model="llama3-8b", n_gpus=8, optimizer="mezo"))
    assert any("mezo is research-only" in note for note in problem.notes)


def test_an_optimizer_only_one_framework_has() -> None:
    assert [e.name for e in resolve(Scenario(model="llama3-8b", n_gpus=8, optimizer="adamw-8bit")).engines] == ["megatron"]
    with pytest.raises(BadInput, match="framework=deepspeed cannot train this: no switch for optimizer=adamw-8bit; legal: megatron"):
        resolve(Scenario(model="llama3-8b", n_gpus=8, optimizer="adamw-8bit", framework="deepspeed"))


def test_sequences_beyond_the_models_own_are_noted() -> None:
    notes = resolve(Scenario(model="llama3-8b", n_gpus=8, seq_tokens=2**20)).notes
    assert any("1,048,576 (1M) tokens are beyond the 8,192 (8K) that llama3-8b was trained on" in note for note in notes)
    assert not any("beyond" in note for note in resolve(Scenario(model="llama3-8b", n_gpus=8)).notes)


def test_lossy_and_retrain_say_that_they_have_no_effect() -> None:
    notes = resolve(Scenario(model="llama3-8b", n_gpus=8, allow=("lossy:1", "retrain"))).notes
    assert any("no lossy or retrained technique" in note for note in notes)
