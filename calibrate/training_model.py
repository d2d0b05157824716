"""The model of a published training run: the registry's where it agrees, else one built from the stated sizes."""

from __future__ import annotations

import re

from ..scenarios import registry
from ..scenarios.errors import BadInput
from ..scenarios.model import ModelSpec
from .training_rows import TrainingRun
from .training_sources import SourceRule

MAX_LAYERS = 10_000


class CannotPriceError(BadInput):
    """A run that lacks what a price needs; the message says what."""


def model_of(run: TrainingRun, rule: SourceRule) -> ModelSpec:
    """The registry's model where name and stated sizes agree with it (it knows head dims, MLA, windows), else one built from the cells."""
    if re.search(r"\bmamba\b", run.notes, re.I) or run.model.startswith(("nemotron-3-", "nemotron3")):
        raise CannotPriceError("hybrid Mamba layers: the cost model has none")
    name = re.sub(r"-(sft|lora|pretrain)$", "", run.model.lower())
    known = registry.find("models", name)
    if known:
        spec = registry.model(known)
        stated = ((run.layers, spec.n_layers), (run.hidden, spec.hidden), (run.heads, spec.n_heads))
        if all(cell is None or cell == own for cell, own in stated):
            return spec
    missing = [c for c in ("layers", "hidden", "heads", "ffn") if not getattr(run, c)]
    if missing:
        raise CannotPriceError(f"shape not stated ({', '.join(missing)}) and {run.model} is not in the registry")
    if run.num_experts and not run.kv_heads:
        raise CannotPriceError("MLA sizes not stated and the model is not in the registry")
    if run.num_experts and not (run.top_k and run.moe_ffn):
        raise CannotPriceError("expert sizes not stated and the model is not in the registry")
    return _spec(run, rule)


def _spec(run: TrainingRun, rule: SourceRule) -> ModelSpec:
    layers, hidden, heads, ffn = (int(getattr(run, c)) for c in ("layers", "hidden", "heads", "ffn"))
    vocab = run.vocab or rule.vocab
    if layers > MAX_LAYERS:
        raise CannotPriceError(f"layers={layers:,} is over the limit of {MAX_LAYERS:,}")
    if not vocab:
        raise CannotPriceError("vocabulary not stated")
    if hidden % heads:
        raise CannotPriceError(f"heads={heads} does not divide hidden={hidden}")
    experts = run.num_experts or 0
    return ModelSpec(
        name=run.model,
        source=run.source,
        n_layers=layers,
        hidden=hidden,
        n_heads=heads,
        n_kv_heads=run.kv_heads or heads,
        head_dim=hidden // heads,
        ffn_hidden=ffn,
        vocab=vocab,
        gated_mlp=bool(run.gated_mlp),
        tied_embeddings=rule.tied,
        position=rule.position,
        norm=rule.norm,
        linear_bias=rule.bias,
        qkv_bias=rule.bias,
        max_seq_tokens=run.seq_len or rule.seq_tokens or 2048,
        n_experts=experts,
        top_k=run.top_k or 0 if experts else 0,
        moe_ffn_hidden=run.moe_ffn or 0 if experts else 0,
        n_shared_experts=run.shared_experts or 0 if experts else 0,
    )
