"""One HTML page of a serving run: what it amounts to, latency distributions, and load, queue and KV cache over time."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

import numpy as np

from ..scenarios.errors import BadInput
from ..scenarios.units import show_number
from .serve_result import ServeResult
from .serving_frames import levels_over_time, over_time
from .serving_metrics import latencies
from .step_log import StepLog

MAX_POINTS = 2000
RIGHT = {"overlaying": "y", "side": "right", "showgrid": False, "tickmode": "auto"}
STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:960px;margin:2em auto;padding:0 1em;color:#222}"
    "table{border-collapse:collapse;margin:1em 0}td,th{padding:.25em .9em .25em 0;text-align:right;border-bottom:1px solid #ddd}"
    "td:first-child,th:first-child{text-align:left}.bad{color:#b00020;font-weight:600}"
)


def plotly() -> Any:
    """The plotly graph objects; BadInput with the cure if the ``report`` extra is not installed."""
    try:
        import plotly.graph_objects
    except ImportError:
        raise BadInput("the page needs plotly; install it with: pip install 'roofplan[report]'") from None
    return plotly.graph_objects


def serving_page(out: Mapping[str, Any], result: ServeResult, logs: Mapping[str, StepLog]) -> str:
    """The page as text; ``out`` is the run's stable JSON form. Needs no network to open. Equal runs give equal pages."""
    figures = [latency_figure(result), load_figure(result)]
    if any(len(log.columns()["start_ps"]) for log in logs.values()):
        figures.append(levels_figure(logs, {pool["name"]: pool["kv_blocks"] for pool in out["pools"]}))
    drawn = [
        figure.to_html(full_html=False, include_plotlyjs="inline" if not i else False, div_id=f"figure{i}", config={"displaylogo": False})
        for i, figure in enumerate(figures)
    ]
    title = escape(f"{out['model']} on {out['n_gpus']} x {out['gpu']}")
    head = f"<!doctype html><html lang='en'><meta charset='utf-8'><title>{title}</title><style>{STYLE}</style><h1>{title}</h1>"
    return head + played(out) + summary(out) + "".join(drawn) + "</html>\n"


def played(out: Mapping[str, Any]) -> str:
    """What was played, in a sentence: the requests, the pools and their GPUs, the engine, the promises and the seed; then the notes."""
    pools = " + ".join(f"{p['n_replicas']} x {p['name']} on {p['gpus_each']} GPUs" for p in out["pools"])
    promised = ", ".join(f"{name.removesuffix('_s').upper()} {value:,g} s" for name, value in out["slo"].items() if value is not None)
    text = f"{out['n_requests']:,} requests ({out['trace']}); {pools}; {out['plan']['engine']}; {promised or 'no latency promised'}"
    return "".join(f"<p>{escape(line)}.</p>" for line in (f"{text}; seed {out['seed']}", *out["notes"]))


def summary(out: Mapping[str, Any]) -> str:
    """The run's figures as HTML tables, with a plain sentence first where the system was overloaded."""
    warning = ""
    if out["saturated"]:
        growth = out["saturation"]["growth"]
        warning = f"<p class='bad'>Overloaded: TTFT grows by {growth:.2f} s every second; these averages never settle.</p>"
    names = list(out["ttft_s"])
    head = "".join(f"<th>{name.replace('_', '.')}</th>" for name in names)
    rows = "".join(
        f"<tr><td>{name.removesuffix('_s').upper()}, ms</td>{''.join(f'<td>{v * 1e3:,.1f}</td>' for v in out[name].values())}</tr>"
        for name in ("ttft_s", "tpot_s", "itl_s", "e2e_s")
    )
    facts = {
        "requests served": f"{out['n_requests'] - out['n_rejected']:,} of {out['n_requests']:,}",
        "output tokens a second": f"{out['output_tokens_per_s']:,.0f}",
        "goodput, requests a second": show_number(out["goodput_per_s"]),
        "preemptions": f"{out['preemptions']:,}",
        "prompt tokens found cached": f"{out['cache_hit_frac']:.1%}",
        "replicas busy": f"{out['busy_frac']:.0%}",
        "USD per million output tokens": show_number(out["cost_usd_per_mtoken"]),
        "joules a token, at most": show_number(out["energy_j_per_token_at_tdp"]),
    }
    facts_rows = "".join(f"<tr><td>{name}</td><td>{value}</td></tr>" for name, value in facts.items())
    return f"{warning}<table><tr><th></th>{head}</tr>{rows}</table><table>{facts_rows}</table>"


def latency_figure(result: ServeResult) -> Any:
    """Share of requests within each latency: TTFT, TPOT and E2E."""
    figure = plotly().Figure()
    for name, values in latencies(result).items():
        at = np.sort(values)
        keep = np.unique(np.linspace(0, len(at) - 1, MAX_POINTS).astype(int)) if len(at) else np.zeros(0, int)
        share = (keep + 1) / max(len(at), 1)
        figure.add_scatter(x=at[keep].tolist(), y=share.tolist(), mode="lines", name=name.removesuffix("_s").upper())
    figure.update_xaxes(type="log", title="seconds, logarithmic").update_yaxes(title="share of requests", tickformat=".0%", range=[0, 1.02])
    return figure.update_layout(title="Latency: share of requests within a time", template="plotly_white", height=380)


def load_figure(result: ServeResult) -> Any:
    """Requests arriving and finishing a second, and how many are in the system."""
    bins, figure = over_time(result, 80), plotly().Figure()
    x = bins["time_s"].tolist()
    for key, label in (("arrivals_per_s", "arriving a second"), ("finished_per_s", "finishing a second")):
        figure.add_scatter(x=x, y=bins[key].tolist(), mode="lines", name=label)
    figure.add_scatter(x=x, y=bins["n_in_system"].tolist(), mode="lines", name="in the system", yaxis="y2")
    return figure.update_layout(
        title="Load", template="plotly_white", height=380, xaxis={"title": "seconds", "rangemode": "tozero"},
        yaxis={"title": "requests a second", "rangemode": "tozero"},
        yaxis2=RIGHT | {"title": "requests in the system", "rangemode": "tozero"},
        legend={"orientation": "h", "y": -0.25},
    )  # fmt: skip


def levels_figure(logs: Mapping[str, StepLog], blocks: Mapping[str, int]) -> Any:
    """Waiting and decoding requests, and the share of KV blocks in use, over all replicas; ``blocks`` of a replica, by its pool's name."""
    levels, figure = levels_over_time(logs), plotly().Figure()
    x, total = levels["time_s"].tolist(), sum(blocks[name.rpartition(" ")[0]] for name in logs)
    for key, label in (("n_waiting", "waiting"), ("n_decoding", "decoding")):
        figure.add_scatter(x=x, y=levels[key].tolist(), mode="lines", name=label)
    used = 1 - levels["free_blocks"] / max(total, 1)
    figure.add_scatter(x=x, y=used.tolist(), mode="lines", name="KV blocks in use", yaxis="y2")
    return figure.update_layout(
        title="Queue and KV cache", template="plotly_white", height=380, xaxis={"title": "seconds", "rangemode": "tozero"},
        yaxis={"title": "requests", "rangemode": "tozero"},
        yaxis2=RIGHT | {"title": "KV blocks in use", "tickformat": ".0%", "range": [0, 1]},
        legend={"orientation": "h", "y": -0.25},
    )  # fmt: skip
