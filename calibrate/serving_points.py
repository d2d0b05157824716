"""Reads tables of measured serving points as one setting a row: model, cluster, layout, load and what was measured."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..scenarios import registry
from ..scenarios.errors import BadInput
from ..scenarios.serving import EnginePlan, ServingEngine, serving_engine
from . import argonne
from .serving_disagg import Asked, Split, aic_asked, launched, pools, same_runs, truth_asked
from .serving_formats import Unusable, cache_format, dtype_named, formats
from .serving_layout import as_launched, node_layout
from .serving_names import FRAMEWORKS, count, engine_profile, model_name, release_of
from .serving_recipes import ALWAYS_DATED, Recipe, Run, aiconfigurator, crowded, inferencex, speculated, stated, trtllm_bench
from .tables import read_frame

AIC_COLUMNS = ("gpu", "framework", "model", "mode", "isl", "osl", "concurrency", "tp_size", "ttft_ms", "tpot_ms")
TRUTH_COLUMNS = ("id", "source", "framework", "model", "gpu", "metric", "value")
METRICS = {
    "ttft_ms_mean": ("ttft_s", 1e-3),
    "tpot_ms_mean": ("tpot_s", 1e-3),
    "output_tps_total": ("output_tokens_per_s", 1.0),
    "output_tps_per_gpu": ("output_tokens_per_s_per_gpu", 1.0),
    "ttft_ms_p50": ("ttft_p50_s", 1e-3),
    "tpot_ms_p50": ("tpot_p50_s", 1e-3),
    "total_tps_per_gpu": ("total_tokens_per_s_per_gpu", 1.0),
    "ttft_ms_p90": ("ttft_p90_s", 1e-3),
    "ttft_ms_p99": ("ttft_p99_s", 1e-3),
    "tpot_ms_p90": ("tpot_p90_s", 1e-3),
    "tpot_ms_p99": ("tpot_p99_s", 1e-3),
    "prefill_latency_s": ("ttft_s", 1.0),
}
"""Metric column of the truth table -> our metric and the factor to SI."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServePoint:
    """One measured setting. ``concurrency = 0``: every request is queued at once. ``recipe`` is how its suite launched the engine.

    ``gpu`` is the card as the table names it, ``cluster`` the machine that its suite ran on where that is known ('': the card's own).

    With ``split`` prefill has workers of its own, and ``plan`` and ``recipe`` are the decode workers'.
    """

    id: str
    source: str
    model: str
    gpu: str
    n_gpus: int
    plan: EnginePlan
    isl: int
    osl: int
    concurrency: int
    static_batch: bool
    recipe: Recipe
    measured: Mapping[str, float]
    split: Split | None = None
    cluster: str = ""

    def engine_of(self, engine: ServingEngine) -> ServingEngine:
        """The engine as this run's recipe launched it: its share of HBM, its largest CUDA graph, its kernels, its text."""
        graphs, top = engine.graph_tokens, self.recipe.largest_graph
        if top:
            graphs = (*(g for g in graphs if g < top), *range(max(graphs) + GRAPH_STEP_TOKENS, top, GRAPH_STEP_TOKENS), top)
        share = self.recipe.memory_utilization_frac or engine.memory_utilization_frac
        token = 0.0 if self.recipe.plain_text else engine.token_cpu_s
        return self.recipe.kernels(replace(engine, graph_tokens=graphs, memory_utilization_frac=share, token_cpu_s=token))


GRAPH_STEP_TOKENS = 16
"""Spacing of vLLM's CUDA graphs above 256 tokens."""


def read_points(path: Path) -> tuple[list[ServePoint], list[dict[str, str]]]:
    """Points of a table (kernel-tool samples or the truth table) and the rows left out, each with its reason.

    Raises BadFile when the file is not such a table, BadInput without the ``calibrate`` extra.
    """
    frame = read_frame(path, ())
    aic = set(AIC_COLUMNS) <= set(frame.columns)
    if not aic:
        read_frame(path, TRUTH_COLUMNS)
    points, skipped = [], []
    rows = frame.to_dict("records")
    twins = same_runs(rows) if aic else {}
    for number, row in enumerate(rows):
        name = f"{path.stem}-{number}" if aic else str(row["id"])
        try:
            points.append(_aic_point(name, row, twins) if aic else _truth_point(name, row))
        except (Unusable, BadInput, ValueError) as error:
            skipped.append({"id": name, "why": str(error)})
    return points, skipped


