"""One sequence over ranks: shares of the work and volumes of the messages."""

from __future__ import annotations

import pytest
from roofplan.costmodels import sequence_volume
from roofplan.costmodels.families.sequence_split import SplitKind, sequence_split
from tiny_step import tiny_step

STEP = tiny_step("prefill")


def test_work_and_cache_divide() -> None:
    after = sequence_split(STEP, ranks=4, kind="zigzag")
    assert (after.linear_flops, after.attention_flops, after.held_kv_bytes, after.yield_tokens) == pytest.approx((250, 25, 25, 25))


def test_a_plain_ring_ends_with_its_last_rank() -> None:
    """Of causal work the last of 4 ranks has 7 of 16 parts, 1.75 times the mean."""
    assert sequence_split(STEP, ranks=4, kind="ring").attention_flops == pytest.approx(25 * 1.75)


@pytest.mark.parametrize(
    ("kind", "bytes_per_layer"),
    [
        ("ulysses", sequence_volume.ulysses(100, 2, 1, 4, 4)),
        ("ring", sequence_volume.ring(100, 1, 4, 4)),
        ("helper", sequence_volume.ring(100, 1, 4, 4) / 2),
        ("all-gather", sequence_volume.all_gather_kv(100, 1, 4, 4)),
        ("megatron", sequence_volume.megatron_sp(100, 8, 4)),
        ("token-ring", sequence_volume.token_ring(100, 2, 4, 4)),
    ],
)
def test_two_layers_of_messages(kind: SplitKind, bytes_per_layer: float) -> None:
    assert sequence_split(STEP, ranks=4, kind=kind).network_bytes == pytest.approx(2 * bytes_per_layer)


def test_states_are_gathered_or_scanned() -> None:
    """A state of 2 heads of 4 x 4 in 2 bytes is 64: three of them gathered; scanned in 3 blocks, one and 3/3 more."""
    gathered, scanned = (sequence_split(STEP, ranks=4, kind=k, blocks=3) for k in ("lasp-2", "zeco"))
    assert (gathered.network_bytes, gathered.n_hops) == (2 * 192, 2)
    assert (scanned.network_bytes, scanned.n_hops) == (2 * 128, 6)


def test_grouped_heads_take_the_gain_from_token_ring() -> None:
    """With one KV head to two query heads a ring of K and V moves no more than queries and outputs do."""
    assert sequence_split(STEP, ranks=4, kind="ring").network_bytes <= sequence_split(STEP, ranks=4, kind="token-ring").network_bytes
