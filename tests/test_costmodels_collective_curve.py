"""Bytes on the wire of collectives and of expert dispatch, by hand."""

from __future__ import annotations

import numpy as np
import pytest
from roofplan.costmodels.collective_curve import (
    Dispatch,
    collective_trend_s,
    dispatch_coordinates,
    dispatch_element_bytes,
    dispatch_trend_s,
    rising,
    wire_bytes,
)

C = {"launch_s": 1e-6, "hop_s": 2e-6, "link_frac": 0.5, "sharpness": 1.0}


def test_wire_bytes() -> None:
    size, n = np.array(800.0), np.array(8.0)
    assert wire_bytes("all_reduce", size, n) == 800
    assert wire_bytes("all_gather", size, n) == wire_bytes("all_to_all", size, n) == 700
    assert wire_bytes("all_reduce", size, np.array(1.0)) == wire_bytes("reduce_scatter", size, np.array(1.0)) == 0


def test_collective_trend_by_hand() -> None:
    got = collective_trend_s("all_gather", np.array(8e9), np.array(8.0), 1e11, C)
    assert got == pytest.approx(1e-6 + 3 * 2e-6 + 7e9 / 5e10)


def dispatch(tokens: float) -> Dispatch:
    return Dispatch(
        tokens=np.array(tokens), hidden=np.array(7168.0), topk=np.array(8.0), ep=np.array(8.0), experts=np.array(256.0), element_bytes=1.0
    )


def test_a_token_crosses_once_per_rank() -> None:
    assert dispatch(100).remote_bytes == pytest.approx(100 * 7 * (1 - (7 / 8) ** 8) * 7168)
    assert dispatch_element_bytes("dispatch") == 1
    assert dispatch_element_bytes("combine") == 2


def test_dispatch_trend_and_coordinates() -> None:
    c = {"launch_s": 1e-5, "token_s": 1e-9, "link_frac": 0.5, "sharpness": 1.0}
    assert dispatch_trend_s(dispatch(0), 1e11, c) == pytest.approx(1e-5)
    assert dispatch_trend_s(dispatch(1e6), 1e11, c) == pytest.approx(1e-5 + 1e-3 + float(dispatch(1e6).remote_bytes) / 5e10)
    ranks = 7 * (1 - (7 / 8) ** 8)
    assert [float(x) for x in dispatch_coordinates(dispatch(5))] == pytest.approx([5, 7168 * ranks, 256])


def test_rising_pools_falls_to_their_median() -> None:
    column = np.array([1.0, 9.0, 2.0, 2.0, 3.0])[:, None]
    assert rising(column, np.zeros((5, 1)))[:, 0].tolist() == [1, 2, 2, 2, 3]
    assert np.array_equal(rising(np.array([[1.0, 2.0], [1.0, 5.0]]), np.zeros((2, 2))), [[1, 2], [1, 5]])
    noisy = np.random.default_rng(0).normal(size=(200, 3)).cumsum(axis=0)
    assert (np.diff(rising(noisy, np.zeros((200, 3))), axis=0) >= 0).all()


def test_rising_keeps_falls_between_pieces() -> None:
    column, pieces = np.array([1.0, 9.0, 2.0, 3.0, 2.5])[:, None], np.array([0, 0, 1, 1, 1])[:, None]
    assert rising(column, pieces)[:, 0].tolist() == [1, 9, 2, 2.75, 2.75]
