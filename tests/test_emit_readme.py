"""The plan's README: every number given is shown, every target is accounted for, techniques without a switch are called research-only."""

from __future__ import annotations

from dataclasses import replace

from emit_jobs import ALST, FACTS, job_of
from roofplan.planner.emit import readme
from roofplan.planner.emit.registry import targets
from roofplan.planner.emit.target import CannotExpress


def text_of(job: readme.Job, written: readme.Written | None = None, omitted: dict[str, CannotExpress] | None = None) -> str:
    return readme.render(job, targets(), {"script": ("train.py",)} if written is None else written, omitted or {})


def test_prediction_and_memory() -> None:
    text = text_of(job_of(facts=FACTS, **ALST))
    assert text.startswith("# llama3-8b, 1,048,576 (1M) tokens, on 8 × h100-sxm\n")
    for cell in ("512.25 s ± 8%", "256 tokens/s/GPU", "31.0%", "$3.25 per million tokens", "| most of the step | attention |"):
        assert cell in text
    assert "| weights | 2.00 |\n| activations | 32.00 |\n| **total** | 40.00 |\n| limit | 64.00 |" in text
    assert "- nothing else that fits is faster" in text


def test_nothing_known_is_said() -> None:
    assert "This plan comes without a prediction." in text_of(job_of(dp=8))


def test_layout_in_words() -> None:
    assert readme.layout(job_of(**ALST)) == (
        "cp 8, ulysses sequence parallelism, ZeRO-3, bf16 adamw, global batch 1 (micro-batch 1, accumulated 1), recompute full, "
        "optimizer on the host, checkpointed activations on the host, tiled MLP, tiled loss"
    )
    assert readme.layout(job_of(dp=1, sharding="ddp", lora_rank=8)).startswith("one rank per copy, DDP")
    assert "LoRA rank 8" in readme.layout(job_of(dp=1, lora_rank=8))


def test_what_was_left_out_names_the_nearest() -> None:
    text = text_of(job_of(dp=8), omitted={"megatron": CannotExpress("no flag for this", "that one")})
    assert "| Megatron-LM arguments | no flag for this | that one |" in text


def test_techniques_without_a_switch_are_research_only() -> None:
    job = job_of(**ALST)
    job = replace(job, plan=replace(job.plan, techniques=("token-ring", "ulysses")))
    text = text_of(job)
    assert "research-only, not in the files above" in text
    assert "nearest that runs: " in text
    assert "`" in text.split("## Techniques")[1]


def test_several_nodes_and_lora_are_explained() -> None:
    assert "start the torchrun launchers on each" in text_of(job_of(dp=16))
    assert "needs `peft`" in text_of(job_of(dp=8, lora_rank=8))
    assert "roofplan validate --training measured.csv" in text_of(job_of(dp=8))
    assert "measured.csv" not in text_of(job_of(dp=8), written={})


def test_every_fact_is_documented() -> None:
    assert set(FACTS) <= set(readme.FACTS)
