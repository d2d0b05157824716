"""A calibration: the fitted numbers of one accelerator's kernels and collectives, with their residuals and provenance."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import BadFile, UnknownName
from .hardware import Accelerator
from .load import build, names, read_toml

MAX_TABLE_BYTES = 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class FamilyFit:
    """The fit of one kernel family and number format: ``coefficients`` of its trend, rows fitted, residuals of rows left out.

    ``error_frac`` is the typical relative error (median, widened after a transfer); ``p90_error_frac`` its 90th percentile.
    """

    coefficients: dict[str, float]
    n_rows: int
    error_frac: float
    p90_error_frac: float
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """Fits by family (``gemm.bf16``, ``attention.prefill.hd128`` …) and the accelerator they were measured on.

    ``transferred_from`` is empty when the card itself was measured, else the kin whose efficiencies it borrows: every trend is
    written relative to the card's own peak and bandwidth, so a borrowed fit needs only the two ceilings.
    """

    name: str
    families: dict[str, FamilyFit]
    transferred_from: str = ""
    sources: dict[str, str] = field(default_factory=dict)
    tables: dict[str, NDArray[Any]] = field(default_factory=dict)

    def fit(self, *keys: str) -> FamilyFit:
        """The first family present among ``keys``; UnknownName if none is."""
        for key in keys:
            if key in self.families:
                return self.families[key]
        raise UnknownName(f"kernel family in the calibration of {self.name}", keys[0], self.families)


TRANSFER_ERROR_FACTOR = 3.0
"""How much wider the stated error of a borrowed efficiency is: whole-GPU-left-out error over ordinary left-out error."""


def read_calibration(path: Path) -> Calibration:
    """A calibration from ``<gpu>.toml`` and the packed tables ``<gpu>.npz`` beside it; BadFile if either is malformed."""
    data = read_toml(path)
    data.setdefault("name", path.stem)
    if "tables" in data:
        raise BadFile(f"{path}: tables belong in the .npz file beside it")
    return replace(build(Calibration, data, str(path)), tables=_read_tables(path.with_suffix(".npz")))


def _read_tables(path: Path) -> dict[str, NDArray[Any]]:
    if not path.exists():
        return {}
    if path.stat().st_size > MAX_TABLE_BYTES:
        raise BadFile(f"{path}: {path.stat().st_size:,} bytes is over the limit of {MAX_TABLE_BYTES:,} for calibration tables")
    try:
        with np.load(path, allow_pickle=False) as packed:
            return {key: packed[key] for key in packed.files}
    except (OSError, ValueError, KeyError, EOFError) as error:
        raise BadFile(f"{path}: not a readable .npz of calibration tables: {error}") from None


def load_calibration(accelerator: Accelerator) -> Calibration:
    """The card's own calibration, else its kin's marked as transferred with wider errors; BadFile if no kin was measured either."""
    return _load(accelerator.name, accelerator.kin)


@cache
def _load(name: str, kin: str) -> Calibration:
    known = names("calibrations")
    if name in known:
        return read_calibration(known[name])
    seen = {name}
    while kin and kin not in known and kin not in seen:
        seen.add(kin)
        kin = str(read_toml(names("hardware")[kin]).get("kin", "")) if kin in names("hardware") else ""
    if kin not in known:
        raise BadFile(f"{name} has no calibration and no measured kin; measured: {', '.join(known)}; set `kin` in scenarios/hardware/{name}.toml")
    return transfer(read_calibration(known[kin]), name)


def transfer(measured: Calibration, name: str) -> Calibration:
    """Lend a measured card's efficiencies to another card, with the stated errors widened by TRANSFER_ERROR_FACTOR."""
    wider = {
        key: replace(f, error_frac=f.error_frac * TRANSFER_ERROR_FACTOR, p90_error_frac=f.p90_error_frac * TRANSFER_ERROR_FACTOR)
        for key, f in measured.families.items()
    }
    return replace(measured, name=name, families=wider, transferred_from=measured.name)
