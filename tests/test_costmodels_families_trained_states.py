"""Optimizer states in bytes per parameter, by hand: tiny has 1704 parameters."""

from __future__ import annotations

import pytest
from roofplan.costmodels.families.trained_states import trained_states
from roofplan.costmodels.params import count_params
from roofplan.costmodels.step import train_pass
from tiny_step import TINY

P = count_params(TINY).total
STEP = train_pass(TINY, seq_tokens=100)


def test_adamw_is_fourteen_bytes_beside_the_weights() -> None:
    after = trained_states(STEP)
    assert after.held_state_bytes == STEP.held_state_bytes == 14 * P
    assert after.linear_flops == pytest.approx(STEP.linear_flops)


def test_quarter_of_the_moments() -> None:
    assert trained_states(STEP, moment_bytes=2.0).held_state_bytes == 8 * P


def test_half_of_the_parameters_train() -> None:
    """Forward 2, input gradients 2, weight gradients of a half 1: five sixths."""
    after = trained_states(STEP, trained_frac=0.5)
    assert after.held_state_bytes == 7 * P
    assert after.linear_flops == pytest.approx(STEP.linear_flops * 5 / 6)


def test_adapters_of_rank_one() -> None:
    """A layer: (8+8) + (8+4) + (8+4) + (8+8) = 56; two layers 112, 14 bytes of states and 2 of weights each."""
    after = trained_states(STEP, trained_frac=0.0, adapter_rank=1)
    assert after.held_state_bytes == 14 * 112
    assert after.held_weight_bytes == 2 * P + 224


def test_without_a_backward_pass() -> None:
    after = trained_states(STEP, moment_bytes=0, master_bytes=0, gradient_bytes=0)
    assert (after.held_state_bytes, after.held_activation_bytes) == (0, 0)
    assert after.linear_flops == pytest.approx(STEP.linear_flops * 4 / 6)
