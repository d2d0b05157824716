"""Orders of pipeline schedules: every rank runs each of its cells once, in an order that can be run."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from roofplan.scenarios.errors import BadInput
from roofplan.scenarios.plan import Schedule
from roofplan.sim.schedule import BW, FB, KIND_NAMES, NONE, B, F, Order, W, order


def ops(plan: Order, rank: int) -> str:
    """One rank's order as text: F0 F1 BW0 …, by micro-batch."""
    words = []
    for kind, f, b in zip(plan.kind[rank], plan.f_cell[rank], plan.b_cell[rank], strict=True):
        if kind != NONE:
            words.append(KIND_NAMES[kind] + "+".join(str(cell % plan.n_micro) for cell in (f, b) if cell != NONE))
    return " ".join(words)


def test_gpipe_by_hand() -> None:
    assert ops(order("gpipe", 2, 1, 3), 0) == "F0 F1 F2 BW0 BW1 BW2"


def test_1f1b_by_hand() -> None:
    plan = order("1f1b", 4, 1, 5)
    assert ops(plan, 0) == "F0 F1 F2 F3 BW0 F4 BW1 BW2 BW3 BW4"
    assert ops(plan, 2) == "F0 F1 BW0 F2 BW1 F3 BW2 F4 BW3 BW4"
    assert ops(plan, 3) == "F0 BW0 F1 BW1 F2 BW2 F3 BW3 F4 BW4"


def test_zb1p_by_hand() -> None:
    plan = order("zb1p", 3, 1, 4)
    assert ops(plan, 0) == "F0 F1 F2 B0 W0 F3 B1 W1 B2 W2 B3 W3"
    assert ops(plan, 2) == "F0 B0 F1 B1 F2 B2 W0 F3 B3 W1 W2 W3"


def test_interleaved_by_hand() -> None:
    """Figure 4 of Narayanan et al. 2021, rank 0 of 4 with 2 chunks: 10 forwards before the first backward."""
    plan = order("interleaved", 4, 2, 8)
    first = [(int(c) // 8 // 4, int(c) % 8) for c in plan.f_cell[0][:10]]
    assert first == [(0, 0), (0, 1), (0, 2), (0, 3), (1, 0), (1, 1), (1, 2), (1, 3), (0, 4), (0, 5)]
    assert [int(np.flatnonzero(plan.kind[rank] == BW)[0]) for rank in range(4)] == [11, 9, 7, 5]
    assert order("interleaved", 4, 1, 6).kind.tolist() == order("1f1b", 4, 1, 6).kind.tolist()


def test_dualpipe_by_hand() -> None:
    """First rank of figure 5 of the DeepSeek-V3 report: 8 ranks, 20 micro-batches, 8 forwards before 3 split backwards."""
    plan = order("dualpipe", 8, 1, 20)
    assert ops(plan, 0) == (
        "F0 F1 F2 F3 F4 F5 F6 F10 B10 W10 F11 B11 W11 F12 B12 W12 F13 FB7+13 FB14+0 FB8+14 FB15+1 FB9+15 FB16+2 "
        "BW16 FB17+3 BW17 FB18+4 BW18 FB19+5 BW19 B6 W6 B7 W7 B8 W8 B9 W9"
    )


@st.composite
def plans(draw: st.DrawFn) -> Order:
    schedule: Schedule = draw(st.sampled_from(("gpipe", "1f1b", "interleaved", "zb1p", "dualpipe")))
    pp, m = draw(st.integers(1, 9)), draw(st.integers(1, 20))
    if schedule == "dualpipe":
        pp += pp % 2
        return order(schedule, pp, 1, 2 * pp + 2 * (m // 2))
    if schedule == "interleaved":
        return order(schedule, pp, draw(st.integers(1, 4)), pp * (1 + m // 5))
    return order(schedule, pp, 1, m)


@given(plans())
@settings(derandomize=True, max_examples=200, deadline=None)
def test_every_cell_once_and_in_causal_order(plan: Order) -> None:
    seen_f, seen_b = [], []
    for rank in range(plan.pp):
        at: dict[tuple[str, int], int] = {}
        for i, kind in enumerate(plan.kind[rank]):
            f, b = int(plan.f_cell[rank, i]), int(plan.b_cell[rank, i])
            assert (f != NONE) == (kind in (F, FB))
            assert (b != NONE) == (kind in (B, W, BW, FB))
            if f != NONE:
                at["F", f] = i
                seen_f.append(f)
            if kind in (B, BW, FB):
                assert at["F", b] < i
                at["B", b] = i
                seen_b.append(b)
            if kind == W:
                assert at["B", b] < i
                assert ("W", b) not in at
                at["W", b] = i
        weights = {cell for name, cell in at if name == "W"}
        assert weights == {int(c) for c, k in zip(plan.b_cell[rank], plan.kind[rank], strict=True) if k == B}
    assert len(seen_f) == len(set(seen_f)) == plan.pp * plan.vpp * plan.n_micro
    assert sorted(seen_b) == sorted(seen_f)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("1f1b", 0, 1, 4), "pp=0, vpp=1, n_micro=4: all must be at least 1"),
        (("1f1b", 4, 2, 4), "vpp=2 needs schedule=interleaved, not 1f1b; set vpp=1"),
        (("interleaved", 4, 2, 6), r"n_micro=6 is not a multiple of pp=4, as the interleaved schedule needs; nearest: 4, 8"),
        (("interleaved", 4, 2, 2), r"nearest: 4$"),
        (("dualpipe", 3, 1, 8), "dualpipe needs pp even and n_micro even and at least 2\\*pp; pp=3, n_micro=8"),
        (("dualpipe", 4, 1, 6), "at least 2\\*pp; pp=4, n_micro=6"),
        (("1f1b", 1024, 1, 10000), "is over the 6,666,666 micro-batch passes that a replay holds"),
    ],
)
def test_counts_a_schedule_cannot_run(args: tuple[Schedule, int, int, int], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        order(*args)
