"""Predictors of published serving experiments: single steps from the cost model, whole runs from the simulator."""

from __future__ import annotations

import dataclasses
from bisect import bisect_right
from typing import Any

import numpy as np

from ..costmodels.expert_balance import load_factor
from ..costmodels.experts import expert_share_read
from ..costmodels.serving import Reach, step_times
from ..costmodels.serving_ops import ServeSystem, serve_system
from ..costmodels.split_choice import SplitChoice, choose_split
from ..costmodels.step_times import PS, StepTimes
from ..scenarios import registry
from ..scenarios.errors import BadInput, UnknownName
from ..scenarios.model import ModelSpec
from ..scenarios.reference import Case
from ..scenarios.serving import ServeWorkload, serving_engine
from ..scenarios.serving_case import Serving
from ..sim.arrivals import OUTPUT_STREAM, PROMPT_STREAM, lengths, poisson
from ..sim.deployment import simulate_deployment
from ..sim.expert_traffic import expert_bytes_read
from ..sim.policies import policy_named
from ..sim.serve_result import ServeResult
from ..sim.serving_metrics import latencies
from .promises import kept

METRICS = ("ttft_s", "tpot_s", "e2e_s", "itl_s")
CLIENTS = (1, 2, 4, 6, 8, 12, 16, 20, 24, 28, 32)
"""Numbers of clients tried. Source: DeepSpeedExamples, benchmarks/inference/mii, utils (num_clients)."""


def decode_step_ms(case: Case) -> float:
    """Milliseconds per token of a step of ``n_decodes`` sequences with ``kv_tokens`` cached each.

    A speculating step checks ``checked_tokens`` a sequence and yields ``tokens_per_step`` of them.
    """
    n, kv = int(case.numbers["n_decodes"]), int(case.numbers["kv_tokens"])
    return _step_ms(case, n, kv, 0) / case.numbers.get("tokens_per_step", 1.0)


def decode_ms_per_token(case: Case) -> float:
    """Milliseconds per token of a step that only decodes: the step over its sequences."""
    return decode_step_ms(case) / case.numbers["n_decodes"]


def piggybacked_ms_per_token(case: Case) -> float:
    """Milliseconds each decode adds to a step of ``chunk_tokens`` in all: ``(step − the same prompt piece alone) / decodes``."""
    n, kv = int(case.numbers["n_decodes"]), int(case.numbers["kv_tokens"])
    chunk = int(case.numbers["chunk_tokens"]) - n
    return (_step_ms(case, n, kv, chunk) - _step_ms(case, 0, kv, chunk)) / n


def prompt_step_ratio(case: Case) -> float:
    """Time of a step of ``chunk_tokens`` prompt tokens over that of ``base_chunk_tokens``."""
    return _step_ms(case, 0, 1, int(case.numbers["chunk_tokens"])) / _step_ms(case, 0, 1, int(case.numbers["base_chunk_tokens"]))


def prefill_cost_ratio(case: Case) -> float:
    """Prefill time of a prompt of ``kv_tokens`` in chunks of ``chunk_tokens`` over that in one step."""
    whole, chunk = int(case.numbers["kv_tokens"]), int(case.numbers["chunk_tokens"])
    pieces = sum(_step_ms(case, 0, 1, min(chunk, whole - at), at) for at in range(0, whole, chunk))
    return pieces / _step_ms(case, 0, 1, whole)


