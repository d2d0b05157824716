"""megatron-core's own configuration reads the emitted Megatron-LM arguments, and refuses wrong ones."""

from __future__ import annotations

import dataclasses
import re
import shlex
from pathlib import Path
from typing import Any

from roofplan.planner.emit import megatron

from .harness import in_fork, needs_extra, refuses, torch
from .plans import job_of


@needs_extra
def test_megatron_core_config(tmp_path: Path) -> None:
    """Flags that are fields of megatron-core's TransformerConfig build one; the others are known arguments of pretrain_gpt.py."""

    def check() -> None:
        from megatron.core.transformer.transformer_config import MLATransformerConfig, TransformerConfig  # type: ignore[import-not-found]

        def build(arguments: list[tuple[str, ...]], **changes: Any) -> Any:
            cls = MLATransformerConfig if ("--multi-latent-attention",) in arguments else TransformerConfig
            fields, rest = transformer_fields(cls, arguments)
            assert rest <= PRETRAIN_ONLY, f"unknown flags: {sorted(rest - PRETRAIN_ONLY)}"
            return cls(**fields, **changes)

        for name, layout in MEGATRON_PLANS:
            job = job_of(name, 4096, **layout)
            config = build(megatron.arguments(job))
            assert config.num_layers == job.model.n_layers
            assert config.tensor_model_parallel_size == job.plan.tp
            assert config.context_parallel_size == job.plan.cp
            assert config.num_moe_experts == (job.model.n_experts or None)
        good = megatron.arguments(job_of("llama3-8b", 4096, tp=4, pp=2, framework="megatron"))
        swapped = [("--tensor-model-parallel-size", "5") if a[0].startswith("--tensor") else a for a in good]
        refuses(lambda: build(swapped), ValueError, AssertionError)
        without_tp = [("--tensor-model-parallel-size", "1") if a[0].startswith("--tensor") else a for a in good]
        refuses(lambda: build([*without_tp, ("--sequence-parallel",)]), ValueError, AssertionError)
        refuses(lambda: build([*good, ("--recompute-granularity", "everything")]), ValueError, AssertionError)
        refuses(lambda: build([*good, ("--no-such-flag",)]), AssertionError)

    in_fork(tmp_path, check)


MEGATRON_PLANS: list[tuple[str, dict[str, Any]]] = [
    ("llama3-8b", {"tp": 2, "cp": 4, "cp_kind": "zigzag", "dp": 2, "recompute": "full"}),
    ("llama3-8b", {"tp": 4, "pp": 2, "vpp": 4, "dp": 2, "grad_accum": 4, "schedule": "interleaved", "recompute": "selective"}),
    ("llama3-8b", {"cp": 8, "cp_inner": 4, "cp_kind": "ulysses-ring", "optimizer": "adamw-bf16"}),
    ("llama3-8b", {"cp": 8, "cp_kind": "ulysses", "offload_optimizer": 0.5}),
    ("llama3-70b", {"tp": 4, "pp": 4, "dp": 2, "grad_accum": 16, "precision": "fp8", "recompute": "full", "recompute_layers": 3}),
    ("mixtral-8x7b", {"tp": 2, "ep": 8, "dp": 8, "pp": 4, "grad_accum": 8}),
    ("deepseek-v3", {"pp": 16, "ep": 64, "dp": 128, "grad_accum": 32, "layers_first": 4, "layers_last": 1}),
    ("qwen3-8b", {"tp": 4, "dp": 2}),
]
PRETRAIN_FLAGS = """
    --seq-length --max-position-embeddings --position-embedding-type --rotary-base --swiglu --disable-bias-linear
    --untie-embeddings-and-output-weights --group-query-attention --window-attn-skip-freq --use-distributed-optimizer
    --overlap-grad-reduce --overlap-param-gather --num-virtual-stages-per-pipeline-rank --decoder-first-pipeline-num-layers
    --decoder-last-pipeline-num-layers --optimizer-cpu-offload --optimizer-offload-fraction --bf16 --fp16 --fp8-format
    --use-precision-aware-optimizer --exp-avg-dtype --exp-avg-sq-dtype --micro-batch-size --global-batch-size --train-iters
    --optimizer --lr --weight-decay --adam-beta2 --clip-grad --tokenizer-type --vocab-size --mock-data --eval-iters --log-interval
    --log-throughput --distributed-timeout-minutes --num-experts
"""
PRETRAIN_ONLY = set(PRETRAIN_FLAGS.split())
"""Arguments of Megatron-LM core_v0.16.1 that are not fields of TransformerConfig under the same name."""


def transformer_fields(cls: Any, arguments: list[tuple[str, ...]]) -> tuple[dict[str, Any], set[str]]:
    """TransformerConfig's keyword arguments among Megatron-LM arguments, and the names of the other flags."""
    names = {f.name for f in dataclasses.fields(cls)}
    found: dict[str, Any] = {"bf16": True, "params_dtype": torch.bfloat16, "pipeline_dtype": torch.bfloat16, "apply_rope_fusion": False}
    rest = set()
    for flag, *values in arguments:
        name = flag.removeprefix("--").replace("-", "_")
        if name in names:
            found[name] = value_of(name, values)
        else:
            rest.add(flag)
        if flag == "--num-experts":
            found["num_moe_experts"] = int(values[0])
        if flag == "--disable-bias-linear":
            found["add_bias_linear"] = False
        if flag == "--num-virtual-stages-per-pipeline-rank":
            found["virtual_pipeline_model_parallel_size"] = int(values[0])
    return found, rest


def value_of(name: str, values: list[str]) -> Any:
    if not values:
        return True
    if name == "moe_layer_freq":
        return eval(values[0], {"__builtins__": {}})  # as Megatron-LM reads it
    if name == "attention_backend":
        from megatron.core.transformer.enums import AttnBackend  # type: ignore[import-not-found]

        return AttnBackend[values[0]]
    numbers = [int(v) if v.isdigit() else float(v) if re.fullmatch(r"[0-9.]+", v) else v for v in values]
    return numbers if len(numbers) > 1 else numbers[0]


def test_emitted_shell_arguments_are_the_tested_ones() -> None:
    """The array in the launcher is what the readers above were given."""
    job = job_of(tp=4, pp=2, framework="megatron")
    text = megatron.emit(job)["megatron/pretrain.sh"]
    array = text.split("ARGUMENTS=(\n")[1].split("\n)\n")[0]
    assert shlex.split(array) == [part for argument in megatron.arguments(job) for part in argument]
