"""Writes a calibration to disk, whole or not at all: readable TOML with sources and residuals, int8 tables packed beside it."""

from __future__ import annotations

import lzma
from pathlib import Path

from ..scenarios.calibration import Calibration, FamilyFit
from ..scenarios.store import make_folder, write_files


def to_toml(calibration: Calibration) -> str:
    """The calibration's text: sources, then one table per family."""
    lines = [
        "# Written by `roofplan calibrate fit`; do not edit. Coefficients and residuals of each kernel family; see its source.",
        "",
        "[sources]",
    ]
    lines += [f"{_key(k)} = {_text(v)}" for k, v in calibration.sources.items()]
    for key, fit in calibration.families.items():
        lines += ["", f"[families.{_key(key)}]", *_family(fit)]
    return "\n".join(lines) + "\n"


def _family(fit: FamilyFit) -> list[str]:
    lines = [
        f"source = {_text(fit.source)}",
        f"n_rows = {fit.n_rows}",
        f"error = {fit.error_frac:.4g}",
        f"p90_error = {fit.p90_error_frac:.4g}",
    ]
    if fit.lent_by:
        lines.append(f"lent_by = {_text(fit.lent_by)}")
    if fit.coefficients:
        lines.append("coefficients = { " + ", ".join(f"{k} = {v:.6g}" for k, v in fit.coefficients.items()) + " }")
    else:
        lines.append("coefficients = {}")
    if fit.axes:
        lines += [f"first = {fit.first}", f"step = {fit.step:.6g}", f"axes = [{','.join(_numbers(a) for a in fit.axes)}]"]
    if fit.labels:
        lines.append(f"labels = [{', '.join(map(_text, fit.labels))}]")
    if fit.interval_edges:
        lines += [f"interval_edges = {_numbers(fit.interval_edges)}", f"interval = {_numbers(fit.interval_frac)}"]
    if fit.beyond_frac:
        lines.append(f"beyond = {fit.beyond_frac:.4g}")
    return lines


def _numbers(values: tuple[float, ...]) -> str:
    return "[" + ",".join(f"{v:.6g}" for v in values) + "]"


def _key(name: str) -> str:
    return name if name.replace("_", "").replace("-", "").isalnum() else f'"{name}"'


def _text(value: str) -> str:
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'


def packed(calibration: Calibration) -> bytes:
    """The correction codes, compressed (xz)."""
    literal = {"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "lc": 4, "lp": 0, "pb": 0}
    return lzma.compress(calibration.codes.tobytes(), filters=[literal])


def save(calibration: Calibration, folder: Path) -> Path:
    """Write ``<folder>/<name>.toml`` and ``.xz``, each replaced in one step; returns the TOML's path."""
    make_folder(folder, "--out")
    text = folder / f"{calibration.name}.toml"
    write_files({text.with_suffix(".xz"): packed(calibration), text: to_toml(calibration).encode()})
    return text
