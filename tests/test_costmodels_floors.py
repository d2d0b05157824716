"""No price of any kernel family, on any card, at any size to a million tokens and past every measured one, beats its physical floor."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from roofplan.calibrate.check import price
from roofplan.calibrate.foreign import engines
from roofplan.calibrate.rows import bind
from roofplan.costmodels.moe_curve import SKEWS
from roofplan.scenarios import registry
from roofplan.scenarios.calibration import load_calibration
from roofplan.scenarios.errors import BadInput
from roofplan.scenarios.load import names

N = 60
MILLION = 2**20
FITTED = ("gemm", "attention", "mla", "moe", "moe_alltoall", "collective", "custom_allreduce", "pass")


def rows(key: str, rng: np.random.Generator) -> pd.DataFrame:
    """Random calls of a family, sizes even in octaves from 1 to beyond all that was measured."""

    def octaves(low: float, high: float) -> Any:
        return np.floor(np.exp2(rng.uniform(np.log2(low), np.log2(high), N)))

    kind, *words = key.split(".")
    heads = np.exp2(rng.integers(0, 8, N))
    tokens = octaves(1, MILLION)
    columns: dict[str, Any] = {"latency_us": np.ones(N)}
    if kind == "gemm":
        columns |= {"m": tokens, "n": octaves(1, 3e5), "k": octaves(1, 3e5)}
    elif kind in ("attention", "mla"):
        window = next((float(w[1:]) for w in words if w[0] == "w"), 0.0)
        dim = next((float(w[2:]) for w in words if w.startswith("hd")), 128.0)
        columns |= {"seq_len" if "prefill" in words else "kv_len": tokens, "batch_size": octaves(1, 512), "num_heads": heads}
        columns |= {"num_kv_heads": np.maximum(heads // np.exp2(rng.integers(0, 5, N)), 1), "head_dim": dim, "window_size": window}
        columns["kv_cache_dtype"] = "fp8" if "fp8" in words else "bfloat16"
        if "mixed" in words:
            columns["seq_len"] = octaves(1, 8192)
    elif kind == "moe":
        experts = np.exp2(rng.integers(3, 9, N))
        columns |= {"num_tokens": tokens, "hidden_size": 4096.0, "inter_size": 2048.0, "topk": 8.0, "num_experts": 256.0}
        columns |= {"tp_size": np.exp2(rng.integers(0, 4, N)), "ep_size": np.minimum(experts, 64), "routing": rng.choice(list(SKEWS), N)}
    elif kind == "moe_alltoall":
        columns |= {"num_tokens": tokens, "hidden_size": octaves(512, 16384), "topk": octaves(1, 16)}
        columns |= {"ep_size": np.exp2(rng.integers(1, 4, N)), "num_experts": 256.0}
    elif kind == "pass":
        columns["num_bytes"] = octaves(1, 2**40)
    else:
        ranks = np.exp2(rng.integers(1, 4, N)) if key != "collective.p2p" else 2.0
        size = octaves(1, 2**34)
        columns |= {"message_bytes": size, "bytes": size, "num_gpus": ranks, "num_workers": ranks}
    return pd.DataFrame(columns)


@pytest.mark.parametrize("card", sorted(names("hardware")))
def test_no_family_beats_its_floor(card: str) -> None:
    gpu = registry.accelerator(card)
    fits = load_calibration(gpu)
    roofline, network = engines(gpu, fits)
    rng = np.random.default_rng(len(card))
    tried = set()
    for key in (k for k in fits.families if k.split(".")[0] in FITTED and not k.endswith(".shapes")):
        if key in ("attention.backward", "attention.fa2") or key.startswith("attention.uneven"):
            continue
        frame = rows(key, rng)
        try:
            bound = bind(key, frame, gpu, network.intra, "")
            seconds = price(key, {c: frame[c].to_numpy() for c in frame}, roofline, network)
        except BadInput as refused:
            assert "arithmetic" in str(refused)  # a format this card lacks
            continue
        assert np.all(np.isfinite(seconds) & (seconds > 0)), key
        efficiency = bound.floor_s / seconds
        assert efficiency.max() <= 1 + 1e-9, (key, frame.iloc[int(efficiency.argmax())].to_dict())
        tried.add(key.split(".")[0])
    assert {"gemm", "attention", "collective"} <= tried or not gpu.bf16_flops_per_s


@pytest.mark.parametrize("card", sorted(names("hardware")))
def test_no_copy_beats_the_memory(card: str) -> None:
    gpu = registry.accelerator(card)
    roofline, _ = engines(gpu, load_calibration(gpu))
    size = np.exp2(np.arange(0, 44.0))
    assert np.all(roofline.stream_s(size) >= size / gpu.hbm_bytes_per_s)
    assert np.all(roofline.host_copy_s(size) >= size / roofline.host_link_bytes_per_s)
