"""Fits every family of one GPU and assembles its calibration; kinds of work nobody measured on it are borrowed from other cards."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from ..scenarios.calibration import TRANSFER_ERROR_FACTOR, Calibration, FamilyFit
from ..scenarios.errors import BadInput
from ..scenarios.hardware import Accelerator
from . import errors_model, published
from .curves import Bound
from .fit import Fitted, Table, each_left_out, fit_family, holdout, left_out

Say = Callable[[str], None]


FOLDS, FOLDED_ROWS = 4, 1500
"""Families of few rows are left out this many times over, so that their errors rest on enough of them."""

FEW_ROWS = 200
"""Below this (messages) a quarter left out thins the grid itself, and errors come out too wide: rows are left out a tenth at a time."""

Part = tuple[str, FamilyFit, Table]


def fit_parts(bounds: Iterable[Bound], seed: int = 0, errors: bool = True, say: Say = lambda _: None) -> list[Part]:
    """Each family's fit and its table, coefficients from all rows, errors from rows left out of further fits (``False``: not learned)."""
    parts: list[Part] = []
    for bound in bounds:
        say(bound.key)
        fitted = fit_family(bound, np.arange(len(bound.seconds)), seed)
        parts += _families(bound, fitted, _error(bound, seed) if errors else errors_model.UNKNOWN)
    return parts


def assemble(gpu: Accelerator, parts: Iterable[Part], sources: Mapping[str, str]) -> Calibration:
    """The calibration of one GPU: every measured family, and the published ones no table measures."""
    families: dict[str, FamilyFit] = {}
    codes: list[NDArray[np.int8]] = []
    cells = 0
    for key, fit, table in parts:
        if table.codes.size > 1:
            fit = replace(fit, axes=table.axes, step=table.step, first=cells)
            codes.append(table.packed())
            cells += table.codes.size
        families[key] = fit
    joined = np.concatenate(codes) if codes else np.zeros(0, np.int8)
    return Calibration(name=gpu.name, families={**published.families(gpu), **families}, sources=dict(sources), codes=joined)


def _error(bound: Bound, seed: int) -> errors_model.ErrorModel:
    """Errors on rows left out at random; on whole shapes left out where a kin's coefficients stand in for many shapes."""
    kind = "shapes" if bound.pull and len(np.unique(bound.shapes)) > 1 else "rows"
    if not bound.pull and len(bound.seconds) < FEW_ROWS:
        random, at = each_left_out(bound, seed)
    else:
        folds = FOLDS if len(bound.seconds) < FOLDED_ROWS or kind == "shapes" else 1
        random, at = (np.concatenate(x) for x in zip(*(left_out(bound, kind, seed=seed + i) for i in range(folds)), strict=True))
    beyond, far = left_out(bound, "size", seed=seed)
    octaves = np.log2(bound.size[far] / bound.size[~holdout(bound, "size", 0.25, seed)].max()) if len(far) else np.zeros(0)
    return errors_model.learn(bound.seconds[at] * np.exp(random), random, beyond, octaves)


def _families(bound: Bound, fitted: Fitted, error: errors_model.ErrorModel) -> Iterable[Part]:
    whole = FamilyFit(
        coefficients=fitted.coefficients, n_rows=len(bound.seconds), error_frac=error.median_frac, p90_error_frac=error.p90_frac,
        source=bound.source, interval_edges=error.edges_s, interval_frac=error.widths_frac, beyond_frac=error.beyond_frac,
    )  # fmt: skip
    yield bound.key, whole, fitted.table
    if fitted.own is not None:
        own = replace(whole, coefficients={}, labels=bound.labels, interval_edges=(), interval_frac=(), beyond_frac=0.0)
        yield f"{bound.key}.shapes", own, fitted.own


def kind_of(key: str) -> str:
    """What a family is for: ``attention.prefill``, ``collective.p2p``, ``gemm`` … (number formats and shapes left out)."""
    words = key.split(".")
    return ".".join(words[:2]) if words[0] in ("attention", "mla", "collective", "internode") else words[0]


def complete(calibration: Calibration, gpu: Accelerator, lender: Calibration) -> Calibration:
    """Add what the card's kin lends it (errors widened already) for every kind of work and format that was not measured on it.

    So are figures read from publications: they are of the kin's architecture, where the card names a kin.
    """
    measured = {k: f for k, f in calibration.families.items() if k not in published.families(gpu)}
    own = {kind_and_format(k) for k in measured}
    families, codes, cells = dict(measured), [calibration.codes], len(calibration.codes)
    for key, fit in lender.families.items():
        if kind_and_format(key) in own:
            continue
        size = int(np.prod(fit.shape)) if fit.axes else 0
        codes.append(lender.codes[fit.first : fit.first + size])
        families[key] = replace(fit, first=cells if size else 0, lent_by=lender.transferred_from)
        cells += size
    return replace(calibration, families=families, codes=np.concatenate(codes))


def kind_and_format(key: str) -> str:
    """As ``kind_of``, with the number format of products and experts, whose kernels are of that format alone."""
    words = key.split(".")
    return ".".join(words[:2]) if words[0] in ("gemm", "moe") else kind_of(key)


def borrow(calibration: Calibration, gpu: Accelerator, donors: Iterable[Calibration]) -> Calibration:
    """Fill each kind of work the card has no family of with the first donor's, errors widened, if the card knows its formats."""
    families, codes, have = dict(calibration.families), [calibration.codes], {kind_of(k) for k in calibration.families}
    cells = len(calibration.codes)
    for donor in donors:
        missing = {k: f for k, f in donor.families.items() if kind_of(k) not in have and _runs(gpu, k)}
        for key, fit in missing.items():
            size = int(np.prod(fit.shape)) if fit.axes else 0
            codes.append(donor.codes[fit.first : fit.first + size])
            families[key] = replace(
                fit, first=cells if size else 0, error_frac=fit.error_frac * TRANSFER_ERROR_FACTOR,
                p90_error_frac=fit.p90_error_frac * TRANSFER_ERROR_FACTOR,
                interval_frac=tuple(w * TRANSFER_ERROR_FACTOR for w in fit.interval_frac), source=f"{fit.source} of {donor.name}",
            )  # fmt: skip
            cells += size
        have |= {kind_of(k) for k in missing}
    return replace(calibration, families=families, codes=np.concatenate(codes))


def _runs(gpu: Accelerator, key: str) -> bool:
    words = key.split(".")
    if words[0] not in ("gemm", "moe"):
        return True
    try:
        return gpu.peak_flops_per_s(words[1]) > 0
    except BadInput:
        return False
