"""Questions to the serving planner that several test files share."""

from __future__ import annotations

import numpy as np
from roofplan.planner.serve_ask import ServeAsk
from roofplan.scenarios import registry
from roofplan.scenarios.serving import ServeWorkload
from roofplan.sim.serving_metrics import Slo


def ask(**changes) -> ServeAsk:
    """Llama 3.1 8B on two H200, 2,000 tokens in, 200 out, within 2 s and 30 ms, unless said otherwise."""
    cluster = registry.cluster(changes.pop("gpu_name", "h200"), changes.pop("n_gpus", 2))
    base = {"model": registry.model(changes.pop("model_name", "llama3.1-8b")), "gpu": registry.accelerator(cluster.gpu), "cluster": cluster,
            "prompt_tokens": 2000, "output_tokens": 200, "slo": Slo(ttft_s=2.0, tpot_s=0.03)}  # fmt: skip
    return ServeAsk(**(base | changes))


def trace(n: int = 6, hashed: bool = True) -> ServeWorkload:
    """Requests half a second apart, each with two prompt blocks of its own."""
    starts = np.arange(n + 1) * 2 if hashed else np.zeros(0, np.int64)
    return ServeWorkload(
        arrival_s=np.arange(n) * 0.5, prompt_tokens=np.arange(n) + 1000, output_tokens=np.arange(n) + 10,
        block_starts=starts, block_ids=np.arange(2 * n) if hashed else np.zeros(0, np.int64), block_id_tokens=512 if hashed else 0,
        source="made",
    )  # fmt: skip
