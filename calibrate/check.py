"""Prices measured rows with a calibration, through the same calls a plan makes, and reports the errors by table and GPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..costmodels.arrays import Array, Rows
from ..costmodels.collectives import Network
from ..costmodels.roofline import Roofline
from ..scenarios import registry
from ..scenarios.calibration import Calibration, load_calibration
from ..scenarios.hardware import Accelerator
from .rows import load_tables, split, stream_bytes
from .tables import DTYPES, Columns, columns_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """Rows of one table and family on one GPU: measured and predicted seconds, the interval's half width, rows no family prices."""

    table: str
    gpu: str
    family: str
    rows: Columns
    measured_s: Array
    predicted_s: Array
    interval_frac: Array
    n_skipped: int


def check_rows(tables: dict[str, Any], gpu: Accelerator, spellings: list[str], calibration: Calibration | None = None) -> Iterator[Checked]:
    """Price every row of one GPU; rows of a family the calibration lacks are counted as skipped."""
    fits = calibration or load_calibration(gpu)
    roofline = Roofline(gpu, fits)
    cluster = registry.cluster(gpu.name, 8)
    network = Network(cluster, gpu, registry.link(cluster.intra), registry.link(cluster.inter), fits)
    for table, frame in tables.items():
        own = frame[frame["gpu"].isin(spellings)]
        taken = 0
        for family, part in split(table, own, gpu):
            taken += len(part)
            rows = columns_of(part)
            measured = rows["latency_us"] * 1e-6
            empty = np.zeros(0)
            if family not in fits.families:
                yield Checked(
                    table=table,
                    gpu=gpu.name,
                    family=family,
                    rows={},
                    measured_s=empty,
                    predicted_s=empty,
                    interval_frac=empty,
                    n_skipped=len(part),
                )
            elif len(part):
                predicted = price(family, rows, roofline, network)
                width = roofline.interval_frac(family, predicted)
                yield Checked(
                    table=table,
                    gpu=gpu.name,
                    family=family,
                    rows=rows,
                    measured_s=measured,
                    predicted_s=predicted,
                    interval_frac=width,
                    n_skipped=0,
                )
        if taken < len(own):
            yield Checked(
                table=table, gpu=gpu.name, family="", rows={}, measured_s=np.zeros(0), predicted_s=np.zeros(0), interval_frac=np.zeros(0),
                n_skipped=len(own) - taken,
            )  # fmt: skip


def price(family: str, rows: Columns, roofline: Roofline, network: Network) -> Array:
    """Seconds of each row of a family by the public calls of Roofline and Network."""
    kind, _, rest = family.partition(".")
    if kind == "gemm":
        return roofline.gemm_s(rows["m"], rows["n"], rows["k"], rest)
    if kind in ("attention", "mla"):
        parts = [
            _attention(rest.startswith("decode"), kind == "mla", DTYPES.get(kv, kv), at, rows, roofline)
            for kv, at in _by(rows["kv_cache_dtype"])
        ]
        return _join(len(rows["latency_us"]), parts)
    if kind == "moe":
        return _moe(family, rows, roofline)
    if kind == "stream":
        return roofline.stream_s(stream_bytes(rows))
    if kind == "moe_alltoall":
        return network.dispatch_s(rows["num_tokens"], rows["hidden_size"], rows["topk"], rows["ep_size"], *rest.split("."))
    if family == "collective.p2p":
        return network.p2p_s(rows["bytes"], 1)
    if kind == "custom_allreduce":
        return network.custom_all_reduce_s(rows["message_bytes"], rows["num_gpus"], rest)
    call: Callable[..., Array] = getattr(network, f"{rest.split('.')[0]}_s")
    return call(rows["message_bytes"], rows["num_gpus"], 1, **({"dtype": "int8"} if rest == "all_reduce.int8" else {}))


def _attention(decode: bool, latent: bool, kv_dtype: str, at: Rows, every: Columns, roofline: Roofline) -> tuple[Rows, Array]:
    rows = {name: values[at] for name, values in every.items()}
    tokens, heads = rows["kv_len"] if decode else rows["seq_len"], rows["num_heads"]
    kv_heads = rows["num_kv_heads"] if not latent else np.ones_like(heads) if decode else heads
    dims = (rows["head_dim"],) * 2 if not latent else (576.0, 512.0) if decode else (192.0, 128.0)
    return at, roofline.attention_s(
        batch=rows["batch_size"], q_tokens=1 if decode else tokens, kv_tokens=tokens, n_heads=heads, n_kv_heads=kv_heads, qk_dim=dims[0],
        v_dim=dims[1], window_tokens=rows.get("window_size", 0.0), kv_dtype=kv_dtype, phase="decode" if decode else "prefill",
    )  # fmt: skip


def _moe(family: str, rows: Columns, roofline: Roofline) -> Array:
    _, dtype, kernel = family.split(".")
    label = ["/".join(map(str, values)) for values in zip(*(rows[n] for n in MOE_CONSTANTS), strict=True)]
    parts = []
    for _, at in _by(np.array(label)):
        hidden, inter, topk, experts, routing = (rows[n][at][0] for n in MOE_CONSTANTS)
        price = roofline.moe_layer_s(
            rows["num_tokens"][at], hidden=float(hidden), inter=float(inter), topk=float(topk), n_experts=float(experts),
            tp=rows["tp_size"][at], ep=rows["ep_size"][at], routing=str(routing), dtype=dtype, kernel=kernel,
        )  # fmt: skip
        parts.append((at, price))
    return _join(len(label), parts)


MOE_CONSTANTS = ("hidden_size", "inter_size", "topk", "num_experts", "routing")
"""Columns that are one value per call of ``Roofline.moe_layer_s``."""


def _by(labels: NDArray[Any]) -> list[tuple[str, Rows]]:
    """Each distinct label and the rows that carry it."""
    return [(str(label), np.nonzero(labels == label)[0]) for label in np.unique(labels)]


def _join(n: int, parts: list[tuple[Rows, Array]]) -> Array:
    out = np.zeros(n)
    for at, values in parts:
        out[at] = values
    return out


def summary(checked: list[Checked]) -> dict[str, dict[str, dict[str, float]]]:
    """``{table: {gpu: {n, median_ape, mape, p90_ape, n_skipped}}}``; errors are fractions of the measured time."""
    out: dict[str, dict[str, dict[str, float]]] = {}
    for table, gpu in dict.fromkeys((c.table, c.gpu) for c in checked):
        mine = [c for c in checked if (c.table, c.gpu) == (table, gpu)]
        measured, predicted = (np.concatenate([getattr(c, f) for c in mine]) for f in ("measured_s", "predicted_s"))
        error = np.abs(predicted - measured) / measured if len(measured) else np.zeros(0)
        some = len(error) > 0
        out.setdefault(table, {})[gpu] = {
            "n": len(error),
            "median_ape": float(np.median(error)) if some else 0.0,
            "mape": float(np.mean(error)) if some else 0.0,
            "p90_ape": float(np.quantile(error, 0.9)) if some else 0.0,
            "n_skipped": sum(c.n_skipped for c in mine),
        }
    return out


__all__ = ["Checked", "check_rows", "load_tables", "price", "summary"]
