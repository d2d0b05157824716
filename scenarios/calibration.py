"""A calibration: the fitted numbers of one accelerator's kernels and collectives, with their residuals and provenance."""

from __future__ import annotations

import lzma
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .errors import BadFile, UnknownName
from .hardware import Accelerator
from .load import build, by_name, names, read_toml

Codes = NDArray[np.int8]

MAX_TABLE_BYTES = 2**20
MAX_CELLS = 2**23


@dataclass(frozen=True, slots=True, kw_only=True)
class FamilyFit:
    """The fit of one kernel family and variant.

    ``coefficients`` belong to its trend (a formula of ``costmodels``); the correction ``ln(time / trend)`` is a table over ``axes``
    (node values, ascending) whose int8 codes start at cell ``first`` of the packed file, in units of ``step`` and as differences along
    the first axis; no axes: no correction. ``labels`` name the nodes of a last axis that numbers shapes.
    ``error_frac`` is the median relative error on rows left out of the fit, ``p90_error_frac`` its 90th percentile; ``interval_frac[i]``
    is the half width that holds 80 % of the rows left out whose time lay between ``interval_edges[i]`` and the next edge (seconds);
    ``beyond_frac`` is the error added per octave outside the measured sizes. ``source`` says which rows were fitted, ``lent_by`` the card
    they were measured on where it is another one.
    """

    coefficients: dict[str, float]
    n_rows: int
    error_frac: float
    p90_error_frac: float
    source: str
    axes: tuple[tuple[float, ...], ...] = ()
    step: float = 0.0
    first: int = 0
    labels: tuple[str, ...] = ()
    interval_edges: tuple[float, ...] = ()
    interval_frac: tuple[float, ...] = ()
    beyond_frac: float = 0.0
    lent_by: str = ""

    @property
    def shape(self) -> tuple[int, ...]:
        """Nodes per axis of the correction table."""
        return tuple(len(axis) for axis in self.axes)


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
    codes: Codes = field(default_factory=lambda: np.zeros(0, np.int8), repr=False, compare=False)

    def fit(self, *keys: str) -> FamilyFit:
        """The first family present among ``keys``; UnknownName if none is."""
        for key in keys:
            if key in self.families:
                return self.families[key]
        raise UnknownName(f"kernel family in the calibration of {self.name}", keys[0], self.families)

    def correction(self, fit: FamilyFit) -> NDArray[np.float32]:
        """The correction table of a fit as natural logs, shaped by its axes (an empty table if it has none)."""
        if not fit.axes:
            return np.zeros(0, np.float32)
        size = int(np.prod(fit.shape))
        steps = self.codes[fit.first : fit.first + size].reshape(fit.shape)
        return np.cumsum(steps, axis=0, dtype=np.int8).astype(np.float32) * np.float32(fit.step)


TRANSFER_ERROR_FACTOR = 4.0
"""How much wider the stated error of a borrowed efficiency is. With one measured card at a time priced from another, errors of products
and attention grew 1.0 to 1.5 times within a generation (H100, H200) and 4 to 6 times across generations."""


def read_calibration(path: Path) -> Calibration:
    """A calibration from ``<gpu>.toml`` and the packed tables ``<gpu>.xz`` beside it; BadFile if either is malformed."""
    data = read_toml(path)
    data.setdefault("name", path.stem)
    if "codes" in data:
        raise BadFile(f"{path}: codes belong in the .xz file beside it")
    calibration = build(Calibration, data, str(path))
    codes = _read_codes(path.with_suffix(".xz"))
    for key, fit in calibration.families.items():
        _check_table(key, fit, len(codes), path)
    return replace(calibration, codes=codes)


def _check_table(key: str, fit: FamilyFit, n_codes: int, path: Path) -> None:
    where = f"{path}: families.{key}"
    if any(not axis or list(axis) != sorted(set(axis)) or axis[0] <= 0 for axis in fit.axes):
        raise BadFile(f"{where}: every axis must hold ascending positive nodes")
    size = int(np.prod([float(n) for n in fit.shape])) if fit.axes else 0
    if fit.first + size > n_codes:
        raise BadFile(f"{where}: its table needs cells {fit.first:,} to {fit.first + size:,}, the packed file has {n_codes:,}")
    if len(fit.interval_edges) != len(fit.interval_frac):
        raise BadFile(f"{where}: {len(fit.interval_edges)} interval edges for {len(fit.interval_frac)} widths; give one width per edge")


def _read_codes(path: Path) -> Codes:
    if not path.exists():
        return np.zeros(0, np.int8)
    if path.stat().st_size > MAX_TABLE_BYTES:
        raise BadFile(f"{path}: {path.stat().st_size:,} bytes is over the limit of {MAX_TABLE_BYTES:,} for calibration tables")
    try:
        unpack = lzma.LZMADecompressor(memlimit=2**27)
        plain = unpack.decompress(path.read_bytes(), max_length=MAX_CELLS)
    except (OSError, EOFError, lzma.LZMAError) as error:
        raise BadFile(f"{path}: not readable calibration tables (xz): {error}") from None
    if not unpack.eof:
        raise BadFile(f"{path}: truncated, or holds more than {MAX_CELLS:,} cells")
    return np.frombuffer(plain, np.int8)


def load_calibration(accelerator: Accelerator) -> Calibration:
    """The card's own calibration, else its kin's marked as transferred with wider errors; BadFile if no kin was measured either."""
    return _load(accelerator.name, accelerator.kin)


def borrowed(accelerator: Accelerator) -> Calibration | None:
    """What its kin lends a card, whether the card was measured or not; None for a card without a measured kin."""
    kin = _measured_kin(accelerator.name, accelerator.kin)
    return _transferred(kin, accelerator.name) if kin else None


