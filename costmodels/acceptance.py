"""How many tokens a checked guess yields: one chain, a chain drafted by a chain, and drafting while checking."""

from __future__ import annotations


def chain_tokens(acceptance: float, draft_tokens: float) -> float:
    """Tokens a checked chain yields: ``(1 - α^(γ+1)) / (1 - α)``, γ + 1 at α = 1. Source: Leviathan et al. 2023, eq. 1."""
    if acceptance >= 1:
        return draft_tokens + 1.0
    return float((1 - acceptance ** (draft_tokens + 1)) / (1 - acceptance))


def tiered_draft_frac(*, middle_frac: float, small_frac: float, middle_acceptance: float, middle_tokens: int) -> float:
    """Cost of one token of a draft that is itself speculated: ``(c_mid + γ1 c_small) / E(α1, γ1)``. Source: TriForce (2024)"""
    return (middle_frac + middle_tokens * small_frac) / chain_tokens(middle_acceptance, middle_tokens)


def overlapped_tokens(acceptance: float, draft_tokens: int) -> float:
    """Tokens per model step when the next γ are drafted while the last γ are checked.

    Two states: in flow (all γ accepted with ``α^γ``, then on) yields ``(1 - α^γ)/(1 - α)``; after a rejection only one is checked, which
    yields ``1 - α`` by correction and with α is in flow again. Their stationary mix. Source: PEARL (2025), as a Markov chain.
    """
    stay = acceptance**draft_tokens
    flow = acceptance / (acceptance + 1 - stay)  # flow leaves with 1 - stay, the pause ends with α
    return flow * sum(acceptance**i for i in range(draft_tokens)) + (1 - flow) * (1 - acceptance)