def _aic_point(name: str, row: Mapping[str, Any], twins: Mapping[tuple[float, float], Mapping[str, Any]]) -> ServePoint:
    model = model_name(str(row["model"]))
    if row["mode"] != "agg":
        return _split_aic_point(name, row, model, twins.get((row["ttft_ms"], row["tpot_ms"]), row))
    moe = registry.model(model).n_experts > 0
    tp, dp, ep = node_layout(row, moe)
    if not count(row, "concurrency"):
        raise Unusable("concurrency is not given")
    label = str(row["model"])
    dtype, experts = formats(
        model, label, dtype_named(row.get("gemm_quant_mode"), row.get("precision")), dtype_named(row.get("moe_quant_mode")) if moe else ""
    )
    known = row.get("measured_date")
    date = known[:10] if isinstance(known, str) else ALWAYS_DATED.get(model, "")
    isl, osl, gpu = count(row, "isl"), count(row, "osl"), registry.accelerator(str(row["gpu"])).name
    load = count(row, "concurrency")
    release = row.get("framework_version")
    plan, recipe = _launched(
        str(row["framework"]), release, model, gpu, date, "" if date else AIC, (isl, osl, load), (tp, dp, ep), dtype, experts
    )
    return ServePoint(
        id=name,
        source=f"{row['framework']} {row['gpu']} {model}",
        model=model,
        gpu=gpu,
        n_gpus=tp * dp,
        plan=plan,
        isl=isl,
        osl=osl,
        concurrency=load,
        static_batch=False,
        recipe=recipe,
        measured={"ttft_s": float(row["ttft_ms"]) / 1e3, "tpot_s": float(row["tpot_ms"]) / 1e3},
    )


def _split_aic_point(name: str, row: Mapping[str, Any], model: str, twin: Mapping[str, Any]) -> ServePoint:
    """A disaggregated row; without worker counts it is read as its ``twin``, a row of the same run that has them."""
    asked = aic_asked(row, model, twin)
    measured = {"ttft_s": float(row["ttft_ms"]) / 1e3, "tpot_s": float(row["tpot_ms"]) / 1e3}
    weights = dtype_named(row.get("gemm_quant_mode"), row.get("precision"))
    source = f"{row['framework']} {row['gpu']} {asked.model} disaggregated"
    return _split_point(name, source, asked, row, row.get("framework_version"), weights, measured)


def _split_point(
    name: str, source: str, asked: Asked, row: Mapping[str, Any], version: Any, weights: str, measured: dict[str, float]
) -> ServePoint:
    """The point of a disaggregated run. Versions of TensorRT-LLM rows are Dynamo's, whose engine is the latest."""
    one = launched(asked)
    family = FRAMEWORKS[asked.engine]
    engine = engine_profile(family, None if family == "trtllm" else version)
    moe = registry.model(asked.model).n_experts > 0
    dtype, experts = formats(asked.model, str(row["model"]), weights, weights if moe else "")
    plan, recipe, split = pools(one, asked.clients, engine, dtype, experts, cache_format(dtype, experts, engine))
    return ServePoint(
        id=name,
        source=source,
        model=asked.model,
        gpu=asked.gpu,
        n_gpus=one.n_gpus,
        plan=plan,
        isl=asked.isl,
        osl=asked.osl,
        concurrency=asked.clients,
        static_batch=False,
        recipe=recipe,
        measured=measured,
        split=split,
    )


AIC = "aiconfigurator"


def _launched(
    framework: str,
    version: Any,
    model: str,
    gpu: str,
    date: str,
    suite: str,
    load: tuple[int, int, int],
    layout: tuple[int, int, int],
    dtype: str,
    experts: str,
) -> tuple[EnginePlan, Recipe]:
    """The plan and launch script of a run; ``date`` is empty for runs outside InferenceX. Unusable if it speculated unsaid."""
    isl, osl, clients = load
    tp, dp, ep = layout
    version = release_of(framework, version, date)
    engine, recipe = engine_profile(framework, version), Recipe()
    if suite == AIC:
        recipe = aiconfigurator(engine, str(version), isl, clients)
    elif date:
        family = engine.partition("-")[0]
        four = "nvfp4" in (dtype, experts)
        asked = {"tp": tp, "dp": dp, "ep": ep, "isl": isl, "osl": osl, "concurrency": clients}
        run = as_launched(Run(engine=family, model=model, gpu=gpu, four_bit=four, weights=dtype, date=date, **asked))
        if why := speculated(run, str(version)):
            raise Unusable(f"speculative decoding with an unpublished acceptance rate ({why})")
        if why := crowded(run):
            raise Unusable(why)
        recipe = inferencex(run)
        tp, dp, ep = run.tp, run.dp, run.ep
        engine = engine_profile(framework, version, asynchronous=recipe.asynchronous)
    profile = serving_engine(engine)
    plan = EnginePlan(
        tp=tp,
        dp=dp,
        ep=tp * dp if recipe.expert_parallel else ep,
        weight_dtype=dtype,
        expert_dtype=experts,
        kv_dtype=recipe.kv_dtype or cache_format(dtype, experts, engine),
        state_dtype=recipe.state_dtype or "fp32",
        engine=engine,
        policy=recipe.policy,
        token_budget=profile.of_all_ranks(recipe.token_budget, dp),
        max_num_seqs=profile.of_all_ranks(recipe.max_num_seqs, dp),
    )
    return plan, recipe


