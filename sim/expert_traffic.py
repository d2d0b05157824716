"""Bytes of expert weights that a replica's steps read, from its step log: what layered prefill is meant to save."""

from __future__ import annotations

import numpy as np

from ..costmodels.experts import expert_share_read
from ..costmodels.gemm_curve import weight_bytes
from ..costmodels.params import count_params
from ..scenarios.errors import BadInput
from ..scenarios.model import ModelSpec
from .policies import Policy
from .step_log import StepLog


def expert_bytes_read(model: ModelSpec, policy: Policy, log: StepLog, *, dtype: str = "bf16", skew: float = 0.0) -> float:
    """Bytes of routed experts read by all steps of the log, on all GPUs of the replica together.

    A layer reads the experts that its tokens touch, ``E·share(tokens)``. Every layer has a step's decodes and its prompt tokens; under a
    layered policy one layer in ``G = ceil(prompt tokens / layer_tokens)`` (at most all layers) has the prompts, the others decodes alone.
    ``skew`` is the Zipf exponent of routing. Raises BadInput for a model without experts.
    """
    if not model.n_experts:
        raise BadInput(f"{model.name} has no experts; name a mixture-of-experts model")
    rows = log.columns()
    steps, prompts = rows["n_steps"], rows["prompt_tokens"] / rows["n_steps"]
    decodes = rows["tokens"] / steps - prompts

    def share(tokens: np.ndarray) -> np.ndarray:
        return np.asarray(expert_share_read(model.n_experts, model.top_k, tokens, skew=skew))

    read = share(decodes + prompts)
    if policy.layer_tokens:
        groups = np.clip(np.ceil(prompts / policy.layer_tokens), 1, model.n_layers)
        read = read / groups + share(decodes) * (1 - 1 / groups)
    layer = model.n_experts * count_params(model).expert * weight_bytes(dtype)
    return float((steps * read).sum() * model.n_moe_layers * layer)
