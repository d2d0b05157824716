"""The compact forms of serving parts are read whole, and each mistake in them gets its sentence."""

from __future__ import annotations

import pytest
from roofplan.scenarios.errors import BadInput
from roofplan.scenarios.serving_text import read_autoscale, read_kv_tier, read_speculation


def test_speculation_forms() -> None:
    mtp = read_speculation("mtp:1:0.85")
    assert (mtp.method, mtp.draft_tokens, mtp.accept_frac, mtp.controller) == ("mtp", 1, 0.85, "fixed")
    tree = read_speculation("tree:5:0.6:width=4:spread=0.1:cost=0.02:goodput")
    assert (tree.tree_width, tree.accept_spread_frac, tree.draft_frac, tree.controller) == (4, 0.1, 0.02, "goodput")
    assert read_speculation("chain:4:0.7:draft=llama3.2-1b").draft_model == "llama3.2-1b"


def test_tier_and_autoscale_forms() -> None:
    tier = read_kv_tier("host:512GB:50GB/s:latency=20us:shared")
    assert (tier.name, tier.capacity_bytes, tier.bytes_per_s, tier.shared) == ("host", 512e9, 50e9, True)
    assert tier.latency_s == pytest.approx(20e-6)
    scale = read_autoscale("1:8:64:provision=120s:every=10s:cooldown=5 min")
    assert (scale.min_replicas, scale.max_replicas, scale.target_requests) == (1, 8, 64)
    assert (scale.provision_s, scale.interval_s, scale.cooldown_s) == (120.0, 10.0, 300.0)


@pytest.mark.parametrize(
    ("read", "text", "words"),
    [
        (read_speculation, "mtp", "is not METHOD:DRAFT_TOKENS:ACCEPTANCE"),
        (read_speculation, "guess:1:0.5", "'guess' is not known; legal: chain, tree, mtp"),
        (read_speculation, "mtp:1.5:0.85", "must be a whole number"),
        (read_speculation, "mtp:one:0.85", "'one' in 'mtp:one:0.85' is not a number"),
        (read_speculation, "mtp:1:nan", "is not a number"),
        (read_speculation, "mtp:1:1.5", "accept_frac=1.5 must be from 0 to 1"),
        (read_speculation, "mtp:0:0.5", "draft_tokens=0 must be from 1 to 64"),
        (read_speculation, "mtp:1:0.5:spread=0.9", "accept_spread_frac=0.9 must be from 0 to"),
        (read_speculation, "mtp:1:0.5:wide", "'wide' in 'mtp:1:0.5:wide' is not known"),
        (read_speculation, "mtp:1:0.5:width=", "is not known"),
        (read_kv_tier, "host:512GB", "is not NAME:CAPACITY:RATE"),
        (read_kv_tier, "host:512:50GB/s", "not a number with a unit"),
        (read_kv_tier, "host:0B:50GB/s", "capacity_bytes=0 must be from 1"),
        (read_autoscale, "8:1:64", "max_replicas=1 must be from 8"),
        (read_autoscale, "1:8", "is not MIN:MAX:REQUESTS"),
        (read_autoscale, "1:8:64:soon", "'soon' in '1:8:64:soon' is not known"),
    ],
)
def test_mistakes(read: object, text: str, words: str) -> None:
    with pytest.raises(BadInput) as caught:
        read(text)  # type: ignore[operator]
    assert words in str(caught.value)
