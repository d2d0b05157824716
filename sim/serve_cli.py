"""``roofplan simulate`` for serving: a model, a cluster and a trace in; latencies, throughput and cost out."""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from ..scenarios import registry
from ..scenarios.errors import BadFile, BadInput, CheckFailed, RoofplanError
from ..scenarios.load import read_toml
from ..scenarios.model import ModelSpec
from ..scenarios.serving import ServeWorkload
from ..scenarios.serving_text import AUTOSCALE_FORM, SPECULATION_FORM, TIER_FORM
from ..scenarios.store import check_place, write_text
from .deployment import simulate_deployment
from .policies import POLICIES
from .router import ROUTERS
from .serve_flags import clients, deployment, engine_plan, read, seconds, window, workload
from .serve_result import ServeResult
from .serve_show import show
from .serving_frames import csv_text, request_columns
from .serving_metrics import Slo, report
from .serving_page import plotly, serving_page
from .serving_trace import serving_trace

OUTPUTS = {"--perfetto": "perfetto", "--html": "html", "--csv": "csv", "--json": "json_path"}
"""Flag of each file that a run can write -> its parameter."""


@click.command("simulate", context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("scenario", required=False, type=click.Path(path_type=Path))
@click.option("--model", help="Alias, Hugging Face id, or path of a config.json.")
@click.option("--gpu", default="h100-sxm", show_default=True, help="GPU or cluster name.")
@click.option("--gpus", default=1, show_default=True, type=click.IntRange(1), help="How many; they hold equal replicas.")
@click.option("--trace", type=click.Path(path_type=Path), help="Azure, Vidur, BurstGPT, Mooncake, vLLM or guidellm file.")
@click.option("--isl", help="Prompt tokens of a made-up workload.")
@click.option("--osl", help="Output tokens of a made-up workload.")
@click.option("--requests", "n_requests", type=click.IntRange(1), help="How many requests (default: the trace; 1000 made up).")
@click.option("--rate", type=float, help="Requests per second, Poisson (see --cv); re-times a trace.")
@click.option("--concurrency", type=click.IntRange(1), help="Clients that each wait for their answer, in place of --rate.")
@click.option("--think", help="How long a client of --concurrency thinks between its requests, like 2s.")
@click.option("--cv", default=1.0, show_default=True, help="Burstiness of --rate: coefficient of variation of the gaps.")
@click.option("--swing", default=0.0, help="Day and night: the rate swings by this share of itself over a --period (0: steady).")
@click.option("--period", default="24h", show_default=True, help="Length of a day for --swing.")
@click.option("--burst", metavar="SIZE:GAP", help="SIZE requests at once every GAP, like 32:10s, in place of --rate.")
@click.option("--length-cv", default=0.0, help="Coefficient of variation of --isl and --osl (log-normal; 0: all equal).")
@click.option("--tp", default=1, show_default=True, type=click.IntRange(1), help="Tensor parallel GPUs of a replica.")
@click.option("--pp", default=1, show_default=True, type=click.IntRange(1), help="Pipeline stages of a replica.")
@click.option("--dp", default=1, show_default=True, type=click.IntRange(1), help="Attention data parallel ranks of a replica.")
@click.option("--ep", default=1, show_default=True, type=click.IntRange(1), help="Expert parallel GPUs of a replica.")
@click.option(
    "--cp", default=1, show_default=True, type=click.IntRange(1), help="Context parallel GPUs: prompts and KV cache in equal parts."
)
@click.option("--ffn-gpus", default=0, type=click.IntRange(0), help="GPUs besides these that hold the FFN alone (0: none).")
@click.option("--expert-skew", default=0.0, help="Zipf exponent of how often experts are chosen (0: evenly).")
@click.option("--redundant-experts", default=0, type=click.IntRange(0), help="Extra copies of busy experts (EPLB).")
@click.option(
    "--engine", default="vllm", show_default=True, help="Serving engine profile: vllm, sglang, trtllm, or an older one like vllm-0.6."
)
@click.option("--policy", type=click.Choice(sorted(POLICIES)), help="Scheduling policy (default: the engine's).")
@click.option(
    "--chunk", "token_budget", help="Most tokens of one step: of all --dp ranks, of one --pp micro-batch (default: the engine's)."
)
@click.option(
    "--max-num-seqs",
    default=0,
    type=click.IntRange(0),
    help="Most sequences of a replica, over its ranks and micro-batches (0: the engine's).",
)
@click.option("--block", "block_tokens", default=0, type=click.IntRange(0), help="Tokens of a KV block (0: the engine's).")
@click.option("--kv-blocks", default=0, type=click.IntRange(0), help="KV blocks of a replica, over its ranks (0: from memory).")
@click.option(
    "--preemption",
    default="recompute",
    show_default=True,
    type=click.Choice(["recompute", "swap"]),
    help="What a request loses without KV room.",
)
@click.option("--prefix-cache", is_flag=True, help="Reuse the KV of prompt blocks seen before (needs a trace with hashes).")
@click.option("--kv-tier", multiple=True, metavar="TIER", help=f"Where prompt blocks go that leave HBM; repeatable: {TIER_FORM}.")
@click.option("--speculation", metavar="SPEC", help=f"{SPECULATION_FORM}.")
@click.option(
    "--weights", "weight_dtype", default="", help="Weight format: bf16, fp8, fp8_block, nvfp4, int4 (default: the checkpoint's own)."
)
@click.option("--experts", "expert_dtype", default="", help="Format of the routed experts where it differs: nvfp4, mxfp4 …")
@click.option("--kv-dtype", default="bf16", show_default=True, help="KV-cache format: bf16, fp8, int4.")
@click.option("--router", default="round-robin", show_default=True, type=click.Choice(ROUTERS), help="Which replica gets a request.")
@click.option("--prefill", "n_prefill", default=0, type=click.IntRange(0), help="Replicas that only prefill; the others decode (0: mixed).")
@click.option("--prefill-tp", default=0, type=click.IntRange(0), help="Tensor parallel GPUs of a prefill replica (0: as --tp).")
@click.option("--prefill-sm", default=0.0, help="Share of each GPU's SMs, 0.05 to 0.95, that prefills while the rest decode (0: no split).")
@click.option("--kv-overlap", default=0.0, help="Share of a KV transfer, 0 to 1, that hides behind the prompt's own computation.")
@click.option("--nic-per-node", is_flag=True, help="A node's GPUs share one adapter (default: one each).")
@click.option("--autoscale", metavar="SCALE", help=f"{AUTOSCALE_FORM}.")
@click.option("--ttft", help="Promised time to first token, like 2s (goodput counts who keeps all promises).")
@click.option("--tpot", help="Promised time per output token, like 30ms.")
@click.option("--e2e", help="Promised time to the last token, like 20s.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0), help="Seed of arrivals, lengths and acceptance.")
@click.option("--perfetto", metavar="FILE", help="Write the engine steps and requests for ui.perfetto.dev.")
@click.option("--window", metavar="FROM..TO", help="Only this part of the run in --perfetto, like 10s..20s.")
@click.option("--html", metavar="FILE", help="Write a page of latencies, load, queue and KV cache.")
@click.option("--csv", metavar="FILE", help="Write one row a request (- for stdout alone).")
@click.option("--json", "json_path", metavar="FILE|-", help="Write the stable JSON form to a file, or - for stdout alone.")
@click.pass_context
def simulate(ctx: click.Context, /, scenario: Path | None, **flags: Any) -> None:
    """Simulate serving a model on a cluster under a trace or a made-up workload.

    SCENARIO is a TOML file with any of these settings, named as the flags are (max-num-seqs = 64); flags override it.
    """
    try:
        if scenario is not None:
            flags |= scenario_flags(ctx, scenario)
        out, result = run(flags)
        for flag, path, text in list(files(flags, out, result)):
            write_text(text, path, flag)
        if "-" not in [flags[name] for name in OUTPUTS.values()]:
            show(out)
    except RoofplanError as error:
        click.echo(f"error: {error}", err=True)
        raise SystemExit(2 if isinstance(error, BadInput) else 1) from None


def scenario_flags(ctx: click.Context, path: Path) -> dict[str, Any]:
    """The settings of a scenario file that the command line does not give; paths in it are relative to the file.

    Raises BadFile for a key that is no flag or a value the flag would not take.
    """
    options = {p.opts[0].removeprefix("--"): p for p in ctx.command.params if isinstance(p, click.Option) and p.name != "json_path"}
    found: dict[str, Any] = {}
    for key, value in read_toml(path).items():
        option = options.get(key.replace("_", "-"))
        if option is None or option.name is None:
            near = difflib.get_close_matches(key, options, n=3)
            raise BadFile(
                f"{path}: unknown key {key[:80]!r}; {'did you mean ' + ', '.join(near) if near else 'legal: ' + ', '.join(options)}"
            )
        if ctx.get_parameter_source(option.name) is not ParameterSource.DEFAULT:
            continue
        try:
            if "\0" in str(value):
                raise click.BadParameter(f"{str(value)[:40]!r} holds a NUL character; take it out")
            found[option.name] = option.type_cast_value(ctx, value if isinstance(value, (bool, int, float)) else str(value))
        except click.BadParameter as error:
            raise BadFile(f"{path}: {key}: {error.message}") from None
        if option.name == "trace":
            found["trace"] = path.parent / found["trace"]
    return found


def run(flags: dict[str, Any]) -> tuple[dict[str, Any], ServeResult]:
    """The report of one simulation and the run itself, from the flags of the command. Raises BadInput for anything it cannot use."""
    started = time.perf_counter()
    if not flags["model"]:
        raise BadInput("no model given; add --model, or model = … in a scenario file")
    model = registry.model(flags["model"])
    cluster = registry.cluster(flags["gpu"], flags["gpus"])
    work = workload(flags)
    plan = engine_plan(flags, model)
    chosen = deployment(flags, plan, cluster)
    slo = Slo(**{f"{name}_s": read(flags, name, seconds, math.inf) for name in ("ttft", "tpot", "e2e")})
    window(flags["window"])
    check_outputs(flags)
    if flags["html"]:
        plotly()
    wants_log = bool(flags["perfetto"] or flags["html"])
    try:
        result = simulate_deployment(model, cluster, chosen, work, seed=flags["seed"], clients=clients(flags), log=wants_log)
    except OverflowError:
        raise BadInput("the run takes over 100 days, more than the simulator's clock holds; take fewer requests, or more GPUs") from None
    if len(result.rejected) == len(work):
        raise CheckFailed(unserved(work, result))
    out = report(result, cluster, registry.accelerator(cluster.gpu), slo, time.perf_counter() - started)
    said = {"model": model.name, "trace": work.source, "plan": dataclasses.asdict(plan), "notes": notes(work, model, result)}
    return said | out, result


def unserved(work: ServeWorkload, result: ServeResult) -> str:
    """Why a deployment serves none of its requests."""
    shortest = int((work.prompt_tokens + work.output_tokens).min())
    room = min(int(pool.memory.kv_bytes / pool.memory.kv_bytes_per_token) for pool in result.pools)
    what = f"none of the {len(work):,} requests can be served: "
    if shortest <= room:
        return (
            f"{what}no step can carry a whole prompt of {int(work.prompt_tokens.min()):,} tokens; raise --chunk, or take --policy vllm-v1"
        )
    return (
        f"{what}the shortest needs {shortest:,} tokens of KV cache and a replica holds {room:,}; "
        "add GPUs to a replica (--tp), take a smaller --kv-dtype, or shorten the requests"
    )


def notes(work: ServeWorkload, model: ModelSpec, result: ServeResult) -> list[str]:
    """What a reader of the figures should know besides."""
    found = []
    longest = int((work.prompt_tokens + work.output_tokens).max())
    if longest > model.max_seq_tokens:
        found.append(f"the longest request, {longest:,} tokens, is beyond the {model.max_seq_tokens:,} that {model.name} was made for")
    if n := len(result.rejected):
        found.append(f"{n:,} of {len(work):,} requests are longer than a replica can hold; they were turned away and count in no latency")
    return found


def files(flags: dict[str, Any], out: dict[str, Any], result: ServeResult) -> Iterator[tuple[str, str, str]]:
    """(flag, path, text) of every file that was asked for; each text is whole before anything is written."""
    if flags["perfetto"]:
        trace = serving_trace(result, result.logs, window(flags["window"]))
        yield "--perfetto", flags["perfetto"], json.dumps(trace, allow_nan=False)
    if flags["html"]:
        yield "--html", flags["html"], serving_page(out, result, result.logs)
    if flags["csv"]:
        yield "--csv", flags["csv"], csv_text(request_columns(result))
    if flags["json_path"]:
        yield "--json", flags["json_path"], json.dumps(out, indent=2, allow_nan=False) + "\n"


def check_outputs(flags: dict[str, Any]) -> None:
    """BadInput, before anything runs, where two outputs go to one place, a place cannot be written, or --window has nothing to cut."""
    if flags["window"] and not flags["perfetto"]:
        raise BadInput("--window is the part of the run that --perfetto shows; give --perfetto FILE, or drop it")
    places: dict[str, str] = {}
    for flag, name in OUTPUTS.items():
        if flags[name] is None:
            continue
        if flags[name] in places:
            where = "standard output" if flags[name] == "-" else flags[name]
            raise BadInput(f"{places[flags[name]]} and {flag} both write to {where}; give each a file of its own")
        places[flags[name]] = flag
        check_place(flags[name], flag)
