"""Tokens per checked guess: closed forms against simulation."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from roofplan.costmodels.acceptance import chain_tokens, overlapped_tokens, tiered_draft_frac


def test_chains_by_hand() -> None:
    assert chain_tokens(0.5, 2) == 1.75
    assert chain_tokens(0.0, 5) == 1
    assert chain_tokens(1.0, 5) == 6


def test_published_example() -> None:
    """c = 0.05: acceptance 0.8 is worth 3.09 times at 8 drafts, 0.7 is worth 2.35 at 6. Source: the formula of Leviathan et al. 2023."""
    assert chain_tokens(0.8, 8) / (1 + 8 * 0.05) == pytest.approx(3.09, abs=0.01)
    assert chain_tokens(0.7, 6) / (1 + 6 * 0.05) == pytest.approx(2.35, abs=0.01)


@settings(derandomize=True, max_examples=50)
@given(st.floats(0, 0.999), st.integers(0, 30))
def test_between_one_and_all(acceptance: float, drafts: int) -> None:
    assert 1 <= chain_tokens(acceptance, drafts) <= drafts + 1
    assert chain_tokens(acceptance, drafts + 1) >= chain_tokens(acceptance, drafts)


@pytest.mark.parametrize(("acceptance", "drafts"), [(0.9, 5), (0.6, 4)])
def test_overlap_equals_a_simulation_of_its_two_states(acceptance: float, drafts: int) -> None:
    rng = np.random.default_rng(3)
    steps, tokens, flowing = 60_000, 0.0, True
    for _ in range(steps):
        if flowing:
            accepted = drafts
            for i in range(drafts):
                if rng.random() >= acceptance:
                    accepted = i
                    break
            tokens += accepted + 1 if accepted < drafts else drafts
            flowing = accepted == drafts
        else:
            flowing = rng.random() < acceptance
            tokens += 0 if flowing else 1
    assert overlapped_tokens(acceptance, drafts) == pytest.approx(tokens / steps, rel=0.02)


def test_overlap_at_its_ends() -> None:
    assert overlapped_tokens(1.0, 5) == 5
    assert overlapped_tokens(0.0, 5) == 1


def test_a_tier_divides_the_cost_of_the_middle_draft() -> None:
    assert tiered_draft_frac(middle_frac=0.7, small_frac=0.05, middle_acceptance=0.5, middle_tokens=1) == pytest.approx(0.5)
    assert tiered_draft_frac(middle_frac=0.7, small_frac=0.0, middle_acceptance=0.0, middle_tokens=0) == 0.7
