"""Prices measured rows with a calibration, through the same calls a plan makes, and reports the errors by table and GPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..costmodels.arrays import Array, Rows
from ..costmodels.collectives import Network
from ..costmodels.mixed_attention import key_s, mixed_decode_s
from ..costmodels.moe_curve import SKEWS
from ..costmodels.roofline import Roofline
from ..scenarios.calibration import Calibration, load_calibration
from ..scenarios.errors import UnknownName
from ..scenarios.hardware import Accelerator
from .foreign import calls, engines
from .rows import bind, gpu_name, other_tables, split, stream_bytes
from .tables import DTYPES, Columns, columns_of, read_frame


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """Rows of one table and family on one GPU: measured and predicted seconds, the interval's half width (NaN: none is stated).

    ``n_skipped`` rows have no price, for the ``reason`` given.
    """

    table: str
    gpu: str
    family: str
    rows: Columns
    measured_s: Array
    predicted_s: Array
    interval_frac: Array
    n_skipped: int = 0
    reason: str = ""


def check_rows(tables: dict[str, Any], gpu: Accelerator, spellings: list[str], calibration: Calibration | None = None) -> Iterator[Checked]:
    """Price every row of one GPU; rows without a price are counted as skipped, with the reason."""
    fits = calibration or load_calibration(gpu)
    roofline, network = engines(gpu, fits)
    for table, frame in tables.items():
        own = frame[frame["gpu"].isin(spellings)]
        left = set(own.index)
        for family, part in split(table, own, gpu):
            if family in fits.families and len(part):
                rows = columns_of(part)
                predicted = price(family, rows, roofline, network)
                width = interval(family, part, predicted, roofline, network)
                yield _checked(table, gpu, family, rows, rows["latency_us"] * 1e-6, predicted, width)
            elif len(part):
                yield skipped(table, gpu.name, len(part), f"the calibration of {gpu.name} has no {family}", family)
            left -= set(part.index)
        for call in calls(table, own, roofline, network):
            left -= set(call.rows.index)
            if call.reason:
                yield skipped(table, gpu.name, len(call.rows), call.reason, call.family)
                continue
            predicted, nothing = call.price(), np.full(len(call.seconds), np.nan)
            width = roofline.interval_frac(call.family, predicted) if call.family in fits.families else nothing
            yield _checked(table, gpu, call.family, columns_of(call.rows), call.seconds, predicted, width)
        if left:
            yield skipped(table, gpu.name, len(left), UNPRICED.get(table, "no call prices these rows"))


UNPRICED = {
    "aic_moe": f"routing is none of {', '.join(SKEWS)}",
    "attention_mixed": "a prompt after a past, or decodes too few to tell their own price from the prompt's",
    "attention_uneven": "more than one decode in eight is long",
    "device_copy": "copies that stay in the L2 cache tell nothing of memory",
    "vidur_mlp": "element-wise work that stays in the L2 cache tells nothing of memory",
    "vidur_network": "neither an all-reduce nor a send",
}
"""Table -> why rows of it have no price."""


def skipped(table: str, gpu: str, n: int, reason: str, family: str = "") -> Checked:
    """Rows without a price."""
    none = np.zeros(0)
    return Checked(
        table=table, gpu=gpu, family=family, rows={}, measured_s=none, predicted_s=none, interval_frac=none, n_skipped=n, reason=reason
    )


def unpriced_tables(tables: dict[str, Any], folder: Path) -> Iterator[Checked]:
    """Rows of GPUs that no data file describes, and of files that hold no kernels."""
    for table, frame in tables.items():
        for spelling, part in frame.groupby("gpu"):
            if card(str(spelling)) == "":
                yield skipped(table, str(spelling), len(part), f"no GPU called {spelling!r} is known")
    for path, (column, why) in other_tables(folder).items():
        for spelling, part in read_frame(path, (column,)).groupby(column):
            yield skipped(path.stem, card(str(spelling)) or str(spelling), len(part), why)


def card(spelling: str) -> str:
    """The accelerator a table means; empty if none is known by this name."""
    try:
        return gpu_name(spelling)
    except UnknownName:
        return ""


def _checked(table: str, gpu: Accelerator, family: str, rows: Columns, measured: Array, predicted: Array, width: Array) -> Checked:
    return Checked(table=table, gpu=gpu.name, family=family, rows=rows, measured_s=measured, predicted_s=predicted, interval_frac=width)


def price(family: str, rows: Columns, roofline: Roofline, network: Network) -> Array:
    """Seconds of each row of a family by the public calls of Roofline and Network."""
    kind, _, rest = family.partition(".")
    if kind == "gemm":
        return roofline.gemm_s(rows["m"], rows["n"], rows["k"], rest)
    if family.startswith("attention.mixed"):
        return mixed_decode_s(
            roofline, batch=rows["batch_size"], kv_tokens=rows["kv_len"], n_heads=rows["num_heads"], n_kv_heads=rows["num_kv_heads"],
            head_dim=float(rows["head_dim"][0]), chunk_tokens=rows["seq_len"], kv_dtype="fp8" if family.endswith("fp8") else "bf16",
        )  # fmt: skip
    if family.startswith("attention.uneven"):
        return rows["even_us"] * 1e-6 + key_s(roofline.calibration) * (rows["longest"] - rows["kv_len"])
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
    if kind == "pass":
        return roofline.pass_s(rows["num_bytes"])
    if kind == "moe_alltoall":
        backend, phase = rest.split(".")
        tokens, hidden, topk, ep = (rows[n] for n in ("num_tokens", "hidden_size", "topk", "ep_size"))
        return network.dispatch_s(tokens, hidden, topk, ep, backend, phase, rows["num_experts"])
    if family == "collective.p2p":
        return network.p2p_s(rows["bytes"], 1)
    if kind == "custom_allreduce":
        return network.custom_all_reduce_s(rows["message_bytes"], rows["num_gpus"], rest)
    call: Callable[..., Array] = getattr(network, f"{rest.split('.')[0]}_s")
    return call(rows["message_bytes"], rows["num_gpus"], 1, **({"dtype": "int8"} if rest == "all_reduce.int8" else {}))


def interval(family: str, frame: Any, price_s: Array, roofline: Roofline, network: Network) -> Array:
    """Half widths of the 80 % intervals of rows' prices, wider outside the sizes measured."""
    coordinates = bind(family, frame, roofline.gpu, network.intra, "").coordinates
    return roofline.interval_frac(family, price_s, roofline.octaves_beyond(family, *coordinates))