PADDED_SOURCES = ("static batching", "gpt-fast", "MInference")
STATIC_SOURCES = ("static", argonne.NAME, *PADDED_SOURCES)
"""Sources that run one batch from start to end; padded, its memory is set aside at the start, else an engine admits what fits."""
GPT_FAST_TOKENS = 200
"""New tokens of gpt-fast's generate.py unless told otherwise."""


def _truth_point(name: str, row: Mapping[str, Any]) -> ServePoint:
    metric, factor = METRICS.get(str(row["metric"]), ("", 0.0))
    if not metric:
        raise Unusable(f"metric {row['metric']} is not a serving metric that is predicted")
    if str(row.get("disagg")).lower() == "true" or count(row, "prefill_gpus"):
        engine = FRAMEWORKS.get(str(row["framework"]).lower(), "")
        asked = truth_asked(row, model_name(str(row["model"])), engine)
        measured = {metric: float(row["value"]) * factor}
        group = f"{row['source']}, disaggregated"
        return _split_point(name, group, asked, row, row.get("version"), dtype_named(row.get("precision")), measured)
    if row.get("spec_decode") == "mtp":
        raise Unusable("speculative decoding with an unpublished acceptance rate")
    source = str(row["source"])
    isl, osl = count(row, "isl"), count(row, "osl") or (GPT_FAST_TOKENS if source.startswith("gpt-fast") else 0)
    if not isl or not osl:
        raise Unusable("prompt or answer length is not published")
    static = any(word in source for word in STATIC_SOURCES)
    gpu = registry.accelerator(re.sub(r"\s*\(.*\)$", "", str(row["gpu"]))).name
    model = model_name(str(row["model"]))
    tp = count(row, "tp", 1) or 1
    n_gpus = count(row, "num_gpus", tp) or tp
    dp, ep = max(count(row, "dp_attention", 1), 1), max(count(row, "ep", 1), 1)
    pp = max(count(row, "pp", 1), 1)
    if tp * dp * pp > n_gpus or n_gpus % (tp * dp * pp):
        raise Unusable(f"tp={tp}, pp={pp} with attention dp={dp} does not divide {n_gpus} GPUs")
    load = count(row, "batch") if static else count(row, "concurrency")
    offline = source.startswith("TensorRT-LLM perf-overview v0.15")
    if not load and not offline:
        raise Unusable("neither concurrency nor batch is published")
    dtype, experts = formats(model, str(row["model"]), dtype_named(row.get("precision"), default=registry.model(model).weight_dtype), "")
    layout = (tp, dp, ep if (tp * dp) % ep == 0 else 1)
    dated = re.search(r"measured=(\d{4}-\d{2}-\d{2})", str(row.get("notes"))) if "InferenceX" in source else None
    date = dated[1] if dated else "2025-11" if "InferenceX" in source else ""
    suite = AIC if "AIC team" in source else ""
    plan, recipe = _launched(str(row["framework"]), row.get("version"), model, gpu, date, suite, (isl, osl, load), layout, dtype, experts)
    if offline:
        recipe = trtllm_bench(isl, osl)
    recipe = stated(recipe, str(row.get("notes")), load)
    if str(row.get("kv_dtype")).startswith("fp8"):
        plan = replace(plan, kv_dtype="fp8")
    if argonne.NAME in source:
        plan = argonne.argonne_plan(plan, str(row["framework"]), gpu, model)
    padded = any(word in source for word in PADDED_SOURCES)
    return ServePoint(
        id=name,
        source=source,
        model=model,
        gpu=gpu,
        n_gpus=n_gpus,
        plan=replace(plan, pp=pp, policy="static" if padded else plan.policy),
        isl=isl,
        osl=osl,
        concurrency=load,
        static_batch=static,
        recipe=recipe,
        measured={metric: float(row["value"]) * factor},
        cluster=argonne.MACHINES.get(gpu, "") if argonne.NAME in source else "",
    )
