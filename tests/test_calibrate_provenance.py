"""Writing calibrations: what is written reads back equal; a failed write leaves nothing half done."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from roofplan.calibrate.provenance import save, to_toml
from roofplan.scenarios.calibration import Calibration, FamilyFit, read_calibration

FIT = FamilyFit(
    coefficients={"launch_s": 3.25e-6},
    n_rows=7,
    error_frac=0.03,
    p90_error_frac=0.1,
    source='table "x" \\ y',
    axes=((1.0, 129.5), (2.0,)),
    step=0.008,
    first=0,
    interval_edges=(0.0, 1e-3),
    interval_frac=(0.2, 0.05),
    beyond_frac=0.02,
)
SHAPES = replace(FIT, coefficients={}, labels=("h1i2k3e4",), first=2, axes=((4.0, 8.0),), interval_edges=(), interval_frac=())


def calibration() -> Calibration:
    return Calibration(
        name="card",
        families={"gemm.bf16": FIT, "moe.bf16.x.shapes": SHAPES},
        sources={"default": "tables"},
        codes=np.array([5, -3, 127, -128], np.int8),
    )


def test_round_trip(tmp_path: Path) -> None:
    read = read_calibration(save(calibration(), tmp_path))
    assert read == calibration()
    assert np.array_equal(read.codes, calibration().codes)


def test_text_is_stable() -> None:
    assert to_toml(calibration()) == to_toml(calibration())
