"""``plan --task serve``: the fleets that carry most requests within the promised latencies, as a table, as JSON and as a folder."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..scenarios import registry
from ..scenarios.calibration import Calibration, read_calibration
from ..scenarios.errors import BadInput
from ..scenarios.hardware import Cluster
from ..scenarios.load import by_name
from ..scenarios.serving import serving_engine
from ..scenarios.serving_text import read_speculation
from ..scenarios.terminal import Terminal
from ..scenarios.units import show_number
from ..sim.serve_flags import read, seconds, tokens
from ..sim.serving_metrics import Slo
from ..sim.traces import read_trace
from .answer import write_json
from .command import FAILED, OK
from .serve_advice import nearest_changes
from .serve_answer import as_json
from .serve_ask import ServeAsk, own_rate_per_s, read_rope_scaling
from .serve_compare import as_rows, compare, read_names
from .serve_report import print_report
from .serve_search import ServeDecision, plan_serving

OWN_FLAGS = (
    "model", "gpu", "cluster", "gpus_per_node", "n_gpus", "task", "isl", "osl", "ttft", "tpot", "rate", "allow", "top", "trace",
    "concurrency", "objective", "out", "calibration", "price_usd_per_h", "host_ram_bytes", "rope_scaling", "speculation", "engine",
    "expert_skew", "compare",
)  # fmt: skip
FLAG_NAMES = {
    "n_gpus": "gpus",
    "seq_tokens": "seq",
    "price_usd_per_h": "price",
    "host_ram_bytes": "host-ram",
    "memory_margin_frac": "memory-margin",
}
LEAST_RATE_PER_S, MOST_RATE_PER_S, MOST_CLIENTS = 1e-3, 1e6, 1_000_000
MOST_GPUS = 65_536
"""Without --gpus the search for the fewest GPUs goes no further."""


def plan_serve(flags: Mapping[str, Any], json_to: str | None) -> int:
    """Plan serving from the flags of ``plan``; without ``n_gpus`` the fewest GPUs that carry ``rate`` are looked for.

    Exit code 1 when no fleet keeps the promises (at ``rate``, where it is given). Raises BadInput for what cannot be used.
    """
    started = time.perf_counter()
    ask, names = read_ask(flags), read_names(flags.get("compare") or "")
    calibration = _calibration(flags)
    top = _between(flags, "top", 1, 100) or 5
    ask, decision = (ask, plan_serving(ask, top, calibration)) if flags.get("n_gpus") else _grown(ask, top, calibration)
    kept = [c for c in decision.choices if c.goodput_per_s >= ask.rate_per_s * (1 - 1e-9)]
    nearest = [] if kept else nearest_changes(ask, decision)
    compared = compare(ask, decision, names) if kept else []
    data = as_json(ask, decision, kept, nearest, time.perf_counter() - started) | {"compared": as_rows(compared)}
    written = _write_out(ask, decision, data, flags["out"]) if flags.get("out") and kept else 0
    if json_to:
        write_json(data, json_to)
    if json_to != "-":
        print_report(data, Terminal())
        if written:
            print(f"Wrote {written} files to {flags['out']}.")
    return OK if kept else FAILED


def _grown(ask: ServeAsk, top: int, calibration: Calibration | None) -> tuple[ServeAsk, ServeDecision]:
    """A search on the fewest whole nodes that carry the rate: doubled until something fits, then what its goodput says is needed."""
    node = ask.cluster.gpus_per_node
    n = node
    while True:
        grown = dataclasses.replace(ask, cluster=ask.cluster.with_gpus(n))
        decision = plan_serving(grown, top, calibration)
        if any(c.goodput_per_s >= ask.rate_per_s for c in decision.choices) or n * 2 > MOST_GPUS:
            return grown, decision
        best = max((c.goodput_per_s for c in decision.choices), default=0.0)
        n = min(max(2 * n, math.ceil(n / node * ask.rate_per_s / best) * node) if best else 2 * n, MOST_GPUS)


def read_ask(flags: Mapping[str, Any]) -> ServeAsk:
    """The question in the flags; BadInput names the flag that is missing or does not belong."""
    if not flags.get("model"):
        raise BadInput("--task serve needs --model")
    foreign = [name for name, value in flags.items() if value is not None and value != () and name not in OWN_FLAGS]
    if foreign:
        name = FLAG_NAMES.get(foreign[0], foreign[0].replace("_", "-"))
        cure = "give --isl and --osl instead" if name == "seq" else "drop it"
        raise BadInput(f"--{name} is for training and is not used by plan --task serve; {cure}")
    _check_given(flags)
    rate = _number(flags.get("rate"), "rate", "requests a second", LEAST_RATE_PER_S, MOST_RATE_PER_S, whole=False)
    clients = _number(flags.get("concurrency"), "concurrency", "clients", 1, MOST_CLIENTS, whole=True)
    trace = read_trace(Path(flags["trace"])) if flags.get("trace") else None
    if trace is not None and not rate and not clients:
        rate = own_rate_per_s(trace)
    slo = Slo(**{f"{name}_s": read(flags, name, seconds, math.inf) for name in ("ttft", "tpot")})
    cluster = _cluster(flags)
    return ServeAsk(
        model=registry.model(flags["model"]), gpu=registry.accelerator(cluster.gpu), cluster=cluster,
        prompt_tokens=read(flags, "isl", tokens, 0) if trace is None else round(float(trace.prompt_tokens.mean())),
        output_tokens=read(flags, "osl", tokens, 0) if trace is None else max(round(float(trace.output_tokens.mean())), 1),
        slo=slo, objective=flags.get("objective") or ("throughput" if flags.get("n_gpus") else "cost"), rate_per_s=rate,
        concurrency=int(clients), trace=trace,
        keep_arrivals=trace is not None and not flags.get("rate"), allow_quant=_quant(flags.get("allow") or ()),
        expert_skew=flags.get("expert_skew") or 0.0,
        engine=serving_engine(flags.get("engine") or "vllm").name,
        speculation=read_speculation(flags["speculation"]) if flags.get("speculation") else None,
        rope=read_rope_scaling(flags["rope_scaling"]) if flags.get("rope_scaling") else None,
    )  # fmt: skip


def _check_given(flags: Mapping[str, Any]) -> None:
    """What the requests are is said once, and either the GPUs or the rate they must carry."""
    if flags.get("trace") and (flags.get("isl") or flags.get("osl")):
        raise BadInput("--trace and --isl/--osl both say what the requests are; give one of them")
    _between(flags, "n_gpus", 1, 1_000_000)
    _between(flags, "gpus_per_node", 1, 1_000_000)
    for name in ("isl", "osl"):
        if not flags.get("trace") and not flags.get(name):
            raise BadInput(f"--task serve needs --{name}, or --trace FILE")
    if flags.get("n_gpus") is None and not flags.get("rate"):
        raise BadInput("--task serve needs --gpus, or --rate to find the fewest GPUs that carry it")


def _cluster(flags: Mapping[str, Any]) -> Cluster:
    name, per_node = flags.get("cluster") or flags.get("gpu") or "h100-sxm", flags.get("gpus_per_node")
    node = per_node or by_name(Cluster, "clusters", registry.cluster(name, 1).name, "cluster").gpus_per_node
    cluster = registry.cluster(name, flags.get("n_gpus") or node, per_node)
    changes: dict[str, Any] = {}
    if flags.get("price_usd_per_h"):
        changes["on_demand_usd_per_h"] = flags["price_usd_per_h"]
    if flags.get("host_ram_bytes"):
        changes["host_ram_bytes"] = flags["host_ram_bytes"]
    return dataclasses.replace(cluster, **changes)


def _quant(words: tuple[str, ...]) -> bool:
    for word in words:
        if word != "quant":
            raise BadInput(f"--allow {word} has no use with --task serve, which searches nothing lossy but number formats; legal: quant")
    return bool(words)


def _calibration(flags: Mapping[str, Any]) -> Calibration | None:
    return read_calibration(Path(flags["calibration"])) if flags.get("calibration") else None


def _between(flags: Mapping[str, Any], name: str, low: int, high: int) -> int:
    """A whole number of a flag, 0 where it was not given; BadInput names the flag and what is legal."""
    found = flags.get(name)
    if found is None:
        return 0
    if not low <= found <= high:
        raise BadInput(f"--{FLAG_NAMES.get(name, name.replace('_', '-'))} {found:,} must be between {low:,} and {high:,}")
    return int(found)


def _number(text: str | None, flag: str, unit: str, low: float, high: float, *, whole: bool) -> float:
    if text is None:
        return 0.0
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not low <= number <= high or (whole and number != int(number)):
        raise BadInput(
            f"--{flag} {text[:40] or 'of nothing'} must be a {'whole ' if whole else ''}number of {unit}, "
            f"from {show_number(low)} to {show_number(high)}"
        )
    return number


def _write_out(ask: ServeAsk, decision: ServeDecision, data: dict[str, Any], folder: str) -> int:
    """The folder that runs the winner, with the answer; the number of files."""
    from .serve_export import export

    return len(export(ask, decision, data, Path(folder)))
