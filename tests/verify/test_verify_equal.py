"""Emitted plans compute what plain PyTorch computes: under SGD every parameter's update agrees to 1e-5, from the same weights and tokens."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from .harness import deepspeed, run_ranks, run_script, torch, transformers
from .plans import job_of, write_deepspeed

STEPS, SEQ, VOCAB, CLIP = 2, 256, 128, 0.25
LR = 8.0  # large, so that an update is not lost in the rounding of weights near 1
BOUND = 1e-5

EXACT = {"precision": "fp32", "optimizer": "sgd"}
ULYSSES = {**EXACT, "cp_kind": "ulysses"}
EVERYTHING = {"recompute": "full", "offload_activations": 1, "tiled_mlp": 1, "fused_loss": 1, "offload_optimizer": 1}

RUNS: dict[str, dict[str, Any]] = {
    "ddp": {**EXACT, "dp": 2, "sharding": "ddp"},
    "zero1": {**EXACT, "dp": 2, "zero_stage": 1},
    "zero2-accumulate": {**EXACT, "dp": 2, "zero_stage": 2, "grad_accum": 2, "micro_batch": 2},
    "zero3": {**EXACT, "dp": 2, "zero_stage": 3, "recompute": "full"},
    "zero3-offload": {**EXACT, "dp": 2, "zero_stage": 3, "offload_optimizer": 1, "offload_params": 1},
    "sp2": {**ULYSSES, "cp": 2, "zero_stage": 3},
    "sp2-ddp": {**ULYSSES, "cp": 2, "sharding": "ddp"},
    "sp2-everything": {**ULYSSES, "cp": 2, "zero_stage": 3, **EVERYTHING},
    "sp2-everything-accumulate": {**ULYSSES, "cp": 2, "zero_stage": 2, "grad_accum": 2, "micro_batch": 2, **EVERYTHING},
    "sp2-remat": {**ULYSSES, "cp": 2, "zero_stage": 3, "recompute": "remat", "offload_activations": 1, "fused_loss": 1},
    "sp4": {**ULYSSES, "cp": 4, "zero_stage": 3},
    "sp4-everything": {**ULYSSES, "cp": 4, "zero_stage": 3, **EVERYTHING},
    "sp2-dp2": {**ULYSSES, "cp": 2, "dp": 2, "zero_stage": 1, **EVERYTHING},
}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random-weight Llama (8 query heads on 2 KV heads, so SP = 4 replicates KV; several MLP tiles a rank) and random tokens."""
    folder = tmp_path_factory.mktemp("tiny")
    config = transformers.LlamaConfig(
        hidden_size=32, intermediate_size=80, num_hidden_layers=2, num_attention_heads=8, num_key_value_heads=2, vocab_size=VOCAB,
        max_position_embeddings=SEQ, use_cache=False, initializer_range=0.1,
    )  # fmt: skip
    torch.manual_seed(1)
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    rng = np.random.default_rng(0)
    np.save(folder / "tokens.npy", rng.integers(0, VOCAB, size=40 * SEQ + 1))
    return folder


def parameters_of(folder: Path) -> dict[str, Any]:
    model = transformers.LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def reference(tiny: Path, batch: int, clip: float) -> dict[str, Any]:
    """Parameters after STEPS of plain single-process SGD on the same sequences, all logits at once, eager attention, no checkpointing."""
    model = transformers.LlamaForCausalLM.from_pretrained(tiny, dtype=torch.float32, attn_implementation="eager").train()
    tokens = torch.from_numpy(np.load(tiny / "tokens.npy"))
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    for step in range(STEPS):
        rows = [tokens[i * SEQ : i * SEQ + SEQ + 1] for i in range(step * batch, (step + 1) * batch)]
        sequences = torch.stack(rows)
        logits = model(input_ids=sequences[:, :-1], use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), sequences[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), clip or float("inf"))
        assert norm > 1.5 * clip, f"the gradient norm is {norm}: clipping would not act"
        optimizer.step()
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def train_and_dump(folder: Path, tiny: Path, out: Path, repeat_samples: bool = False) -> None:
    """Run the emitted train.py, and save the full parameters just before it takes its process group down."""
    engines = []
    initialize = deepspeed.initialize

    def remember(*args: Any, **kwargs: Any) -> Any:
        made = initialize(*args, **kwargs)
        engines.append(made[0])
        return made

    deepspeed.initialize = remember
    sys.path.insert(0, str(folder))
    import parts  # type: ignore[import-not-found]

    def dump(meter: Any, path: str) -> None:
        full = {}
        for name, p in engines[0].module.model.named_parameters():
            with deepspeed.zero.GatheredParameters([p], enabled=hasattr(p, "ds_id")):
                full[name] = p.detach().cpu().clone()
        if meter.rank == 0:
            torch.save(full, out)

    parts.Meter.finish = dump
    if repeat_samples:
        right = parts.Tokens.batch
        parts.Tokens.batch = lambda *args, **kwargs: right(*args, **(kwargs | {"dp_rank": 0}))
    run_script(folder, "train.py", "--weights", str(tiny), "--data", str(tiny / "tokens.npy"), "--steps", str(STEPS), "--lr", str(LR))


def errors(before: dict[str, Any], after: dict[str, Any], wanted: dict[str, Any]) -> dict[str, float]:
    """Relative error of every parameter's update, ``|Δ - Δ_ref| / |Δ_ref|``."""
    assert after.keys() == wanted.keys()
    found = {}
    for key, start in before.items():
        step = (wanted[key] - start).double()
        assert step.norm() > 1e-3, f"{key} did not move: the comparison would be empty"
        found[key] = float(((after[key] - start).double() - step).norm() / step.norm())
    return found


def compare(layout: dict[str, Any], tiny: Path, folder: Path, *, clip: float, reference_clip: float, **wrong: bool) -> dict[str, float]:
    """Errors of the update of every parameter after running the emitted plan with this clipping."""
    job = job_of(seq_tokens=SEQ, **layout)
    write_deepspeed(folder, job, gradient_clipping=clip)
    run_ranks(job.world, folder, lambda rank: train_and_dump(folder, tiny, folder / "after.pt", **wrong))
    return errors(parameters_of(tiny), torch.load(folder / "after.pt"), reference(tiny, job.global_batch, reference_clip))


CASES = [*((name, 0.0) for name in RUNS), *((name, CLIP) for name in ("zero1", "zero3", "sp2", "sp2-ddp", "sp2-dp2"))]


@pytest.mark.parametrize(("name", "clip"), CASES, ids=[name + ("-clipped" if clip else "") for name, clip in CASES])
def test_updates_equal_plain_pytorch(name: str, clip: float, tiny: Path, tmp_path: Path) -> None:
    """Unclipped shows the gradient's scale, which clipping would hide; clipped shows that the norm is the whole gradient's."""
    found = compare(RUNS[name], tiny, tmp_path, clip=clip, reference_clip=clip)
    worst = max(found, key=lambda key: found[key])
    assert found[worst] <= BOUND, f"{name}: the update of {worst} differs by {found[worst]:.2e}"


def test_comparison_sees_repeated_samples(tiny: Path, tmp_path: Path) -> None:
    found = compare(RUNS["zero1"], tiny, tmp_path, clip=0.0, reference_clip=0.0, repeat_samples=True)
    assert min(found.values()) > 0.01


def test_comparison_sees_clipping(tiny: Path, tmp_path: Path) -> None:
    found = compare(RUNS["zero1"], tiny, tmp_path, clip=CLIP / 2, reference_clip=CLIP)
    assert min(found.values()) > 0.01
