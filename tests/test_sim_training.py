"""The replay of a training step: brute force, conservation, determinism, slow ranks, and agreement with the priced step."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from roofplan.costmodels.pipeline import span, uneven_span
from roofplan.scenarios.errors import BadInput
from roofplan.scenarios.plan import ParallelPlan, Schedule
from roofplan.sim.schedule import BW, FB, NONE, F, Order, W, order
from roofplan.sim.training import StageTimes, peak_in_flight, replay, replay_step

SMALL: list[tuple[Schedule, int, int, int]] = [
    ("gpipe", 3, 1, 4), ("1f1b", 4, 1, 3), ("1f1b", 4, 1, 9), ("interleaved", 2, 3, 4), ("interleaved", 4, 2, 8), ("zb1p", 3, 1, 7),
    ("dualpipe", 4, 1, 8), ("1f1b", 1, 1, 5), ("interleaved", 1, 2, 3),
]  # fmt: skip


def longest_paths(plan: Order, lasts: dict[tuple[int, int], float], c: float) -> dict[tuple[int, int], float]:
    """End of every op by sweeping the dependency graph until nothing changes: slow, and written apart from the simulator."""
    pieces, m, ops = plan.pieces_per_way, plan.n_micro, {}
    for rank in range(plan.pp):
        for i in range(plan.kind.shape[1]):
            if plan.kind[rank, i] != NONE:
                ops[rank, i] = (int(plan.kind[rank, i]), int(plan.f_cell[rank, i]), int(plan.b_cell[rank, i]))
    f_at = {f: at for at, (_, f, _) in ops.items() if f != NONE}
    b_at = {b: at for at, (kind, _, b) in ops.items() if b != NONE and kind != W}
    delay = c if plan.pp > 1 else 0.0
    end = dict.fromkeys(ops, 0.0)
    changed = True
    while changed:
        changed = False
        for (rank, i), (kind, f, b) in ops.items():
            starts = [end[rank, i - 1] if i else 0.0]
            if f != NONE and f // m % pieces:
                starts.append(end[f_at[f - m]] + delay)
            if b != NONE and kind != W:
                last = b // m % pieces == pieces - 1
                starts.append(end[f_at[b]] if last else end[b_at[b + m]] + delay)
            finish = max(starts) + lasts[rank, i]
            if finish > end[rank, i] + 1e-12:
                end[rank, i], changed = finish, True
    return end


@pytest.mark.parametrize("case", SMALL)
@pytest.mark.parametrize("c", [0.0, 0.3, 2.5])
def test_brute_force(case: tuple[Schedule, int, int, int], c: float) -> None:
    plan = order(*case)
    times = StageTimes(fwd_s=1.0, bwd_input_s=1.3, bwd_weight_s=0.6, p2p_s=c)
    play = replay(plan, times, slow=np.linspace(1, 1.4, plan.pp), jitter_frac=0.2, seed=3)
    seconds = {(r, i): play.end_s[r, i] - play.start_s[r, i] for r, i in zip(*np.nonzero(plan.kind != NONE), strict=True)}
    for at, end in longest_paths(plan, seconds, c).items():
        assert play.end_s[at] == pytest.approx(end, rel=1e-12)


@st.composite
def runs(draw: st.DrawFn) -> tuple[Order, StageTimes]:
    schedule: Schedule = draw(st.sampled_from(("gpipe", "1f1b", "interleaved", "zb1p", "dualpipe")))
    pp, m = draw(st.integers(1, 8)), draw(st.integers(1, 16))
    seconds = [draw(st.floats(0.1, 3)) for _ in range(4)]
    times = StageTimes(fwd_s=seconds[0], bwd_input_s=seconds[1], bwd_weight_s=seconds[2], p2p_s=seconds[3] / 3)
    if schedule == "dualpipe":
        pp += pp % 2
        return order(schedule, pp, 1, 2 * pp + 2 * (m // 2)), times
    if schedule == "interleaved":
        return order(schedule, pp, draw(st.integers(1, 4)), pp * (1 + m // 5)), times
    return order(schedule, pp, 1, m), times


@given(runs(), st.integers(0, 5))
@settings(derandomize=True, max_examples=150, deadline=None)
def test_conservation(run: tuple[Order, StageTimes], seed: int) -> None:
    """Ranks run one op at a time, inputs come first, busy time is the work, and what is held is given back."""
    plan, times = run
    play = replay(plan, times, jitter_frac=0.1 * (seed % 2), seed=seed)
    done = plan.kind != NONE
    assert np.all(np.isfinite(play.start_s[done]))
    assert np.all(np.isnan(play.start_s[~done]))
    gaps = play.start_s[:, 1:] - play.end_s[:, :-1]
    assert np.nanmin(np.append(gaps, 0.0)) >= -1e-9
    if seed % 2 == 0:
        work = plan.n_micro * (float(times.fwd_s) + float(times.bwd_input_s) + float(times.bwd_weight_s))
        assert play.busy_s == pytest.approx(np.full(plan.pp, work))
        assert play.pipeline_s >= work * (1 - 1e-12)
    assert 0 <= play.bubble_frac < 1
    assert play.bubble_frac == pytest.approx(1 - play.busy_s.mean() / play.pipeline_s)
    held = np.isin(plan.kind, (F, FB)).sum(axis=1) - np.isin(plan.kind, (W, BW, FB)).sum(axis=1)
    assert np.all(held == 0)
    assert np.all(play.peak_in_flight <= plan.n_micro)


@given(runs())
@settings(derandomize=True, max_examples=60, deadline=None)
def test_slower_never_finishes_sooner(run: tuple[Order, StageTimes]) -> None:
    plan, times = run
    slow = replay(plan, replace(times, fwd_s=float(times.fwd_s) * 1.1, p2p_s=times.p2p_s * 1.2))
    assert slow.pipeline_s >= replay(plan, times).pipeline_s


def test_one_seed_one_result() -> None:
    plan, times = order("1f1b", 8, 1, 32), StageTimes(fwd_s=1.0, bwd_input_s=1.0, bwd_weight_s=1.0, p2p_s=0.1)
    first, same, other = (replay(plan, times, jitter_frac=0.1, seed=seed) for seed in (7, 7, 8))
    assert first.end_s.tobytes() == same.end_s.tobytes()
    assert first.span_s != other.span_s
    assert replay(plan, times, seed=7).span_s == replay(plan, times, seed=8).span_s


def test_jitter_has_mean_one_and_lengthens_the_step() -> None:
    plan, times = order("1f1b", 8, 1, 400), StageTimes(fwd_s=1.0, bwd_input_s=1.0, bwd_weight_s=1.0)
    even, uneven = replay(plan, times), replay(plan, times, jitter_frac=0.2, seed=1)
    assert uneven.busy_s.mean() == pytest.approx(even.busy_s.mean(), rel=0.01)
    assert uneven.pipeline_s > even.pipeline_s * 1.03


def test_one_slow_rank_sets_the_pace() -> None:
    slow = np.array([1.0, 1.0, 1.0, 1.2])
    play = replay(order("1f1b", 4, 1, 16), StageTimes(fwd_s=1.0, bwd_input_s=1.0, bwd_weight_s=1.0), slow=slow)
    assert play.pipeline_s == pytest.approx(float(uneven_span(3.0 * slow, 16))) == pytest.approx(15 * 3.6 + 3 * 4.2)


def test_memory_of_published_schedules() -> None:
    """Rank r of 1f1b holds pp-r micro-batches, of ZB-H1 and DualPipe all ranks hold pp and pp+1. Source: DeepSeek-V3 report table 2."""
    assert peak_in_flight(order("1f1b", 4, 1, 16)).tolist() == [4, 3, 2, 1]
    assert peak_in_flight(order("zb1p", 4, 1, 16)).tolist() == [4, 4, 4, 4]
    assert peak_in_flight(order("dualpipe", 8, 1, 32)).tolist() == [9] * 8
    assert peak_in_flight(order("gpipe", 4, 1, 16)).tolist() == [16] * 4


def test_gradient_reduction_follows_the_last_backward() -> None:
    plan = order("1f1b", 4, 1, 8)
    times = StageTimes(fwd_s=1.0, bwd_input_s=1.0, bwd_weight_s=1.0, reduce_s=3.0)
    plain = replay(plan, replace(times, reduce_s=0.0))
    assert replay(plan, times).span_s == plain.span_s + 3.0
    assert replay(plan, replace(times, reduce_overlap_frac=0.5)).span_s == plain.span_s + 1.5
    assert replay(plan, replace(times, reduce_overlap_frac=1.0)).span_s == plain.span_s + 1.0  # the last backward is 2 s long
    assert replay(plan, times).pipeline_s == plain.pipeline_s


def test_large_replay_has_the_closed_span() -> None:
    play = replay(order("1f1b", 512, 1, 1000), StageTimes(fwd_s=1.0, bwd_input_s=1.0, bwd_weight_s=1.0))
    assert play.pipeline_s == pytest.approx(float(span("1f1b", 512, 1, 1000, 1.0, 1.0, 1.0).span_s))


@pytest.mark.parametrize("field", ["fwd_s", "bwd_weight_s", "p2p_s"])
@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf")])
def test_wrong_times_are_refused(field: str, value: float) -> None:
    times = replace(StageTimes(fwd_s=1.0, bwd_input_s=1.0, bwd_weight_s=1.0), **{field: value})
    with pytest.raises(BadInput, match="stage times must be finite and not negative"):
        replay(order("1f1b", 2, 1, 2), times)


def test_an_order_that_waits_for_itself_is_refused() -> None:
    plan = order("1f1b", 2, 1, 2)
    backward_first = plan.kind.copy(), plan.f_cell.copy(), plan.b_cell.copy()
    for column in backward_first:
        column[0] = column[0][::-1]
    wrong = replace(plan, kind=backward_first[0], f_cell=backward_first[1], b_cell=backward_first[2])
    with pytest.raises(BadInput, match="the 1f1b order for pp=2, vpp=1, n_micro=2 waits for itself"):
        replay(wrong, StageTimes(fwd_s=1.0, bwd_input_s=1.0, bwd_weight_s=1.0))


@dataclass(frozen=True, kw_only=True)
class Cost:
    """The fields of a priced step that a replay reads."""

    micro_fwd_s: float = 1.0
    micro_bwd_s: float = 1.2
    micro_wgrad_s: float = 0.8
    p2p_s: float = 0.0
    bubble_s: float = 9.0
    exposed_dp_s: float = 0.5
    optimizer_s: float = 0.25
    overhead_s: float = 0.125


def test_replay_of_a_priced_step() -> None:
    plan = ParallelPlan(dp=2, pp=4, grad_accum=8, schedule="1f1b")
    played = replay_step(Cost(), plan)
    assert played.pipeline.pipeline_s == pytest.approx(8 * 3.0 + 3 * 3.0)
    assert played.step_time_s == pytest.approx(33.0 + 0.875)


def test_lighter_stages_shorten_the_replay_as_the_price_says() -> None:
    """A price that lets three stages be 10 percent lighter than the last has a bubble of 0.9 * 9 s, and so has its replay."""
    plan = ParallelPlan(dp=2, pp=4, grad_accum=8, schedule="1f1b")
    played = replay_step(Cost(bubble_s=8.1), plan)
    assert played.pipeline.pipeline_s == pytest.approx(8 * 3.0 + 8.1)
    assert played.pipeline.busy_s == pytest.approx([21.6, 21.6, 21.6, 24.0])


def test_a_batch_of_candidates_is_refused() -> None:
    with pytest.raises(BadInput, match="a replay plays one candidate, not 2; take one row of the plan and its cost"):
        replay_step(Cost(), ParallelPlan(pp=np.array([2, 4]), grad_accum=np.array([8, 8])))
