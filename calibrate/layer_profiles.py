"""Reads layer profiles of a vLLM engine (``<gpu>/<model>/<variant>/tp<N>/*.csv`` beside a ``meta.yaml``) as measurement tables."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..costmodels.gemm_curve import gemm_bytes
from ..scenarios import registry
from ..scenarios.errors import BadFile, BadInput
from ..scenarios.hardware import Accelerator
from ..scenarios.model import ModelSpec
from .tables import DTYPES, pandas, read_frame

Say = Callable[[str], None]
Frames = dict[str, list[Any]]

META = "meta.yaml"
COLUMNS = {
    "dense.csv": ("layer", "tokens", "time_us"),
    "per_sequence.csv": ("layer", "sequences", "time_us"),
    "attention.csv": ("prefill_chunk", "kv_prefill", "n_decode", "kv_decode", "time_us"),
    "moe.csv": ("tokens", "activated_experts", "time_us"),
    "skew.csv": ("n", "nb", "pc", "kp", "kv_big", "kv_mean", "t_mean_us", "t_skew_us"),
}
"""File -> the columns it must have."""
WEIGHTS = {"bf16": "bfloat16", "fp16": "float16", "fp8": "fp8"}
"""Number formats that name a variant -> as the tables write them."""
MOE_KERNEL = "fused_moe"
STRAY_FRAC = 0.05


@dataclass(frozen=True, slots=True)
class Profile:
    """One model on one card at one tensor-parallel degree; ``common`` are the columns that all its rows share."""

    folder: Path
    model: ModelSpec
    gpu: Accelerator
    tp: int
    dtype: str
    kv_dtype: str
    common: dict[str, str]


def is_profile(folder: Path) -> bool:
    """Whether a folder holds layer profiles, at any depth."""
    return any(next(path.parent.glob("tp*/dense.csv"), None) for path in folder.rglob(META))


def profile_tables(folder: Path, say: Say = lambda _: None) -> dict[str, Any]:
    """Every profile under a folder as tables of products, passes, attention and experts; raises BadFile for a malformed one.

    Norms, activations and rotary embeddings find their inputs in L2, as they do in the engine, and are a table of their own.
    """
    parts: Frames = {}
    for meta in sorted(folder.rglob(META)):
        for place in sorted(meta.parent.glob("tp*/")):
            profile = _profile(meta, place)
            say(f"{profile.gpu.name} {profile.model.name} tp{profile.tp}")
            _products(profile, parts, say)
            _passes(profile, parts)
            _attention(profile, parts)
            _uneven(profile, parts)
            _experts(profile, parts)
    pd = pandas()
    return {table: pd.concat(frames, ignore_index=True) for table, frames in parts.items()}


def _profile(meta: Path, place: Path) -> Profile:
    """What was run, from ``meta.yaml`` and the folder's name; the shapes come from the model's own description."""
    try:
        text = meta.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise BadFile(f"{meta}: cannot be read: {error}") from None
    found = {key: value.strip().strip("'\"") for key, value in re.findall(r"^([a-z_]+):[ \t]+(\S.*)$", text, re.MULTILINE)}
    missing = [key for key in ("gpu", "model", "variant", "vllm_version") if key not in found]
    if missing:
        raise BadFile(f"{meta}: lacks {', '.join(missing)}; a layer profile names gpu, model, variant and vllm_version")
    weights, _, cache = found["variant"].partition("-kv")
    if weights not in WEIGHTS or cache not in ("", "fp8", *WEIGHTS):
        raise BadFile(f"{meta}: variant={found['variant']!r} is not known; legal: {', '.join(WEIGHTS)}, each with -kvfp8 or without")
    degree = place.name.removeprefix("tp")
    if not degree.isdecimal() or int(degree) < 1:
        raise BadFile(f"{place}: not a tensor-parallel degree; such folders are called tp1, tp2 …")
    try:
        model, gpu = registry.model(found["model"]), registry.accelerator(found["gpu"])
    except BadInput as error:
        raise BadFile(f"{meta}: {error}") from None
    tp = int(degree)
    if model.n_heads % tp or model.ffn_hidden % tp:
        raise BadFile(f"{place}: {model.name} has {model.n_heads} heads and {model.ffn_hidden} FFN columns, which tp={tp} does not divide")
    version = {"gpu": gpu.name, "framework": "vLLM", "framework_version": found["vllm_version"]}
    return Profile(place, model, gpu, tp, WEIGHTS[weights], "fp8" if cache == "fp8" else "bfloat16", version)


def _read(profile: Profile, name: str) -> Any:
    """One file of a profile; BadFile where a column is missing or holds no numbers, or a time is not positive."""
    path = profile.folder / name
    frame = read_frame(path, COLUMNS[name])
    *_, time = COLUMNS[name]
    for column in COLUMNS[name][-2 if frame.columns[0] == "layer" else 0 :]:
        values = frame[column]
        if values.dtype.kind not in "iuf" or not np.isfinite(values).all() or (values < 0).any():
            raise BadFile(f"{path}: column {column} must hold numbers from 0 up in every row")
    if not (frame[time] > 0).all():
        raise BadFile(f"{path}: column {time} must be positive in every row")
    return frame.rename(columns={time: "latency_us"})


def _products(profile: Profile, parts: Frames, say: Say) -> None:
    """Projections and the head, less rows faster than their bytes can come from memory: L2 served them, or their clock was misread.

    A layer that has more than STRAY_FRAC of them was in L2 whole and is left out.
    """
    m, tp = profile.model, profile.tp
    heads, kv_heads = m.n_heads // tp, -(-m.n_kv_heads // tp)
    shapes = {
        "qkv_proj": (heads * m.qk_dim + kv_heads * (m.qk_dim + m.v_dim), m.hidden),
        "o_proj": (m.hidden, heads * m.v_dim),
        "gate_up_proj": (2 * m.ffn_hidden // tp, m.hidden),
        "down_proj": (m.hidden, m.ffn_hidden // tp),
        "lm_head": (-(-m.vocab // tp), m.hidden),
    }
    dense = _read(profile, "dense.csv").rename(columns={"tokens": "m"})
    head = _read(profile, "per_sequence.csv").rename(columns={"sequences": "m"})
    for frame in (dense, head):
        for layer, rows in frame.groupby("layer"):
            if layer not in shapes:
                continue
            n, k = shapes[str(layer)]
            dtype = "bfloat16" if layer == "lm_head" else profile.dtype
            moved = gemm_bytes(rows["m"].to_numpy(), n, k, DTYPES.get(dtype, dtype))
            real = rows["latency_us"].to_numpy() * 1e-6 >= moved / profile.gpu.hbm_bytes_per_s
            if real.mean() < 1 - STRAY_FRAC:
                say(f"{layer} of {m.name} tp{tp} left out: faster than memory, read from L2")
                continue
            rows = rows[real].drop(columns="layer")
            parts.setdefault("aic_gemm", []).append(rows.assign(dtype=dtype, n=n, k=k, kernel=str(layer), **profile.common))


def _passes(profile: Profile, parts: Frames) -> None:
    """Element-wise kernels by the bytes they move in 16 bits: the activation reads two and writes one, of the two norms that are one row
    the first (no residual) reads and writes one and the second two each, the rotary embedding reads and writes queries and keys."""
    m, tp = profile.model, profile.tp
    a_token = {
        "act_fn": 6 * m.ffn_hidden // tp,
        "layernorm": 6 * m.hidden,
        "rotary_emb": 4 * (m.n_heads // tp + -(-m.n_kv_heads // tp)) * m.head_dim,
    }
    for layer, rows in _read(profile, "dense.csv").groupby("layer"):
        if layer in a_token:
            found = rows.assign(num_bytes=a_token[str(layer)] * rows["tokens"], kernel=str(layer), **profile.common)
            parts.setdefault("layer_pass", []).append(found.drop(columns=["layer", "tokens"]))


def _attention(profile: Profile, parts: Frames) -> None:
    """Prompt chunks alone, decodes alone, and both in one call."""
    m = profile.model
    rows = _read(profile, "attention.csv").assign(
        kv_cache_dtype=profile.kv_dtype, num_heads=m.n_heads // profile.tp, num_kv_heads=-(-m.n_kv_heads // profile.tp),
        head_dim=m.head_dim, window_size=0, kernel="attention", **profile.common,
    )  # fmt: skip
    names = {"prefill_chunk": "seq_len", "kv_prefill": "prefix_len", "n_decode": "batch_size", "kv_decode": "kv_len"}
    chunk, decodes = rows["prefill_chunk"] > 0, rows["n_decode"] > 0
    alone = rows[chunk & ~decodes].set_index(["prefill_chunk", "kv_prefill"])["latency_us"].rename("alone_us")
    alone = alone[~alone.index.duplicated()]
    kinds = {
        "aic_attention_context": rows[chunk & ~decodes].assign(n_decode=1).drop(columns="kv_decode"),
        "aic_attention_generation": rows[~chunk & decodes].drop(columns=["prefill_chunk", "kv_prefill"]),
        "attention_mixed": rows[chunk & decodes].join(alone, on=["prefill_chunk", "kv_prefill"]).dropna(subset="alone_us"),
    }
    for table, part in kinds.items():
        if len(part):
            parts.setdefault(table, []).append(part.rename(columns=names))


def _uneven(profile: Profile, parts: Frames) -> None:
    """Calls of a fresh prompt chunk and decodes, ``n_long`` of them with ``longest`` tokens cached; and the call with all at the mean."""
    if not (profile.folder / "skew.csv").exists():
        return
    rows = _read(profile, "skew.csv")
    names = {"n": "batch_size", "nb": "n_long", "pc": "seq_len", "kv_mean": "kv_len", "kv_big": "longest", "t_mean_us": "even_us"}
    fresh = rows[(rows["pc"] > 0) & (rows["kp"] == 0)][[*names, "latency_us"]].rename(columns=names)
    own = {"kv_cache_dtype": profile.kv_dtype, "head_dim": profile.model.head_dim, "kernel": "attention"}
    parts.setdefault("attention_uneven", []).append(fresh.assign(**own, **profile.common))


def _experts(profile: Profile, parts: Frames) -> None:
    """The routed experts of one rank. Pairs dealt in turn over ``a`` active experts are the balanced routing of a layer that has ``a``."""
    if not (profile.folder / "moe.csv").exists():
        return
    m = profile.model
    rows = _read(profile, "moe.csv").rename(columns={"tokens": "num_tokens", "activated_experts": "num_experts"})
    parts.setdefault("aic_moe", []).append(
        rows.assign(
            dtype=profile.dtype, kernel=MOE_KERNEL, hidden_size=m.hidden, inter_size=m.moe_ffn_hidden, topk=m.top_k, tp_size=1, ep_size=1,
            routing="balanced", **profile.common,
        )
    )  # fmt: skip
