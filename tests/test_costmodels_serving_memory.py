"""Memory of a serving replica with recurrent states or an indexer: bytes by hand, seats by the states' share, what is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from roofplan.costmodels.kv_cache import kv_bytes_per_token as cache_bytes
from roofplan.costmodels.linear_layer import state_bytes
from roofplan.costmodels.serving_memory import STATES_FRAC, kv_bytes_per_token, serve_memory, state_bytes_per_seq, weights_bytes
from roofplan.scenarios.errors import BadInput
from roofplan.scenarios.model import ModelSpec
from roofplan.scenarios.registry import accelerator, model
from roofplan.scenarios.serving import EnginePlan, serving_engine
from roofplan.scenarios.serving_parts import AttentionFfnSplit, Speculation
from test_costmodels_linear_layer import HYBRID, PLAIN

ENGINE, H200 = serving_engine("vllm"), accelerator("h200")
QWEN, GLM = model("qwen3.5-397b-a17b"), model("glm-5")
EIGHT = EnginePlan(tp=8, weight_dtype="fp8_block")


def memory(spec: ModelSpec, plan: EnginePlan, seats: int, budget: int = 8192) -> Any:
    return serve_memory(spec, plan, ENGINE, H200, budget, seats, 16)


def test_a_token_and_a_sequence_in_bytes() -> None:
    """Qwen3.5 on 8 GPUs: 15 layers of one replicated head of 256; 45 states of 8 of 64 heads. GLM-5: latents and index keys of 128 + 4."""
    assert kv_bytes_per_token(QWEN, EIGHT) == 15 * 2 * 256 * 2
    assert state_bytes_per_seq(QWEN, EIGHT) == 45 * (8 * 128 * 128 * 4 + 3 * 12288 / 8 * 2)
    assert state_bytes_per_seq(QWEN, replace(EIGHT, tp=4, pp=2)) == 23 * state_bytes(QWEN, tp=4)
    assert kv_bytes_per_token(GLM, replace(EIGHT, kv_dtype="fp8")) == 78 * (576 + 132)
    assert kv_bytes_per_token(GLM, EIGHT) == cache_bytes(GLM)
    assert cache_bytes(QWEN) == 15 * 2 * 2 * 256 * 2


def test_states_leave_the_pool_less() -> None:
    few, many = (memory(QWEN, EIGHT, seats) for seats in (1, 65))
    assert (few.max_seqs, many.max_seqs) == (1, 65)
    assert many.states_bytes == 65 * many.state_bytes_per_seq
    logits = 2 * 64 * QWEN.vocab / 8 * 4
    assert few.kv_bytes - many.kv_bytes == pytest.approx(64 * many.state_bytes_per_seq + logits, abs=16 * many.kv_bytes_per_token)


def test_checking_guesses_holds_a_state_for_each_token() -> None:
    """Beside its own: three guesses and the token before them, or two depths of three."""
    plain = memory(QWEN, EIGHT, 8)
    for guess, more in ((Speculation(method="mtp", draft_tokens=3), 4), (Speculation(method="tree", draft_tokens=2, tree_width=3), 7)):
        found = memory(QWEN, replace(EIGHT, speculation=guess), 8)
        assert found.state_bytes_per_seq == plain.state_bytes_per_seq
        assert found.states_bytes == (1 + more) * plain.states_bytes


def test_more_seats_than_states_fit_are_not_given() -> None:
    crowded = memory(QWEN, EIGHT, 100_000)
    assert crowded.max_seqs < 100_000
    room = crowded.states_bytes + crowded.kv_bytes
    assert crowded.states_bytes <= STATES_FRAC * (room + 16 * crowded.kv_bytes_per_token)
    assert crowded.states_bytes + crowded.state_bytes_per_seq > STATES_FRAC * room


def test_a_hybrid_without_linear_layers_holds_what_the_plain_model_holds() -> None:
    none = replace(HYBRID, full_attention_every=1)
    assert memory(none, EnginePlan(), 64) == memory(PLAIN, EnginePlan(), 64)


def test_an_indexer_is_whole_on_every_rank() -> None:
    """9.4 million weights a layer and rank, in 8 bits, where the rest of attention is an eighth."""
    dense = replace(GLM, index_top_k=0)
    one = 2048 * 32 * 128 + 6144 * (128 + 32) + 2 * 128
    assert weights_bytes(GLM, EIGHT) - weights_bytes(dense, EIGHT) == pytest.approx(78 * one)


@pytest.mark.parametrize(
    ("spec", "changes", "message"),
    [
        (QWEN, {"prefix_cache": True}, "qwen3.5-397b-a17b has gated-delta layers: a prefix cache is not priced for them; drop it"),
        (QWEN, {"preemption": "swap"}, "gated-delta layers: preemption by swapping is not priced"),
        (QWEN, {"cp": 2}, "gated-delta layers: cp=2 is not priced"),
        (QWEN, {"tp": 32}, "tp=32, which does not divide its 16 key heads, is not priced"),
        (GLM, {"cp": 2}, "glm-5 has sparse attention .DSA.: cp=2 is not priced"),
        (GLM, {"attention_ffn": AttentionFfnSplit(n_ffn_gpus=8)}, "sparse attention .DSA.: attention apart from FFN is not priced"),
        (QWEN, {"state_dtype": "fp8"}, "state_dtype='fp8' is not known; legal: fp32, bf16"),
    ],
)
def test_what_is_not_priced_is_refused(spec: ModelSpec, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        memory(spec, replace(EIGHT, **changes), 64)


def test_embeddings_that_are_not_split_leave_the_pool_less() -> None:
    """Llama-3-70B over four A100 of 40 GB: three quarters of 128,256 x 8,192 in 16 bits more on each, 1.6 GB of the 5 GB that are left."""
    spec, card, engine = model("llama3-70b"), accelerator("a100-40gb-sxm"), serving_engine("trtllm-0.15")
    split, whole = (serve_memory(spec, EnginePlan(tp=4), replace(engine, whole_embedding=w), card, 8192, 16, 32) for w in (False, True))
    assert whole.weights_bytes - split.weights_bytes == 2 * 128256 * 8192 * 0.75
    assert 0.4 < whole.kv_bytes / split.kv_bytes < 0.75
