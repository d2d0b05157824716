"""Messages and gradient buckets on one link: equal to the plain replay when nothing queues, later when something does."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from roofplan.costmodels.pipeline import p2p_count
from roofplan.scenarios.errors import BadInput
from roofplan.scenarios.plan import Schedule
from roofplan.sim.contention import LinkLoad, replay_contended
from roofplan.sim.schedule import order
from roofplan.sim.training import StageTimes, replay

FREE = LinkLoad(bytes_per_s=1e30, latency_s=0.0, p2p_bytes=1.0)


@given(
    st.sampled_from([("gpipe", 1), ("1f1b", 1), ("interleaved", 2), ("zb1p", 1), ("dualpipe", 1)]),
    st.integers(1, 3), st.integers(1, 4), st.floats(0.3, 2), st.floats(0, 1),
)  # fmt: skip
@settings(derandomize=True, max_examples=60, deadline=None)
def test_an_idle_link_gives_the_plain_replay(kind: tuple[Schedule, int], half: int, rounds: int, b: float, c: float) -> None:
    """The two simulators share no clock: one advances arrays, the other processes events."""
    plan = order(kind[0], 2 * half, kind[1], 4 * half * rounds)
    times = StageTimes(fwd_s=1.0, bwd_input_s=b, bwd_weight_s=0.7, p2p_s=c)
    plain, events = replay(plan, times), replay_contended(plan, times, replace(FREE, latency_s=c))
    assert np.allclose(plain.end_s, events.pipeline.end_s, rtol=1e-12, equal_nan=True)
    assert events.pipeline.span_s == pytest.approx(plain.span_s, rel=1e-12)


def test_messages_queue_behind_each_other() -> None:
    """gpipe on 2 ranks, forward 1 s, message 3 s: the link is the bottleneck of both directions. By hand: 1+3m, 1, 3m, 1 s."""
    plan, m = order("gpipe", 2, 1, 5), 5
    times = StageTimes(fwd_s=1.0, bwd_input_s=1.0, bwd_weight_s=0.0)
    play = replay_contended(plan, times, LinkLoad(bytes_per_s=1.0, latency_s=0.0, p2p_bytes=3.0))
    forward_done = 1 + 3 * m + 1
    assert play.pipeline.pipeline_s == pytest.approx(forward_done + 1 + 3 * m + 1)
    assert play.longest_queue_s == pytest.approx(2.0 * (m - 1))


def test_link_time_is_the_bytes_that_were_sent() -> None:
    plan = order("interleaved", 4, 2, 8)
    times = StageTimes(fwd_s=1.0, bwd_input_s=1.0, bwd_weight_s=1.0)
    load = LinkLoad(bytes_per_s=10.0, latency_s=0.01, p2p_bytes=0.5, reduce_bytes=7.0, n_buckets=3)
    play = replay_contended(plan, times, load)
    sent = play.link_busy_frac.sum() * play.pipeline.span_s * load.bytes_per_s
    assert sent == pytest.approx(float(p2p_count(4, 2, 8)) * 0.5 + 4 * 7.0)


def test_gradients_delay_messages_only_where_they_share_the_link() -> None:
    """With one piece a rank, gradients leave after the last message matters; with several, early pieces' buckets hold messages up."""
    times = StageTimes(fwd_s=1.0, bwd_input_s=1.0, bwd_weight_s=1.0)
    load = LinkLoad(bytes_per_s=1.0, latency_s=0.0, p2p_bytes=0.05)
    heavy = replace(load, reduce_bytes=12.0, n_buckets=4)
    whole, pieces = order("gpipe", 4, 1, 8), order("interleaved", 4, 4, 8)
    assert replay_contended(whole, times, heavy).pipeline.pipeline_s >= replay_contended(whole, times, load).pipeline.pipeline_s
    slowed = replay_contended(pieces, times, heavy)
    assert slowed.pipeline.pipeline_s > replay_contended(pieces, times, load).pipeline.pipeline_s + 1
    assert slowed.pipeline.span_s > slowed.pipeline.pipeline_s  # the last piece's gradients follow the pipeline
    assert slowed.longest_queue_s > 0


def test_without_a_pipeline_only_gradients_use_the_link() -> None:
    plan = order("1f1b", 1, 1, 4)
    times = StageTimes(fwd_s=1.0, bwd_input_s=1.0, bwd_weight_s=1.0)
    play = replay_contended(plan, times, LinkLoad(bytes_per_s=2.0, latency_s=1.0, p2p_bytes=1e9, reduce_bytes=3.0))
    assert play.pipeline.pipeline_s == 12.0
    assert play.pipeline.span_s == 13.5


def test_wrong_link_figures_are_refused() -> None:
    plan, times = order("1f1b", 2, 1, 2), StageTimes(fwd_s=1.0, bwd_input_s=1.0, bwd_weight_s=1.0)
    for wrong in (replace(FREE, bytes_per_s=0.0), replace(FREE, latency_s=-1.0), replace(FREE, n_buckets=0)):
        with pytest.raises(BadInput, match="link figures must not be negative, the bandwidth above 0 and n_buckets at least 1"):
            replay_contended(plan, times, wrong)


def test_an_order_that_waits_for_itself_is_refused() -> None:
    plan = order("1f1b", 2, 1, 2)
    turned = {name: np.vstack([getattr(plan, name)[0][::-1], getattr(plan, name)[1]]) for name in ("kind", "f_cell", "b_cell")}
    with pytest.raises(BadInput, match="waits for itself"):
        replay_contended(replace(plan, **turned), StageTimes(fwd_s=1.0, bwd_input_s=1.0, bwd_weight_s=1.0), FREE)