@cache
def _load(name: str, kin: str) -> Calibration:
    known = names("calibrations")
    if name in known:
        return read_calibration(known[name])
    lender = _measured_kin(name, kin)
    if not lender:
        cure = f"set `kin` in scenarios/hardware/{name}.toml"
        raise BadFile(f"{name} has no calibration and no measured kin; measured: {', '.join(known)}; {cure}")
    return _transferred(lender, name)


def _measured_kin(name: str, kin: str) -> str:
    """The first measured card along the line of kin; empty if there is none."""
    known, seen = names("calibrations"), {name}
    while kin and kin not in known and kin not in seen:
        seen.add(kin)
        kin = str(read_toml(names("hardware")[kin]).get("kin", "")) if kin in names("hardware") else ""
    return kin if kin in known else ""


@cache
def _transferred(lender: str, name: str) -> Calibration:
    donor, card = (by_name(Accelerator, "hardware", n, "GPU") for n in (lender, name))
    return transfer(read_calibration(names("calibrations")[lender]), donor, card)


LOSS_PER_BYTE_CLOCK = 0.011
"""How much ``1/memory_frac`` grows with each byte per clock that one SM must draw from memory. An SM keeps so many bytes in flight, and
a read takes some 500 to 600 clocks on every card (Little's law): the more an SM must draw, the more of the peak is lost. Source: Vidur's
memory-bound products, 0.79 of peak on an A100 (13.4 bytes) and 0.80 on an A40 (4.8 bytes, 15/16 of its peak left by inline ECC). Checks
not used: H100 to H200 (13.9 to 19.9 bytes), 0.885 becomes 0.83, measured 0.84; RTX 4090 copies, 0.93 predicted, 0.92 measured."""


def transfer(measured: Calibration, donor: Accelerator, card: Accelerator) -> Calibration:
    """Lend a measured card's efficiencies to another card, with the stated errors widened by TRANSFER_ERROR_FACTOR.

    Fractions of peak carry over, fractions of bandwidth between cards of one vendor by ``memory_frac_of``. The time to start and end a
    kernel inside a graph is a number of clocks (products: 4.5, 2.7, 2.9 and 2.2 us at 1.41, 1.83, 1.83 and 1.97 GHz on A100, H100, H200
    and B200). The traffic of a flash prefill is moved by the SMs, not by HBM (H100 and H200 differ only in HBM and take the same time),
    so its ``memory_frac`` is rescaled to keep bytes per SM and clock; a decode wave gets shorter with the peak of a faster card and no
    longer on a slower one (measured: 3.4, 3.3, 3.5 and 1.5 us on A100, H100, H200 and B200).

    Where the card's vendor publishes what large products reach, no part of peak is lent beyond that: compute fractions shrink as that of
    products does (AMD's cards lower their clock under matrix load).
    """
    slower = _reached(measured, card)
    families = {key: _lent(key, fit, donor, card, slower) for key, fit in measured.families.items()}
    return replace(measured, name=card.name, families=families, transferred_from=measured.name)


def memory_frac_of(card: Accelerator, donor: Accelerator, donor_frac: float) -> float:
    """Fraction of peak bandwidth a kernel reaches on ``card`` that reaches ``donor_frac`` on ``donor``.

    ``1/f' = 1/f + LOSS_PER_BYTE_CLOCK·(x' − x)`` with ``x`` the bytes per clock and SM, each ``f`` counted on what inline ECC leaves.
    GDDR cards draw few bytes per SM and come closer to their peak than HBM cards, those with inline ECC less so. At most 1.
    """
    if card.vendor != donor.vendor:
        return donor_frac
    (x, left), (x0, left0) = ((c.hbm_bytes_per_s / (c.n_sms * c.clock_hz), 1 - c.inline_ecc_frac) for c in (card, donor))
    return left / max(left, left0 / donor_frac + LOSS_PER_BYTE_CLOCK * (x - x0))


def _reached(measured: Calibration, card: Accelerator) -> float:
    """Published rate of large products over the rate that ``measured`` would lend; 1 where none is published or it is higher."""
    if not card.reached_bf16_flops_per_s:
        return 1.0
    return min(1.0, card.reached_bf16_flops_per_s / (_peak(card) * measured.fit("gemm.bf16").coefficients["compute_frac"]))


def _lent(key: str, fit: FamilyFit, donor: Accelerator, card: Accelerator, slower: float = 1.0) -> FamilyFit:
    c = dict(fit.coefficients)
    if "compute_frac" in c:
        c["compute_frac"] *= slower
    if key.startswith(("gemm", "attention", "mla", "moe", "stream")) and "launch_s" in c:
        c["launch_s"] *= donor.clock_hz / card.clock_hz
    if "idle_s" in c:
        c["idle_s"] *= donor.clock_hz / card.clock_hz
    if key.startswith("attention.prefill"):
        rate = card.n_sms * card.clock_hz / (donor.n_sms * donor.clock_hz)
        c["memory_frac"] = min(1.0, c["memory_frac"] * rate * donor.hbm_bytes_per_s / card.hbm_bytes_per_s)
    elif "memory_frac" in c:
        c["memory_frac"] = memory_frac_of(card, donor, c["memory_frac"])
    if key.startswith("attention.decode"):
        c["wave_s"] *= min(1.0, _peak(donor) / _peak(card))
    return replace(
        fit,
        coefficients=c,
        error_frac=fit.error_frac * TRANSFER_ERROR_FACTOR,
        p90_error_frac=fit.p90_error_frac * TRANSFER_ERROR_FACTOR,
        interval_frac=tuple(w * TRANSFER_ERROR_FACTOR for w in fit.interval_frac),
    )


def _peak(card: Accelerator) -> float:
    return card.bf16_flops_per_s or card.fp16_flops_per_s
