"""Closed forms of pipeline schedules: published bubbles, published memory, and equality with the replay."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from roofplan.costmodels.pipeline import in_flight, p2p_count, param_copies, span, uneven_span
from roofplan.scenarios.plan import Schedule
from roofplan.sim.schedule import order
from roofplan.sim.training import Replay, StageTimes, replay

SCHEDULES: tuple[Schedule, ...] = ("gpipe", "1f1b", "interleaved", "zb1p", "dualpipe")
EXACT = 1e-12


@st.composite
def cases(draw: st.DrawFn) -> tuple[Schedule, int, int, int]:
    """A schedule and legal counts for it."""
    schedule = draw(st.sampled_from(SCHEDULES))
    pp = draw(st.integers(1, 10))
    if schedule == "dualpipe":
        pp += pp % 2
        return schedule, pp, 1, 2 * pp + 2 * draw(st.integers(0, 10))
    if schedule == "interleaved":
        return schedule, pp, draw(st.integers(1, 4)), pp * draw(st.integers(1, 5))
    least = pp if schedule == "zb1p" else 1
    return schedule, pp, 1, draw(st.integers(least, least + 25))


def played(case: tuple[Schedule, int, int, int], f: float, b: float, w: float, c: float = 0.0, fused: float = 0.0) -> Replay:
    return replay(order(*case), StageTimes(fwd_s=f, bwd_input_s=b, bwd_weight_s=w, p2p_s=c, fused_s=fused))


@given(cases(), st.floats(0.3, 2), st.floats(0.3, 2), st.floats(0.3, 2), st.floats(0, 1))
@settings(derandomize=True, max_examples=300, deadline=None)
def test_closed_forms_equal_the_replay(case: tuple[Schedule, int, int, int], f: float, b: float, w: float, saved: float) -> None:
    """Any stage times; a dualpipe pair may be as short as the longer of its two halves."""
    together = f + b + w - saved * min(f, b + w) if case[0] == "dualpipe" else f + b + w
    form, play = span(*case, f, b, w, 0.0, together), played(case, f, b, w, fused=together)
    assert float(form.span_s) == pytest.approx(play.pipeline_s, rel=EXACT)
    assert float(form.bubble_s) == pytest.approx(play.bubble_s, abs=1e-9)
    assert float(in_flight(*case)) == pytest.approx(play.peak_in_flight.max(), rel=EXACT)


@given(cases(), st.floats(1, 1.6), st.floats(0.5, 1), st.floats(0, 0.2))
@settings(derandomize=True, max_examples=300, deadline=None)
def test_messages_on_the_critical_path(case: tuple[Schedule, int, int, int], b: float, w: float, c: float) -> None:
    """Exact while a message is under a fifth of a forward; dualpipe within 1 percent."""
    form, play = span(*case, 1.0, b, w, c), played(case, 1.0, b, w, c)
    near = 0.01 if case[0] == "dualpipe" else EXACT
    if case[0] != "interleaved" or c <= 1 / case[2]:
        assert float(form.span_s) == pytest.approx(play.pipeline_s, rel=near)


@given(cases(), st.floats(0.3, 2), st.floats(0.3, 2), st.floats(0.3, 2), st.floats(0, 2))
@settings(derandomize=True, max_examples=100, deadline=None)
def test_span_is_its_parts_and_never_below_the_work(case: tuple[Schedule, int, int, int], f: float, b: float, w: float, c: float) -> None:
    form = span(*case, f, b, w, c)
    work = case[3] * (f + b + w)
    assert float(form.span_s) == pytest.approx(work + float(form.bubble_s) + float(form.exposed_p2p_s), rel=1e-12)
    assert min(float(form.bubble_s), float(form.exposed_p2p_s)) >= 0
    if case[1] == 1:
        assert float(form.span_s) == pytest.approx(work)


@pytest.mark.parametrize(("pp", "vpp", "m"), [(4, 1, 8), (8, 1, 64), (8, 2, 64), (12, 4, 144)])
def test_bubble_of_megatron(pp: int, vpp: int, m: int) -> None:
    """Bubble over ideal time is (p-1)/m, and (p-1)/(m v) when interleaved. Source: Narayanan et al. 2021, equations 1 and 2."""
    form = span("interleaved" if vpp > 1 else "1f1b", pp, vpp, m, 1.0, 1.0, 1.0)
    assert float(form.bubble_s) / (m * 3.0) == pytest.approx((pp - 1) / (m * vpp))


def test_table_2_of_the_deepseek_v3_report() -> None:
    """1F1B (PP-1)(F+B), ZB1P (PP-1)(F+B-2W), DualPipe (PP/2-1)(FB+B-3W), where their B includes W; activations PP, PP, PP+1."""
    pp, m, f, ours, w = 16, 120, 1.0, 1.0, 0.8
    theirs, fb = ours + w, f + ours + w
    assert float(span("1f1b", pp, 1, m, f, ours, w).bubble_s) == pytest.approx((pp - 1) * (f + theirs))
    assert float(span("zb1p", pp, 1, m, f, ours, w).bubble_s) == pytest.approx((pp - 1) * (f + theirs - 2 * w))
    assert float(span("dualpipe", pp, 1, m, f, ours, w).bubble_s) == pytest.approx((pp / 2 - 1) * (fb + theirs - 3 * w))
    assert [float(in_flight(s, pp, 1, m)) for s in ("1f1b", "zb1p", "dualpipe")] == [pp, pp, pp + 1]
    assert [param_copies(s) for s in ("1f1b", "zb1p", "dualpipe")] == [1, 1, 2]


def test_step_of_deepseek_v3() -> None:
    """The published phases of one step, put through DualPipe, and what of the published bubble that explains.

    2,048 H800: pp=16, 120 micro-batches a pipeline. Rank 0 runs 23 forwards alone, 97 pairs, 23 backwards alone (8 of them whole)
    and 15 weight passes alone. Phases: 1F 1.13, 1B 1.99, 1W 0.48, 1F1B 13.95 s; bubble 2.06 s. The ideal schedule leaves about
    1 s idle; the rest of the published bubble is imbalance and waiting that the phase times do not hold.
    Source: Insights into DeepSeek-V3, ISCA 2025, table 4.
    """
    pp, m = 16, 120
    plan = order("dualpipe", pp, 1, m)
    kinds = np.bincount(plan.kind[0][plan.kind[0] >= 0], minlength=5)
    forward, split, weight, whole, pair = kinds.tolist()
    assert (forward, split, weight, whole, pair) == (23, 15, 15, 8, 97)
    f, w, fb = 1.13 / forward, 0.48 / weight, 13.95 / pair
    b = (1.99 - whole * w) / (split + whole)
    play = played(("dualpipe", pp, 1, m), f, b, w, fused=fb)
    assert play.busy_s[0] == pytest.approx(1.13 + 1.99 + 0.48 + 13.95)
    assert 0.4 < play.bubble_s / 2.06 < 0.7
    assert float(span("dualpipe", pp, 1, m, f, b, w, 0.0, fb).bubble_s) == pytest.approx(play.bubble_s)
    assert fb < f + b + w  # pairing hides some of the all-to-all


@pytest.mark.parametrize(
    ("schedule", "pp", "vpp", "m", "expected"),
    [
        ("gpipe", 4, 1, 32, 32), ("1f1b", 4, 1, 32, 4), ("1f1b", 4, 1, 2, 2), ("interleaved", 8, 1, 32, 8), ("zb1p", 8, 1, 32, 8),
        ("interleaved", 8, 4, 64, 8 * (1 + 7 / 32)), ("interleaved", 8, 4, 8, 8), ("dualpipe", 8, 1, 32, 9), ("dualpipe", 1, 1, 4, 1),
    ],
)  # fmt: skip
def test_activations_held(schedule: Schedule, pp: int, vpp: int, m: int, expected: float) -> None:
    """Interleaved: pp (1 + (pp-1)/(pp vpp)). Source: Korthikanti et al. 2022 section 4.2.3."""
    assert float(in_flight(schedule, pp, vpp, m)) == pytest.approx(expected)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_arrays_are_priced_like_numbers(schedule: Schedule) -> None:
    pp, vpp, m = np.array([1, 2, 4, 8]), np.array([1, 2, 1, 4]), np.array([16, 16, 32, 64])
    f = np.array([1.0, 2.0, 0.5, 1.0])
    form = span(schedule, pp, vpp, m, f, 1.5 * f, 0.5 * f, 0.01)
    for i in range(4):
        one = span(schedule, int(pp[i]), int(vpp[i]), int(m[i]), float(f[i]), float(1.5 * f[i]), float(0.5 * f[i]), 0.01)
        assert form.span_s[i] == pytest.approx(float(one.span_s), rel=1e-14)
        assert form.bubble_s[i] == pytest.approx(float(one.bubble_s), rel=1e-14, abs=1e-14)
        assert in_flight(schedule, pp, vpp, m)[i] == float(in_flight(schedule, int(pp[i]), int(vpp[i]), int(m[i])))


@given(st.lists(st.floats(0.5, 2), min_size=1, max_size=8), st.integers(1, 20))
@settings(derandomize=True, max_examples=100, deadline=None)
def test_the_slowest_stage_sets_the_pace(factors: list[float], m: int) -> None:
    """Exact for gpipe and for a slow last stage; an upper bound, at most a quarter above, for 1f1b."""
    slow, pp = np.array(factors), len(factors)
    times = StageTimes(fwd_s=1.0, bwd_input_s=1.0, bwd_weight_s=1.0)
    form = float(uneven_span(3.0 * slow, m))
    assert form == pytest.approx(replay(order("gpipe", pp, 1, m), times, slow=slow).pipeline_s, rel=EXACT)
    last_slowest = np.append(slow[:-1], slow.max())
    one_f_one_b = replay(order("1f1b", pp, 1, m), times, slow=last_slowest).pipeline_s
    assert float(uneven_span(3.0 * last_slowest, m)) == pytest.approx(one_f_one_b, rel=EXACT)
    one_f_one_b = replay(order("1f1b", pp, 1, m), times, slow=slow).pipeline_s
    assert 0.75 * form <= one_f_one_b <= form * (1 + EXACT)


def test_uneven_span_of_equal_stages_is_the_closed_form() -> None:
    for vpp in (1, 2, 4):
        expected = span("interleaved", 8, vpp, 32, 1.0, 1.0, 1.0).span_s
        assert float(uneven_span(np.full(8, 3.0), 32, vpp)) == pytest.approx(float(expected))


def test_p2p_count() -> None:
    plan = order("interleaved", 4, 2, 8)
    inner_forward = (plan.f_cell >= 0) & (plan.f_cell // 8 < 7)
    inner_backward = (plan.b_cell >= 0) & (plan.b_cell // 8 > 0)
    assert float(p2p_count(4, 2, 8)) == inner_forward.sum() + inner_backward.sum() == 2 * 8 * 7
    assert float(p2p_count(1, 4, 8)) == 0
