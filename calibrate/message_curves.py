"""How each kind of message is fitted: its trend, starting coefficients, correction axes and stiffness, bound to the rows measured."""

from __future__ import annotations

from collections.abc import Mapping

from ..costmodels.arrays import Array, Rows
from ..costmodels.collective_curve import (
    Dispatch,
    collective_coordinates,
    collective_trend_s,
    dispatch_coordinates,
    dispatch_element_bytes,
    dispatch_trend_s,
    wire_bytes,
)
from ..costmodels.custom_all_reduce import algorithm, custom_all_reduce_coordinates, custom_all_reduce_trend_s, start_coefficients
from ..scenarios.hardware import Accelerator, Link
from .curves import Bound, number, take
from .tables import Columns

CUSTOM_STRENGTHS, CUSTOM_BENDS = (0.01, 0.001, 0.0), (0.01, 0.0, 0.0)
DISPATCH_STRENGTHS, DISPATCH_BENDS = (0.3, 0.01, 0.01), (0.3, 0.0, 0.0)
"""Stiffness of each axis of a correction. Nothing ties one algorithm of an all-reduce to another."""

COLLECTIVE = {"launch_s": 5e-6, "hop_s": 2e-6, "link_frac": 0.7}
DISPATCH = {"launch_s": 5e-5, "token_s": 1e-9, "link_frac": 0.4}


def collective(key: str, op: str, rows: Columns, link: Link, source: str) -> Bound:
    """A collective inside one node."""
    size, ranks = rows["message_bytes"], rows["num_gpus"]

    def trend(c: Mapping[str, float], at: Rows) -> Array:
        return collective_trend_s(op, size[at], ranks[at], link.bytes_per_s, c)

    return Bound(
        key=key,
        source=source,
        seconds=rows["seconds"],
        trend=trend,
        coordinates=collective_coordinates(size, ranks),
        floor_s=wire_bytes(op, size, ranks) / link.bytes_per_s,
        start=COLLECTIVE,
        strengths=(1e-4, 1e-4),
        bends=(1e-3, 0.0),
        shapes=number(ranks),
        size=size,
    )


def custom_all_reduce(key: str, rows: Columns, gpu: Accelerator, link: Link, source: str) -> Bound:
    """A serving engine's own all-reduce inside one node."""
    size, ranks, card = rows["message_bytes"], rows["num_gpus"], gpu.compute_capability

    def trend(c: Mapping[str, float], at: Rows) -> Array:
        return custom_all_reduce_trend_s(size[at], ranks[at], link.bytes_per_s, card, c)

    return Bound(
        key=key,
        source=source,
        seconds=rows["seconds"],
        trend=trend,
        coordinates=custom_all_reduce_coordinates(size, ranks, card),
        floor_s=wire_bytes("all_reduce", size, ranks) / link.bytes_per_s,
        start=start_coefficients(algorithm(size, ranks, card)),
        strengths=CUSTOM_STRENGTHS,
        bends=CUSTOM_BENDS,
        shapes=number(ranks),
        size=size,
    )


def dispatch(key: str, rows: Columns, link: Link, source: str) -> Bound:
    """Dispatch or combine of expert parallelism inside one node; dispatched tokens travel as fp8, combined ones as bf16."""
    work = Dispatch(
        tokens=rows["num_tokens"],
        hidden=rows["hidden_size"],
        topk=rows["topk"],
        ep=rows["ep_size"],
        experts=rows["num_experts"],
        element_bytes=dispatch_element_bytes(key.rpartition(".")[2]),
    )

    def trend(c: Mapping[str, float], at: Rows) -> Array:
        return dispatch_trend_s(take(work, at), link.bytes_per_s, c)

    return Bound(
        key=key,
        source=source,
        seconds=rows["seconds"],
        trend=trend,
        coordinates=dispatch_coordinates(work),
        floor_s=work.remote_bytes / link.bytes_per_s,
        start=DISPATCH,
        strengths=DISPATCH_STRENGTHS,
        shapes=number(work.hidden, work.topk, work.experts),
        size=work.tokens,
        bends=DISPATCH_BENDS,
    )
