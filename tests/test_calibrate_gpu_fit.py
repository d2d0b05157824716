"""Assembling a GPU's calibration: every family and its errors, borrowed kinds with their tables, formats the card lacks left out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from roofplan.calibrate.gpu_fit import assemble, borrow, fit_parts, kind_of
from roofplan.calibrate.rows import families, gpus_of, load_tables
from roofplan.scenarios import registry
from roofplan.scenarios.calibration import TRANSFER_ERROR_FACTOR, Calibration

H100, A100 = registry.accelerator("h100-sxm"), registry.accelerator("a100-80gb-sxm")


@pytest.fixture(scope="module")
def fitted() -> Calibration:
    tables = load_tables(Path(__file__).parent / "data" / "kernels")
    said: list[str] = []
    out = assemble(H100, fit_parts(families(tables, H100, gpus_of(tables)["h100-sxm"]), say=said.append), {"default": "sample"})
    assert "gemm.bf16" in said
    return out


def test_measured_and_published_families(fitted: Calibration) -> None:
    assert {"gemm.bf16", "attention.backward", "host_copy", "moe.bf16.triton_triton.shapes"} <= set(fitted.families)
    assert fitted.fit("gemm.bf16").n_rows == 60
    assert 0 < fitted.fit("gemm.bf16").error_frac < fitted.fit("gemm.bf16").p90_error_frac
    cells = sum(int(np.prod(f.shape)) for f in fitted.families.values() if f.axes)
    assert cells == len(fitted.codes)


def test_borrowed_kinds_bring_their_tables(fitted: Calibration) -> None:
    bare = Calibration(name="a100-80gb-sxm", families={"gemm.bf16": fitted.fit("gemm.bf16")}, codes=fitted.codes)
    full = borrow(bare, A100, [fitted])
    assert full.fit("gemm.bf16") == fitted.fit("gemm.bf16")
    own, lent = fitted.fit("attention.decode.hd128"), full.fit("attention.decode.hd128")
    assert np.array_equal(full.correction(lent), fitted.correction(own))
    assert lent.error_frac == pytest.approx(own.error_frac * TRANSFER_ERROR_FACTOR)
    assert lent.source.endswith("of h100-sxm")


def test_formats_the_card_cannot_run_are_not_borrowed(fitted: Calibration) -> None:
    donor = Calibration(name="d", families={"gemm.fp8": fitted.fit("gemm.bf16")}, codes=fitted.codes)
    assert "gemm.fp8" not in borrow(Calibration(name="a100-80gb-sxm", families={}), A100, [donor]).families


def test_kinds() -> None:
    assert kind_of("attention.decode.hd128.fp8") == "attention.decode"
    assert kind_of("moe.bf16.triton.shapes") == "moe"
    assert kind_of("collective.p2p") == "collective.p2p"
