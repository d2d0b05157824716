"""The parts of a mixture-of-experts layer by themselves: one grouped GEMM over sorted rows, and the permutation there and back."""

from __future__ import annotations

import torch

from .draw import Draw
from .moe import BALANCED, CHECKS, MODELS, TOKENS, configs, draw_logits, expert_order, gather_rows, grouped_gemm, return_rows
from .spec import ITEM_BYTES, TORCH_DTYPE, Config, Inputs, KernelSpec, Shape, cdiv, dims, joined


def _ids(shape: Shape, draw: Draw) -> torch.Tensor:
    return draw_logits(shape, draw, torch.float32).topk(int(shape["topk"])).indices.to(torch.int32)


def _gemm_inputs(shape: Shape, dtype: str, draw: Draw) -> Inputs:
    tokens, hidden, inter, topk, experts = dims(shape, "num_tokens", "hidden_size", "inter_size", "topk", "num_experts")
    ids, kind = _ids(shape, draw), TORCH_DTYPE[dtype]
    plans = {block: expert_order(ids, experts, block) for block in {c["BLOCK_M"] for c in configs(shape, dtype)}}
    return {
        "x": draw.normal(tokens * topk, hidden, dtype=kind),
        "w": draw.normal(experts, inter, hidden, dtype=kind, scale=hidden**-0.5),
        "out": draw.empty(tokens * topk, inter, dtype=kind),
        "plans": plans,
    }


def _gemm_run(inputs: Inputs, config: Config) -> None:
    grouped_gemm(inputs["x"], inputs["w"], inputs["out"], inputs["plans"][config["BLOCK_M"]], False, config)


def _gemm_reference(inputs: Inputs) -> dict[str, torch.Tensor]:
    starts = next(iter(inputs["plans"].values()))["starts"].tolist()
    parts = [inputs["x"][a:b].double() @ w.double().T for a, b, w in zip(starts, starts[1:], inputs["w"], strict=False)]
    return {"out": torch.cat(parts)}


def _gemm_flops(shape: Shape, dtype: str) -> float:
    """``2 · tokens · topk · hidden · inter``."""
    tokens, hidden, inter, topk = dims(shape, "num_tokens", "hidden_size", "inter_size", "topk")
    return 2.0 * tokens * topk * hidden * inter


def _gemm_bytes(shape: Shape, dtype: str) -> float:
    """Rows in and out once, and the weights of the experts certainly hit."""
    tokens, hidden, inter, topk, experts = dims(shape, "num_tokens", "hidden_size", "inter_size", "topk", "num_experts")
    hit = min(experts, tokens * topk) if shape["routing"] == "balanced" else topk
    return (tokens * topk * (float(hidden) + inter) + float(hit) * hidden * inter) * ITEM_BYTES[dtype]


def _permute_inputs(shape: Shape, dtype: str, draw: Draw) -> Inputs:
    tokens, hidden, topk = dims(shape, "num_tokens", "hidden_size", "topk")
    plan, kind = expert_order(_ids(shape, draw), int(shape["num_experts"]), 16), TORCH_DTYPE[dtype]
    return {
        "x": draw.normal(tokens, hidden, dtype=kind),
        "weights": draw.uniform(tokens, topk, dtype=torch.float32),
        "order": plan["order"],
        "place": plan["place"],
        "permuted": draw.empty(tokens * topk, hidden, dtype=kind),
        "out": draw.empty(tokens, hidden, dtype=kind),
    }


def _permute_run(inputs: Inputs, config: Config) -> None:
    (tokens, hidden), topk, block = inputs["x"].shape, inputs["weights"].shape[1], config["BLOCK"]
    columns = cdiv(hidden, block)
    gather_rows[(tokens * topk, columns)](inputs["x"], inputs["order"], inputs["permuted"], topk, hidden, **config)
    return_rows[(tokens, columns)](inputs["permuted"], inputs["place"], inputs["weights"], inputs["out"], hidden, TOPK=topk, **config)


def _permute_reference(inputs: Inputs) -> dict[str, torch.Tensor]:
    x, topk = inputs["x"].double(), inputs["weights"].shape[1]
    return {"permuted": x[inputs["order"] // topk], "out": x * inputs["weights"].double().sum(1, keepdim=True)}


def _no_flops(shape: Shape, dtype: str) -> float:
    """The weighted sum is counted as memory traffic only."""
    return 0.0


def _permute_bytes(shape: Shape, dtype: str) -> float:
    """There: each token in, topk copies out. Back: topk copies in, each token out."""
    tokens, hidden, topk = dims(shape, "num_tokens", "hidden_size", "topk")
    return 2.0 * tokens * (1 + topk) * hidden * ITEM_BYTES[dtype]


def _permute_configs(shape: Shape, dtype: str) -> tuple[Config, ...]:
    return ({"BLOCK": 1024, "num_warps": 4}, {"BLOCK": 512, "num_warps": 4})


_SHAPES = joined(TOKENS, MODELS)

SPECS = (
    KernelSpec(
        name="grouped_gemm",
        family="grouped_gemm",
        dtypes=("bfloat16",),
        outputs=("out",),
        make_inputs=_gemm_inputs,
        run=_gemm_run,
        reference=_gemm_reference,
        flops=_gemm_flops,
        moved_bytes=_gemm_bytes,
        shapes=_SHAPES,
        checks=CHECKS,
        configs=configs,
    ),
    KernelSpec(
        name="moe_permute",
        family="moe_permute",
        dtypes=("bfloat16",),
        outputs=("permuted", "out"),
        make_inputs=_permute_inputs,
        run=_permute_run,
        reference=_permute_reference,
        flops=_no_flops,
        moved_bytes=_permute_bytes,
        shapes=BALANCED,
        checks=CHECKS[:2],
        configs=_permute_configs,
    ),
)