def prompt_tokens_per_s_per_gpu(case: Case) -> float:
    """Prompt tokens per second and GPU of steps that carry ``n_prompts`` whole prompts of ``kv_tokens``, dealt over the dp ranks."""
    n, kv, plan = int(case.numbers["n_prompts"]), int(case.numbers["kv_tokens"]), _serving(case).deployment.plan
    times = _times(_serving(case), Reach(tokens=n * kv, chunk=kv, seqs=1))
    seconds = (times.linear[n * kv] + times.decode[0] + -(-n // (plan.dp * plan.cp)) * times.prefill[kv]) / PS
    return n * kv / seconds / plan.n_gpus


def prompt_s(case: Case) -> float:
    """Seconds of a step that carries one whole prompt of ``kv_tokens``."""
    return _step_ms(case, 0, 1, int(case.numbers["kv_tokens"])) / 1e3


def decode_tokens_per_s_per_gpu(case: Case) -> float:
    """Tokens per second and GPU of steps of ``n_decodes`` sequences (over all GPUs of the replica)."""
    return case.numbers["n_decodes"] / (decode_step_ms(case) / 1e3) / _serving(case).deployment.plan.n_gpus


def largest_decode_batch(case: Case) -> float:
    """Most sequences per GPU, in steps of one, whose time per token is at most ``tpot_s``."""
    plan, most = _serving(case).deployment.plan, int(case.numbers.get("most", 512))

    def step_ms(each: int) -> float:
        return decode_step_ms(dataclasses.replace(case, numbers={**case.numbers, "n_decodes": each * plan.n_gpus}))

    return float(bisect_right(range(1, most + 1), 1e3 * case.numbers["tpot_s"], key=step_ms))


def makespan_gain(case: Case) -> float:
    """Time to serve all requests under the baseline over the same under the case's deployment."""
    return run_side(_baseline(case)).end_s / run_side(_serving(case)).end_s


def bubble_cut(case: Case) -> float:
    """Time that pipeline stages idle between their first and last work, per request, under the baseline over the case's."""
    base, ours = (sum(sum(p.bubble_s) for p in run_side(side).pools) / side.load.n_requests for side in (_baseline(case), _serving(case)))
    return base / ours


def best_prompt_to_decode(case: Case) -> float:
    """Ratio of prompt to answer tokens at which the gain over the baseline is largest, requests of ``total_tokens`` in all."""
    total, found = case.numbers["total_tokens"], {}
    for answers in np.unique(np.rint(total / np.geomspace(5, 60, 24))):
        load: dict[str, Any] = {"prompt_tokens": float(total - answers), "output_tokens": float(answers)}
        sides = [dataclasses.replace(s, load=dataclasses.replace(s.load, **load)) for s in (_baseline(case), _serving(case))]
        base, ours = (run_side(side).end_s for side in sides)
        found[(total - answers) / answers] = base / ours
    return float(max(found, key=lambda ratio: found[ratio]))


def latency_s(case: Case) -> float:
    """Seconds of ``words.metric`` (ttft_s, tpot_s, e2e_s; itl_s: gaps between tokens): the mean, or the quantile ``numbers.quantile``."""
    return _latency(case, _serving(case))


def latency_cut(case: Case) -> float:
    """The baseline's latency over the case's."""
    return _latency(case, _baseline(case)) / _latency(case, _serving(case))


def expert_traffic_ratio(case: Case) -> float:
    """Bytes of expert weights read by all steps over the baseline's, routing even."""
    return _expert_bytes(_serving(case)) / _expert_bytes(_baseline(case))


def requests_per_s(case: Case) -> float:
    """Requests per second over the whole run."""
    side = _serving(case)
    return side.load.n_requests / run_side(side).end_s


def requests_gain(case: Case) -> float:
    """Requests per second over the baseline's, whatever their numbers of requests."""
    sides = (_serving(case), _baseline(case))
    ours, theirs = (side.load.n_requests / run_side(side).end_s for side in sides)
    return ours / theirs


def effective_per_s(case: Case) -> float:
    """Best requests per second, over CLIENTS, of those that kept both promises (``promises.kept``)."""
    return _effective(case, _serving(case))


def effective_gain(case: Case) -> float:
    """The same over the baseline's."""
    return _effective(case, _serving(case)) / _effective(case, _baseline(case))


def sustained_rate_gain(case: Case) -> float:
    """Highest Poisson rate at which the mean of ``words.metric`` stays within ``numbers.limit_s``, over the baseline's; bisected to 2 %."""
    return _best_rate(case, _serving(case)) / _best_rate(case, _baseline(case))


def split_attention_nodes(case: Case) -> float:
    """Nodes that attention gets in the best split of the cluster between attention and FFN within ``tpot_s``."""
    return float(_split(case)[0].n_attention)


def split_tokens_per_s(case: Case) -> float:
    """Tokens per second and GPU of the split with ``n_attention`` nodes, at ``n_decodes`` in flight (0: as many as ``tpot_s`` allows)."""
    return _split(case)[0].tokens_per_s_per_gpu


def balance_frac(case: Case) -> float:
    """Mean load of the expert-parallel ranks over that of the most loaded, as ``numbers.skew``, ``ep`` and ``redundant`` make it."""
    n, model = case.numbers, _model(_serving(case))
    return 1 / load_factor(model.n_experts, model.top_k, n["skew"], int(n["ep"]), int(n.get("redundant", 0)))


def coverage_frac(case: Case) -> float:
    """Share of the experts that ``tokens`` tokens touch, under the Zipf exponent by which ``seen_tokens`` touch ``seen_frac``."""
    n, model, low, high = case.numbers, _model(_serving(case)), 0.0, 4.0
    for _ in range(40):
        middle = (low + high) / 2
        seen = float(expert_share_read(model.n_experts, model.top_k, n["seen_tokens"], skew=middle))
        low, high = (middle, high) if seen > n["seen_frac"] else (low, middle)
    return float(expert_share_read(model.n_experts, model.top_k, n["tokens"], skew=low))


def _model(side: Serving) -> ModelSpec:
    """The side's model with its changes applied."""
    changes: dict[str, Any] = dict(side.change)
    return dataclasses.replace(registry.model(side.model), **changes)


def _system(side: Serving) -> ServeSystem:
    cluster = registry.cluster(side.gpu, side.n_gpus, side.gpus_per_node or None)
    return serve_system(cluster, serving_engine(side.deployment.plan.engine))


def _times(side: Serving, reach: Reach) -> StepTimes:
    return step_times(_model(side), side.deployment.plan, _system(side), reach)


def _step_ms(case: Case, n_decodes: int, kv_tokens: int, chunk: int, past: int = 0) -> float:
    checked = round(case.numbers.get("checked_tokens", 1.0) * n_decodes)
    most = max(checked, n_decodes)
    reach = Reach(
        tokens=most + max(chunk, 1),
        chunk=max(chunk, 1),
        seqs=max(most, 1),
        kv_low_tokens=max(kv_tokens / 2, 1),
        kv_high_tokens=max(kv_tokens, 2),
        past_tokens=max(past, 1024),
    )
    times = _times(_serving(case), reach)
    step = times.step_ps(n_decodes, n_decodes * kv_tokens, [(chunk, past)] if chunk else [])
    extra = times.linear[checked] - times.linear[n_decodes] if checked > n_decodes else 0
    return 1e3 * (step + extra) / PS


def run_side(side: Serving, log: bool = False) -> ServeResult:
    """Play one side's requests on its deployment."""
    load, n = side.load, side.load.n_requests
    work = ServeWorkload(
        arrival_s=poisson(n, load.rate_per_s, load.seed) if load.rate_per_s else np.zeros(n),
        prompt_tokens=lengths(n, load.prompt_tokens, load.prompt_spread_frac, load.seed, PROMPT_STREAM),
        output_tokens=lengths(n, load.output_tokens, load.output_spread_frac, load.seed, OUTPUT_STREAM),
    )
    cluster = registry.cluster(side.gpu, side.n_gpus, side.gpus_per_node or None)
    return simulate_deployment(_model(side), cluster, side.deployment, work, seed=load.seed, clients=load.clients, log=log)


def _expert_bytes(side: Serving) -> float:
    plan, policy = side.deployment.plan, policy_named(side.deployment.plan.policy)
    logs = run_side(side, log=True).logs.values()
    return sum(expert_bytes_read(_model(side), policy, log, dtype=plan.experts_in, skew=plan.expert_skew) for log in logs)


def _latency(case: Case, side: Serving) -> float:
    metric = case.words.get("metric", "")
    if metric not in METRICS:
        raise UnknownName("metric", metric, METRICS)
    out, quantile = run_side(side), case.numbers.get("quantile", 0.0)
    if metric == "itl_s":
        return float(out.gaps.quantile_s(quantile or 0.5))
    values = latencies(out)[metric]
    return float(np.quantile(values, quantile)) if quantile else float(values.mean())


def _effective(case: Case, side: Serving) -> float:
    n, best = case.numbers, 0.0
    if side.load.clients is None:
        raise BadInput(f"case {case.name}: [serving.load.clients] must say that clients send the requests")
    for count in CLIENTS:
        clients = dataclasses.replace(side.load.clients, n_clients=count)
        out = run_side(dataclasses.replace(side, load=dataclasses.replace(side.load, clients=clients)), log=True)
        best = max(best, float(kept(out, n["prompt_tokens_per_s"], n["tokens_per_s"]).sum()) / out.end_s)
    return best


def _best_rate(case: Case, side: Serving) -> float:
    low, high = 0.0, case.numbers["most_per_s"]
    while high - low > 0.02 * high and high > 1e-3 * case.numbers["most_per_s"]:
        middle = (low + high) / 2
        tried = dataclasses.replace(side, load=dataclasses.replace(side.load, rate_per_s=middle))
        low, high = (middle, high) if _latency(case, tried) <= case.numbers["limit_s"] else (low, middle)
    if not low:
        raise BadInput(f"case {case.name}: no rate keeps {case.words['metric']} within {case.numbers['limit_s']:g} s")
    return low


def _split(case: Case) -> list[SplitChoice]:
    side, n = _serving(case), case.numbers
    return choose_split(
        _model(side), side.deployment.plan, _system(side), int(n["kv_tokens"]), n.get("tpot_s", 10.0), int(n.get("n_decodes", 0)),
        sustained=case.words.get("kernels") == "sustained", n_attention_nodes=int(n.get("n_attention", 0)),
    )  # fmt: skip


def _serving(case: Case) -> Serving:
    if case.serving is None:
        raise BadInput(f"case {case.name}: predictor {case.predictor} needs a [serving]")
    return case.serving


def _baseline(case: Case) -> Serving:
    if case.serving_baseline is None:
        raise BadInput(f"case {case.name}: predictor {case.predictor} needs a [serving_baseline]")
    return case.serving_baseline
