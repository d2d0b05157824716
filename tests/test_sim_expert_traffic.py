"""Expert weights read by a run, against counts done by hand."""

from __future__ import annotations

import pytest
from roofplan.scenarios import registry
from roofplan.scenarios.errors import BadInput
from roofplan.sim.expert_traffic import expert_bytes_read
from roofplan.sim.policies import POLICIES
from roofplan.sim.step_log import StepLog

QWEN = registry.model("qwen3-30b-a3b")
ALL = 48 * 128 * 3 * 2048 * 768 * 2.0
"""Bytes of all experts of Qwen3-30B-A3B: 48 layers, 128 experts of three 2048 x 768 matrices, 16 bits."""


def log_of(*rows: tuple[int, int, int]) -> StepLog:
    """Rows of (steps, tokens in all, prompt tokens in all)."""
    log = StepLog()
    for at, (n, tokens, prompts) in enumerate(rows):
        log.add(at, at + 1, n, tokens, prompts, 0, 0, 0, 0, 0)
    return log


def test_every_chunk_reads_all_experts():
    """18 chunks of 512 tokens of one prompt; each touches every expert (each token misses one with 15/16)."""
    read = expert_bytes_read(QWEN, POLICIES["sarathi"], log_of(*[(1, 512, 512)] * 18))
    assert read == pytest.approx(18 * ALL, rel=1e-6)


def test_layer_groups_read_each_expert_once():
    """The same prompt in 18 groups, alone: each of the 18 steps reads a group's share. With decodes the other layers read theirs."""
    layered = POLICIES["layered"]
    assert expert_bytes_read(QWEN, layered, log_of(*[(1, 9216, 9216)] * 18)) == pytest.approx(ALL, rel=1e-6)
    decodes = 1 - (15 / 16) ** 4
    assert expert_bytes_read(QWEN, layered, log_of((1, 9220, 9216))) == pytest.approx(ALL * (1 / 18 + decodes * 17 / 18), rel=1e-6)


def test_a_stretch_of_decodes_counts_each_of_its_steps():
    one, many = (expert_bytes_read(QWEN, POLICIES["sarathi"], log_of(row)) for row in ((1, 4, 0), (10, 40, 0)))
    assert one == pytest.approx(ALL * (1 - (15 / 16) ** 4))
    assert many == pytest.approx(10 * one)
    assert expert_bytes_read(QWEN, POLICIES["sarathi"], log_of((1, 4, 0)), dtype="fp8") == pytest.approx(one / 2)
    assert expert_bytes_read(QWEN, POLICIES["sarathi"], log_of((1, 40, 0)), skew=1.0) < ALL * (1 - (15 / 16) ** 40)


def test_a_dense_model_has_no_experts_to_read():
    with pytest.raises(BadInput, match="llama3-8b has no experts"):
        expert_bytes_read(registry.model("llama3-8b"), POLICIES["layered"], log_of((1, 4, 0)))
