"""Emitted plans compute what plain PyTorch computes: under SGD every parameter's update agrees to 1e-5."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from .compare import BOUND, CLIP, FAMILIES, SEQ, make_tiny, update_errors
from .plans import job_of, write_deepspeed, write_fsdp

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
    "qwen3-tied-sp2": {**ULYSSES, "cp": 2, "zero_stage": 3, **EVERYTHING},
    "mixtral-sp2": {**ULYSSES, "cp": 2, "zero_stage": 3, **EVERYTHING},
}


FSDP_RUNS: dict[str, dict[str, Any]] = {
    "fsdp": {**EXACT, "dp": 2, "zero_stage": 3, "recompute": "full", "tiled_mlp": 1, "fused_loss": 1},
    "fsdp-offload": {**EXACT, "dp": 2, "zero_stage": 3, "offload_optimizer": 1, "offload_params": 1, "grad_accum": 2},
    "tp": {**EXACT, "tp": 2, "zero_stage": 3, "recompute": "remat"},
    "fsdp-tp": {**EXACT, "dp": 2, "tp": 2, "zero_stage": 3, "recompute": "full", "tiled_mlp": 1, "fused_loss": 1},
    "hsdp": {**EXACT, "dp": 4, "sharding": "hsdp", "hsdp_group": 2, "zero_stage": 3},
    "qwen3-tied-fsdp-tp": {**EXACT, "dp": 2, "tp": 2, "zero_stage": 3, "recompute": "full"},
    "mixtral-fsdp": {**EXACT, "dp": 2, "zero_stage": 3},
}
CASES = [*((name, 0.0) for name in RUNS), *((name, CLIP) for name in ("zero1", "zero3", "sp2", "sp2-ddp", "sp2-dp2"))]
FSDP_CASES = [*((name, 0.0) for name in FSDP_RUNS), ("fsdp-tp", CLIP)]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The tiny model a run's name asks for, made once."""
    made: dict[str, Path] = {}

    def of(name: str) -> Path:
        family = next((f for f in FAMILIES if name.startswith(f)), "llama")
        if family not in made:
            made[family] = make_tiny(family, tmp_path_factory.mktemp(family))
        return made[family]

    return of


def named(cases: list[tuple[str, float]]) -> list[str]:
    return [name + ("-clipped" if clip else "") for name, clip in cases]


def check(name: str, found: dict[str, float]) -> None:
    worst = max(found, key=lambda key: found[key])
    assert found[worst] <= BOUND, f"{name}: the update of {worst} differs by {found[worst]:.2e}"


@pytest.mark.parametrize(("name", "clip"), CASES, ids=named(CASES))
def test_deepspeed_updates_equal_plain_pytorch(name: str, clip: float, tiny: Callable[[str], Path], tmp_path: Path) -> None:
    """Unclipped shows the gradient's scale, which clipping would hide; clipped shows that the norm is the whole gradient's."""
    job = job_of(seq_tokens=SEQ, **RUNS[name])
    write_deepspeed(tmp_path, job, gradient_clipping=clip)
    check(name, update_errors("train.py", tiny(name), tmp_path, world=job.world, batch=job.global_batch, clip=clip))


@pytest.mark.parametrize(("name", "clip"), FSDP_CASES, ids=named(FSDP_CASES))
def test_fsdp_updates_equal_plain_pytorch(name: str, clip: float, tiny: Callable[[str], Path], tmp_path: Path) -> None:
    job = job_of(seq_tokens=SEQ, **FSDP_RUNS[name])
    write_fsdp(tmp_path, job)
    found = update_errors("train_fsdp2.py", tiny(name), tmp_path, "--clip", str(clip), world=job.world, batch=job.global_batch, clip=clip)
    check(name, found)


@pytest.mark.parametrize("wrong", ["samples", "clipping"])
def test_comparison_sees_what_is_wrong(wrong: str, tiny: Callable[[str], Path], tmp_path: Path) -> None:
    """Data ranks that repeat samples, or another clipping bound, miss the reference by far: the bound above is not empty."""
    job = job_of(seq_tokens=SEQ, **RUNS["zero1"])
    write_deepspeed(tmp_path, job, gradient_clipping=CLIP / 2 if wrong == "clipping" else CLIP)
    found = update_errors(
        "train.py", tiny("llama"), tmp_path, world=job.world, batch=job.global_batch, clip=CLIP, repeat_samples=wrong == "samples"
    )
    assert min(found.values()) > 0.01
