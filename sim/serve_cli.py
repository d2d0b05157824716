"""``roofplan simulate`` for serving: a model, a cluster and a trace in; latencies, throughput and cost out."""

from __future__ import annotations

import dataclasses
import difflib
import json
import os
import re
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource
from rich.console import Console
from rich.table import Table

from ..scenarios import registry
from ..scenarios.errors import BadFile, BadInput, RoofplanError
from ..scenarios.load import read_toml
from ..scenarios.serving import EnginePlan, ServeWorkload
from ..scenarios.units import parse_quantity, parse_tokens, show_bytes
from . import arrivals, traces
from .policies import POLICIES
from .router import ROUTERS
from .serving import simulate_serving
from .serving_metrics import Slo, report

MAX_MADE_UP = 5_000_000


@click.command("simulate")
@click.argument("scenario", required=False, type=click.Path(path_type=Path))
@click.option("--model", help="Alias, Hugging Face id, or path of a config.json.")
@click.option("--gpu", default="h100-sxm", show_default=True, help="GPU or cluster name.")
@click.option("--gpus", default=1, show_default=True, type=click.IntRange(1), help="How many; they hold equal replicas.")
@click.option("--trace", type=click.Path(path_type=Path), help="Azure, Vidur, BurstGPT, Mooncake, vLLM or guidellm file.")
@click.option("--isl", help="Prompt tokens of a made-up workload.")
@click.option("--osl", help="Output tokens of a made-up workload.")
@click.option("--requests", "n_requests", type=click.IntRange(1), help="How many requests (default: the trace; 1000 made up).")
@click.option("--rate", type=float, help="Requests per second: re-times the arrivals as Poisson.")
@click.option("--cv", default=1.0, show_default=True, help="Burstiness of --rate: coefficient of variation of the gaps.")
@click.option("--tp", default=1, show_default=True, type=click.IntRange(1), help="Tensor parallel GPUs of a replica.")
@click.option("--pp", default=1, show_default=True, type=click.IntRange(1), help="Pipeline stages of a replica.")
@click.option("--dp", default=1, show_default=True, type=click.IntRange(1), help="Attention data parallel ranks of a replica.")
@click.option("--ep", default=1, show_default=True, type=click.IntRange(1), help="Expert parallel GPUs of a replica.")
@click.option("--engine", default="vllm", show_default=True, help="Serving engine profile.")
@click.option("--policy", type=click.Choice(sorted(POLICIES)), help="Scheduling policy (default: the engine's).")
@click.option("--chunk", "token_budget", help="Most tokens of one step.")
@click.option("--max-num-seqs", default=0, type=click.IntRange(0), help="Most sequences of one step (0: the engine's).")
@click.option("--block", "block_tokens", default=0, type=click.IntRange(0), help="Tokens of a KV block (0: the engine's).")
@click.option("--kv-blocks", default=0, type=click.IntRange(0), help="KV blocks of a replica (0: from memory).")
@click.option("--preemption", default="recompute", show_default=True, type=click.Choice(["recompute", "swap"]))
@click.option("--prefix-cache", is_flag=True, help="Reuse the KV of prompt blocks seen before (needs a trace with hashes).")
@click.option("--weights", "weight_dtype", default="bf16", show_default=True, help="Weight format: bf16, fp8, fp8_block, nvfp4, int4.")
@click.option("--experts", "expert_dtype", default="", help="Format of the routed experts where it differs: nvfp4, mxfp4 …")
@click.option("--kv-dtype", default="bf16", show_default=True, help="KV-cache format: bf16, fp8, int4.")
@click.option("--router", default="round-robin", show_default=True, type=click.Choice(ROUTERS), help="Which replica gets a request.")
@click.option("--prefill", "n_prefill", default=0, type=click.IntRange(0), help="Replicas that only prefill; the others decode (0: mixed).")
@click.option("--ttft", help="Promised time to first token, like 2s.")
@click.option("--tpot", help="Promised time per output token, like 30ms.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0))
@click.option("--json", "json_path", help="Write the stable JSON form to a file, or - for stdout alone.")
@click.pass_context
def simulate(ctx: click.Context, /, scenario: Path | None, **flags: Any) -> None:
    """Simulate serving a model on a cluster under a trace or a made-up workload.

    SCENARIO is a TOML file with any of these settings, named as the flags are (max-num-seqs = 64); flags override it.
    """
    try:
        if scenario is not None:
            flags |= scenario_flags(ctx, scenario)
        out = run(flags)
        if flags["json_path"]:
            _write(json.dumps(out, indent=2) + "\n", flags["json_path"])
        if flags["json_path"] != "-":
            _show(out)
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
            found[option.name] = option.type_cast_value(ctx, value if isinstance(value, (bool, int, float)) else str(value))
        except click.BadParameter as error:
            raise BadFile(f"{path}: {key}: {error.message}") from None
        if option.name == "trace":
            found["trace"] = path.parent / found["trace"]
    return found


def run(flags: dict[str, Any]) -> dict[str, Any]:
    """The report of one simulation, from the flags of the command. Raises BadInput for anything it cannot use."""
    started = time.perf_counter()
    if not flags["model"]:
        raise BadInput("no model given; add --model, or model = … in a scenario file")
    model = registry.model(flags["model"])
    cluster = registry.cluster(flags["gpu"], flags["gpus"])
    work = _workload(flags)
    budget = parse_tokens(flags["token_budget"]) if flags["token_budget"] else 0
    names = (
        "tp",
        "pp",
        "dp",
        "ep",
        "engine",
        "max_num_seqs",
        "block_tokens",
        "kv_blocks",
        "preemption",
        "prefix_cache",
        "weight_dtype",
        "expert_dtype",
        "kv_dtype",
    )
    plan = EnginePlan(policy=flags["policy"] or "", token_budget=budget, **{name: flags[name] for name in names})
    slo = Slo(**{f"{name}_s": parse_quantity(flags[name], "_s") for name in ("ttft", "tpot") if flags[name]})
    result = simulate_serving(model, cluster, plan, work, router=flags["router"], n_prefill=flags["n_prefill"], seed=flags["seed"])
    out = report(result, cluster, registry.accelerator(cluster.gpu), slo, time.perf_counter() - started)
    return {"model": model.name, "trace": work.source, "plan": dataclasses.asdict(plan), **out}


def _workload(flags: dict[str, Any]) -> ServeWorkload:
    if flags["trace"] and (flags["isl"] or flags["osl"]):
        raise BadInput("--trace and --isl/--osl both say what the requests are; give one of them")
    n, rate, seed = flags["n_requests"], flags["rate"], flags["seed"]
    if flags["trace"]:
        work = traces.read_trace(flags["trace"])
        work = arrivals.first_requests(work, n) if n else work
    else:
        if not (flags["isl"] and flags["osl"] and rate):
            raise BadInput("no workload: give --trace FILE, or --isl N --osl N --rate R")
        n = n or 1000
        if n > MAX_MADE_UP:
            raise BadInput(f"requests={n:,} is over the limit of {MAX_MADE_UP:,} for a made-up workload")
        prompt, output = (arrivals.lengths(n, parse_tokens(flags[name]), 0.0) for name in ("isl", "osl"))
        work = ServeWorkload(arrival_s=arrivals.poisson(n, rate, seed), prompt_tokens=prompt, output_tokens=output, source="made up")
    if rate is None:
        return work
    return dataclasses.replace(work, arrival_s=arrivals.gamma(len(work), rate, flags["cv"], seed))


def _write(text: str, path: str) -> None:
    """To stdout, or to a file that appears whole or not at all."""
    if path == "-":
        sys.stdout.write(text)
        return
    target = Path(path)
    try:
        with tempfile.NamedTemporaryFile("w", dir=target.parent, prefix=target.name, delete=False, encoding="utf-8") as file:
            file.write(text)
        os.replace(file.name, target)
    except OSError as error:
        raise BadInput(f"--json {path}: cannot be written: {error.strerror}") from None


def _show(out: dict[str, Any]) -> None:
    console = Console()
    table = Table(title=f"{out['model']} on {out['n_gpus']} x {out['gpu']}: {out['n_requests']:,} requests, {out['n_iterations']:,} steps")
    for column in ("latency", "mean", "p50", "p90", "p95", "p99", "p99.9"):
        table.add_column(column, justify="left" if column == "latency" else "right")
    for name in ("ttft_s", "tpot_s", "itl_s", "e2e_s"):
        table.add_row(re.sub("_s$", "", name).upper(), *(_seconds(v) for v in out[name].values()))
    console.print(table)
    console.print(
        f"{out['output_tokens_per_s']:,.0f} output + {out['prompt_tokens_per_s']:,.0f} prompt tokens/s, "
        f"goodput {out['goodput_per_s']:.3g} requests/s, busy {out['busy_frac']:.0%}, {out['preemptions']:,} preemptions, "
        f"{out['n_rejected']:,} rejected, KV {show_bytes(out['kv_bytes'])} a GPU"
    )
    if out["cost_usd_per_mtoken"]:
        energy = out["energy_j_per_token_at_tdp"]
        console.print(f"{out['cost_usd_per_mtoken']:.3g} USD per million output tokens on demand, at most {energy:.3g} J a token")
    if out["saturated"]:
        console.print(
            f"[bold red]overloaded[/]: TTFT grows by {out['saturation']['growth']:.2f} s every second; these averages never settle"
        )


def _seconds(value: float) -> str:
    return f"{value * 1e3:.2f} ms" if value < 1 else f"{value:.2f} s"