def _attention(decode: bool, latent: bool, kv_dtype: str, at: Rows, every: Columns, roofline: Roofline) -> tuple[Rows, Array]:
    rows = {name: values[at] for name, values in every.items()}
    tokens, heads = rows["kv_len"] if decode else rows["seq_len"], rows["num_heads"]
    past = 0.0 if decode else np.nan_to_num(rows.get("prefix_len", 0.0))
    kv_heads = rows["num_kv_heads"] if not latent else np.ones_like(heads) if decode else heads
    dims = (rows["head_dim"],) * 2 if not latent else (576.0, 512.0) if decode else (192.0, 128.0)
    return at, roofline.attention_s(
        batch=rows["batch_size"], q_tokens=1 if decode else tokens, kv_tokens=tokens + past, n_heads=heads, n_kv_heads=kv_heads,
        qk_dim=dims[0], v_dim=dims[1], window_tokens=rows.get("window_size", 0.0), kv_dtype=kv_dtype,
        phase="decode" if decode else "prefill", kernel="measured",
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
    for (table, gpu), mine in _grouped(checked):
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


def coverage(checked: list[Checked]) -> dict[str, dict[str, float]]:
    """``{table: {gpu: share}}`` of rows inside their 80 % interval, where intervals are stated."""
    out: dict[str, dict[str, float]] = {}
    for (table, gpu), mine in _grouped(checked):
        held = np.concatenate([np.abs(c.predicted_s / c.measured_s - 1) <= c.interval_frac for c in mine])
        stated = ~np.isnan(np.concatenate([c.interval_frac for c in mine]))
        if stated.any():
            out.setdefault(table, {})[gpu] = float(np.mean(held[stated]))
    return out


def reasons(checked: list[Checked]) -> list[dict[str, Any]]:
    """Why rows have no price: ``[{table, gpu, n, reason}]``."""
    counts: dict[tuple[str, str, str], int] = {}
    for c in checked:
        if c.n_skipped:
            counts[c.table, c.gpu, c.reason] = counts.get((c.table, c.gpu, c.reason), 0) + c.n_skipped
    return [{"table": t, "gpu": g, "n": n, "reason": why} for (t, g, why), n in counts.items()]


def _grouped(checked: list[Checked]) -> list[tuple[tuple[str, str], list[Checked]]]:
    keys = dict.fromkeys((c.table, c.gpu) for c in checked)
    return [(key, [c for c in checked if (c.table, c.gpu) == key]) for key in keys]
