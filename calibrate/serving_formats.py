"""The number formats that a measured serving point ran in, from what its table calls them."""

from __future__ import annotations

import re
from typing import Any

from ..scenarios import registry


class Unusable(Exception):
    """Why a row cannot be predicted; counted, not scored."""


def formats(model: str, label: str, weights: str, experts: str) -> tuple[str, str]:
    """(format of the weights, of the experts or '' if the same) of the checkpoint that a table calls ``weights`` and ``experts``.

    gpt-oss ships 16-bit weights and MXFP4 experts. The 8-bit checkpoints of DeepSeek, Kimi, GLM-5 and MiniMax, and Qwen's own, are scaled
    by blocks of 128 x 128. 4-bit DeepSeek, Kimi, GLM-5 and Qwen3.5 keep attention in 16 bits. Source: the checkpoints' quantisation
    settings.
    """
    if model.startswith("gpt-oss"):
        return "bf16", "mxfp4"
    spec = registry.model(model)
    wide = spec.is_mla or bool(spec.linear_attention)
    if weights in ("fp8", "fp8_block") and (wide or model.startswith("minimax") or re.match(r"Qwen/.*-FP8$", label)):
        return "fp8_block", ""
    if wide and (experts or weights) in ("nvfp4", "int4"):
        return "bf16", experts or weights
    return weights, "" if experts == weights else experts


def dtype_named(*labels: Any, default: str = "bf16") -> str:
    """Weight format of the first label that is given; ``default`` where nothing is said."""
    named = next((str(v) for v in labels if isinstance(v, str) and v), default).lower()
    named = re.sub(r"(-wo)?( g\d+)?$", "", named)
    known = {
        "int8": "int8",
        "fp4": "nvfp4",
        "nvfp4": "nvfp4",
        "fp8": "fp8",
        "fp8_block": "fp8_block",
        "int4_wo": "int4",
        "int4": "int4",
        "bf16": "bf16",
        "fp16": "bf16",
        "16-bit": "bf16",
        "mixed": "bf16",
        "bfloat16": "bf16",
        "w4a16_mxfp4": "mxfp4",
    }
    if named not in known:
        raise Unusable(f"weight format {named!r} is not modelled")
    return known[named]


def cache_format(dtype: str, experts: str, engine: str) -> str:
    """KV format where nothing sets it: 16 bits, or the 8 that a checkpoint asks for and the engine hears.

    NVIDIA's 4-bit checkpoints ask for it, and its 8-bit ones of TensorRT-LLM. vLLM reads that from 0.14 on (pull request 29980).
    """
    if "nvfp4" in (dtype, experts):
        return "fp8" if engine.startswith("trtllm") or engine == "vllm" else "bf16"
    return "fp8" if engine.startswith("trtllm") and dtype not in ("bf16", "int4", "mxfp4") else "bf16"
