"""bench/: the benchmark that would check the prediction, the predicted rate-latency curve, and a script that compares the two."""

from __future__ import annotations

import math
from typing import Any

from ..script import template
from ..target import to_json
from .job import ROUTER_PORT, ServeJob
from .shell import HEAD, Argument, bash_array, flag, model_lines
from .vllm import VERSION

CURVE = ("ttft_s_mean", "ttft_s_p50", "ttft_s_p99", "tpot_s_mean", "tpot_s_p50", "tpot_s_p99", "e2e_s_mean", "output_tokens_per_s")
"""What a row of the predicted curve may hold besides ``rate_per_s``."""
SECONDS_A_RATE = 120.0
FEWEST_PROMPTS, MOST_PROMPTS = 64, 4000


def emit(job: ServeJob) -> dict[str, str]:
    """bench.sh, predicted.json and compare.py."""
    return {
        "bench/bench.sh": script(job),
        "bench/predicted.json": to_json(predicted(job)),
        "bench/compare.py": template("serve_compare.py"),
    }


def predicted(job: ServeJob) -> dict[str, Any]:
    """The prediction as compare.py reads it: what is served on what, the promises, and the curve."""
    return {
        "model": job.model.name,
        "engine": job.deployment.plan.engine,
        "gpu": job.cluster.gpu,
        "n_gpus": job.deployment.n_gpus,
        "workload": {
            "prompt_tokens": job.prompt_tokens,
            "output_tokens": job.output_tokens,
            "shared_prefix_tokens": job.shared_prefix_tokens,
            "arrivals": "poisson",
        },
        "slo": dict(job.slo),
        "error_frac": job.predicted.get("error_frac"),
        "curve": curve(job),
    }


def curve(job: ServeJob) -> list[dict[str, float]]:
    """Predicted latencies by rate; one row of the summary's means where no curve is given, none where there is no rate either."""
    given = job.predicted.get("curve") or []
    rows = [{"rate_per_s": float(row["rate_per_s"])} | _known(row) for row in given]
    rate = job.predicted.get("rate_per_s") or job.predicted.get("goodput_per_s")
    if not rows and rate:
        means = {"ttft_s_mean": job.predicted.get("ttft_s"), "tpot_s_mean": job.predicted.get("tpot_s")}
        rows = [{"rate_per_s": float(rate)} | _known(means)]
    return sorted(rows, key=lambda row: row["rate_per_s"])


def _known(row: Any) -> dict[str, float]:
    return {name: float(row[name]) for name in CURVE if row.get(name) is not None and math.isfinite(row[name])}


def script(job: ServeJob) -> str:
    """bench.sh: one run of ``vllm bench serve`` a rate, then the comparison; rates may be arguments, PROMPTS a variable."""
    rates = [row["rate_per_s"] for row in curve(job)] or [1.0]
    what = f"Sends the planned requests at each rate with `vllm bench serve` of vLLM {VERSION}; the server may be any of this folder's."
    return (
        HEAD.format(what=what)
        + model_lines(job)
        + f'BASE_URL="${{BASE_URL:-http://localhost:{ROUTER_PORT}}}"\n'
        + f'[ "$#" -gt 0 ] || set -- {" ".join(f"{rate:.6g}" for rate in rates)}\n'
        + bash_array("ARGUMENTS", arguments(job))
        + "mkdir -p measured\n"
        + 'for rate in "$@"; do\n'
        + f'  prompts="${{PROMPTS:-$(awk -v r="$rate" \'BEGIN {{ n = int(r * {SECONDS_A_RATE:g}); '
        + f"if (n < {FEWEST_PROMPTS}) n = {FEWEST_PROMPTS}; if (n > {MOST_PROMPTS}) n = {MOST_PROMPTS}; print n }}')}}\"\n"
        + '  vllm bench serve --base-url "$BASE_URL" --tokenizer "${TOKENIZER:-$MODEL}" "${ARGUMENTS[@]}" \\\n'
        + '    --request-rate "$rate" --num-prompts "$prompts" --result-dir measured --result-filename "rate-$rate.json"\n'
        + "done\n"
        + "exec python3 compare.py\n"
    )


def arguments(job: ServeJob) -> list[Argument]:
    """The arguments of ``vllm bench serve`` that do not change with the rate."""
    goodput = [f"{key}:{value * 1e3:g}" for key, value in _slo(job).items()]
    found = [
        flag("backend", "openai"),
        flag("model", job.model.name),
        flag("dataset-name", "random"),
        flag("random-input-len", job.prompt_tokens - job.shared_prefix_tokens),
        flag("random-output-len", job.output_tokens),
        flag("random-range-ratio", "0.0"),
        flag("random-prefix-len", job.shared_prefix_tokens),
        ("--ignore-eos",),
        flag("temperature", 0),
        flag("seed", 1),
        flag("num-warmups", 8),
        flag("percentile-metrics", "ttft,tpot,itl,e2el"),
        flag("metric-percentiles", "50,90,99"),
        ("--save-result",),
        ("--save-detailed",),
    ]
    return [*found, ("--goodput", *goodput)] if goodput else found


def _slo(job: ServeJob) -> dict[str, float]:
    names = {"ttft_s": "ttft", "tpot_s": "tpot", "e2e_s": "e2el"}
    return {names[name]: value for name, value in job.slo.items() if name in names}
