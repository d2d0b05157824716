"""One HTML page of a check: parity, efficiency over the floor, worst rows, and how many rows the 80 % intervals hold."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..costmodels.arrays import Array, Rows
from ..scenarios.errors import BadInput
from ..scenarios.units import show_number
from .check import Checked

MAX_POINTS = 3000
WORST = 15
STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:1100px;margin:2em auto;padding:0 1em;color:#222}"
    "table{border-collapse:collapse;margin:1em 0}td,th{padding:.2em .9em .2em 0;text-align:left;border-bottom:1px solid #ddd}"
)


def plotly() -> Any:
    """The plotly graph objects; BadInput with the cure if the ``report`` extra is not installed."""
    try:
        import plotly.graph_objects
    except ImportError:
        raise BadInput("the report needs plotly; install it with: pip install 'roofplan[report]'") from None
    return plotly.graph_objects


def page(checked: Sequence[Checked]) -> str:
    """The page as text: one section per kind of kernel with its parity plot and error map, then tables. Needs no network to open."""
    figures = []
    kinds = list(dict.fromkeys(c.table for c in checked if len(c.measured_s)))
    if not kinds:
        raise BadInput("nothing to report: no measured row has a family in the calibration")
    for number, kind in enumerate(kinds):
        parts = [c for c in checked if c.table == kind and len(c.measured_s)]
        figures.append(f"<h2>{kind}</h2>")
        for figure in (parity(parts), error_map(parts)):
            figures.append(figure.to_html(full_html=False, include_plotlyjs="inline" if number == 0 and len(figures) == 1 else False))
        figures.append(worst_table(parts))
    body = "\n".join([coverage_table(checked), *figures])
    head = f"<!doctype html><meta charset='utf-8'><title>roofplan calibrate check</title><style>{STYLE}</style>"
    return f"{head}<h1>Predicted and measured kernel times</h1>{body}"


def parity(parts: Sequence[Checked]) -> Any:
    """Predicted against measured seconds, one colour a GPU. Drawn without WebGL: browsers keep few such drawings on a page."""
    go = plotly()
    figure = go.Figure()
    gpus = list(dict.fromkeys(c.gpu for c in parts))
    for gpu in gpus:
        measured, predicted = _joined([c for c in parts if c.gpu == gpu])
        keep = _sample(len(measured), MAX_POINTS // len(gpus))
        figure.add_scatter(x=measured[keep], y=predicted[keep], mode="markers", name=gpu, marker={"size": 3})
    measured, _ = _joined(parts)
    ends = [float(measured.min()), float(measured.max())]
    figure.add_scatter(x=ends, y=ends, mode="lines", name="equal", line={"color": "black", "width": 1})
    axes = {name: {"type": "log", "title": f"{word}, s"} for name, word in (("xaxis", "measured"), ("yaxis", "predicted"))}
    return figure.update_layout(**axes, title="Predicted against measured time", template="plotly_white", height=480)


def error_map(parts: Sequence[Checked]) -> Any:
    """Median absolute error by decade of measured time (columns) and family (rows)."""
    go = plotly()
    edges = np.arange(-6, 0.6, 0.5)
    rows, names = [], []
    for part in parts:
        error = np.abs(part.predicted_s / part.measured_s - 1)
        at = np.digitize(np.log10(part.measured_s), edges)
        rows.append([float(np.median(error[at == i])) if (at == i).any() else None for i in range(1, len(edges))])
        names.append(f"{part.gpu} {part.family}")
    labels = [_from_s(10.0**e) for e in edges[:-1]]
    bar = {"title": "error", "tickformat": ".0%"}
    heat = go.Heatmap(z=rows, x=labels, y=names, zmin=0, zmax=0.3, colorscale="Viridis", colorbar=bar, hoverongaps=False)
    return go.Figure(heat).update_layout(
        title="Median error by measured time (30 % and more in one colour)", template="plotly_white", height=280 + 18 * len(names),
        xaxis={"title": "measured time, from"}, yaxis={"automargin": True},
    )  # fmt: skip


def worst_table(parts: Sequence[Checked]) -> str:
    """The rows with the largest errors, with their shapes."""
    found: list[tuple[float, str]] = []
    for part in parts:
        error = part.predicted_s / part.measured_s - 1
        for i in np.argsort(-np.abs(error))[:WORST]:
            shape = ", ".join(f"{k}={v[i]:g}" for k, v in part.rows.items() if v.dtype.kind == "f" and k not in ("latency_us", "n_samples"))
            found.append(
                (
                    float(abs(error[i])),
                    f"<tr><td>{part.gpu}</td><td>{part.family}</td><td>{shape}</td><td>{100 * error[i]:+.0f} %</td></tr>",
                )
            )
    rows = "".join(row for _, row in sorted(found, key=lambda f: -f[0])[:WORST])
    return f"<h3>Worst rows</h3><table><tr><th>GPU</th><th>family</th><th>shape</th><th>error</th></tr>{rows}</table>"


def coverage_table(checked: Sequence[Checked]) -> str:
    """Rows, median error and share of rows inside the 80 % interval, by GPU and family."""
    lines = []
    for part in checked:
        if len(part.measured_s):
            error = np.abs(part.predicted_s / part.measured_s - 1)
            stated = not np.isnan(part.interval_frac).any()
            held = f"{100 * np.mean(error <= part.interval_frac):.0f} %" if stated else "not stated"
            numbers = f"<td>{len(error):,}</td><td>{100 * np.median(error):.1f} %</td><td>{held}</td>"
            lines.append(f"<tr><td>{part.gpu}</td><td>{part.family}</td>{numbers}</tr>")
    head = "<tr><th>GPU</th><th>family</th><th>rows</th><th>median error</th><th>inside the 80 % interval</th></tr>"
    return f"<table>{head}{''.join(lines)}</table>"


def _joined(parts: Sequence[Checked]) -> tuple[Array, Array]:
    return np.concatenate([c.measured_s for c in parts]), np.concatenate([c.predicted_s for c in parts])


def _from_s(seconds: float) -> str:
    scale, unit = (1e6, "us") if seconds < 1e-3 else (1e3, "ms") if seconds < 1 else (1, "s")
    return f"{show_number(seconds * scale, 2)} {unit}"


def _sample(n: int, most: int) -> Rows:
    return np.arange(n) if n <= most else np.linspace(0, n - 1, most).astype(int)
